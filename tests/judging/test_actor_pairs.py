"""Length control against tables worked by hand."""

from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import CHAT, response, take_first, take_last

from judging.actor_pairs import actor_pairs, choose_responses, whole_length
from judging.scores import Reason, seeded_draw
from stages.settings import Iteration


def chosen_and_rejected(rows, draw=take_first, **rules):
    """Places of the pair among responses of (length, score), or the reason for none."""
    responses = [response(1, i, "x" * length) for i, (length, _) in enumerate(rows)]
    scores = {f"p1/r{i}": Fraction(str(score)) for i, (_, score) in enumerate(rows) if score is not None}
    choice = choose_responses(responses, scores, Iteration(**rules), draw)
    return choice if isinstance(choice, Reason) else (choice[0]["sample"], choice[1]["sample"])


# Seven responses, S from 1 to 5. With rho the tiers reach 4 rho inwards: [5 - 4 rho, 5] and [1, 1 + 4 rho].
SEVEN = [(900, 5), (700, 5), (500, "3.75"), (300, "3.5"), (600, "2.25"), (800, "1.5"), (400, 1)]
BY_HAND = [
    (SEVEN, {"rho": 0.0}, (1, 6)),  # tiers {r0 900, r1 700}, {r6 400}
    (SEVEN, {"rho": 0.2}, (1, 5)),  # from 4.2: {r0, r1}; to 1.8: {r5 800, r6 400}
    (SEVEN, {"rho": 0.3124}, (1, 5)),  # from 3.7504: r2 is not in
    (SEVEN, {"rho": 0.3125}, (2, 5)),  # from 3.75: the border itself is in; to 2.25: r4 600 is in, shorter than r5
    (SEVEN, {"rho": 0.32}, (2, 5)),  # from 3.72: {r0, r1, r2 500}; to 2.28: {r4 600, r5 800, r6 400}
    (SEVEN, {"rho": 0.4}, (3, 5)),  # from 3.4: {r0, r1, r2, r3 300}; to 2.6
    (SEVEN, {"rho": 0.5}, (3, 5)),  # from 3; to 3: nobody in both
    (SEVEN, {"rho": 0.7}, (3, 5)),  # from 2.2: r4 600 joins; to 3.8: {r2, r3, r4, r5, r6}, the longest still r5
    (SEVEN, {"rho": 1.0}, Reason.NOT_BETTER),  # both tiers hold all: the shortest is r3 with 3.5, the longest r0 with 5
    # equal scores at both ends: the shortest of the best, the longest of the worst
    ([(30, 4), (10, 4), (20, 4), (5, 2), (40, 2), (35, 2)], {}, (1, 4)),
    # equally long: the better score for chosen, the worse for rejected, then the earlier response
    ([(10, 4), (10, 5), (90, 2), (90, 1)], {"rho": 0.4}, (1, 3)),
    ([(10, 5), (10, 5), (90, 1), (90, 1)], {}, (0, 2)),
    # tiers that meet at 3: r1 is the shortest above and the longest below
    ([(50, 5), (40, 3), (30, 1)], {"rho": 0.5}, Reason.SAME_RESPONSE),
    # both at 3, different responses, equal scores
    ([(50, 5), (10, 3), (60, 3), (30, 1)], {"rho": 0.5}, Reason.NOT_BETTER),
    # exact fractions: tiers of rho = 0.1 over [0, 1] reach 0.9 and 0.1 exactly, which doubles would miss
    ([(50, 1), (10, "0.9"), (60, "0.1"), (30, 0)], {"rho": 0.1}, (1, 2)),
    # off: rho and lengths have no say; ties are drawn
    ([(30, 4), (10, 4), (5, "3.9"), (5, 2), (40, 2)], {"rho": 0.4, "length_control": "off"}, (0, 3)),
    # balanced, first prompt: of {r0 30, r1 10} from 4.4, {r3 16, r4 40} to 2.6, r1 and r3; then equal lengths, scores
    ([(30, 5), (10, "4.5"), (11, 3), (16, 1), (40, 2)], {"rho": 0.4, "length_control": "balanced"}, (1, 3)),
    ([(20, 4), (30, 5), (30, 5), (20, 1), (30, 1)], {"rho": 0.3, "length_control": "balanced"}, (1, 4)),
    ([(20, "4.5"), (90, 5), (20, 2), (20, 1)], {"rho": 0.3, "length_control": "balanced"}, (0, 3)),
    # tiers that hold all: two of equal score are no pair, though alike in length
    ([(50, 3), (10, 3), (90, 5), (70, 1)], {"rho": 1.0, "length_control": "balanced"}, (2, 3)),
    # nothing to choose between
    ([(10, 5)], {}, Reason.TOO_FEW_RESPONSES),
    ([(10, 5), (20, None)], {}, Reason.TOO_FEW_SCORED),
    ([(10, 3), (20, 3)], {"rho": 1.0}, Reason.EQUAL_SCORES),
    # the limit is on the chosen one, and itself allowed
    ([(10, 5), (99, 1)], {"max_response_characters": 10}, (0, 1)),
    ([(11, 5), (1, 1)], {"max_response_characters": 10}, Reason.CHOSEN_TOO_LONG),
    ([(11, 5), (1, 1)], {"length_control": "off", "max_response_characters": 10}, Reason.CHOSEN_TOO_LONG),
]


@pytest.mark.parametrize(("rows", "rules", "pair"), BY_HAND)
def test_length_control_by_hand(rows, rules, pair):
    assert chosen_and_rejected(rows, **rules) == pair


# Chosen from {r0 30, r1 10}, rejected from {r2 16, r3 40}: differences of 14, -10, -6 and -30 characters.
@pytest.mark.parametrize(
    ("surplus", "pair"),
    [(0, (1, 2)), (7, (1, 2)), (9, (0, 3)), (20, (0, 3)), (21, (1, 3)), (-4, (0, 2)), (-90, (0, 2))],
)
def test_a_balanced_pair_makes_up_for_earlier_ones(surplus, pair):
    rows = [response(1, i, "x" * length) for i, length in enumerate((30, 10, 16, 40))]
    scores = {row["id"]: Fraction(score) for row, score in zip(rows, (5, 5, 1, 1), strict=True)}
    chosen, rejected = choose_responses(rows, scores, Iteration(length_control="balanced"), take_first, surplus=surplus)
    assert (chosen["sample"], rejected["sample"]) == pair


def test_chosen_responses_are_together_as_long_as_rejected_ones():
    """Each prompt has a best response that is shorter, and one that is longer than the worst."""
    prompts = {f"p{n}": [response(n, i, "x" * length) for i, length in enumerate((10, 90, 50))] for n in range(21)}
    scores = {row["id"]: Fraction(int(row["sample"] != 2)) for rows in prompts.values() for row in rows}
    pairs = actor_pairs(prompts, scores, Iteration(length_control="balanced"), take_first, CHAT)
    lengths = [[len(pair[side][-1]["content"]) for side in ("chosen", "rejected")] for pair in pairs.values()]
    assert abs(sum(chosen - rejected for chosen, rejected in lengths)) <= 40


def test_a_response_that_was_cut_off_is_longer_than_it_looks():
    """60 characters in all, 3 responses ended: 20 on average, so that the one cut off after 30 has 50."""
    rows = [response(1, i, "x" * size) for i, size in enumerate((10, 10, 10))] + [response(1, 3, "x" * 30, "length")]
    assert [whole_length(rows)(row) for row in rows] == [10, 10, 10, 50]
    cut_off = rows[3:]
    assert whole_length(cut_off)(cut_off[0]) == 60  # nothing ended


def test_a_balanced_model_does_not_learn_to_end_early():
    """The first prompt's best response ended and its worst was cut off; a later prompt makes up for that."""
    prompts = {"p0": [response(0, 0, "x" * 90), response(0, 1, "y" * 90, "length")]}
    prompts["p1"] = [response(1, 0, "x" * 90), response(1, 1, "x" * 80, "length"), response(1, 2, "y" * 90)]
    scores = {"p0/r0": 1, "p0/r1": 0, "p1/r0": 1, "p1/r1": 1, "p1/r2": 0}
    scores = {name: Fraction(score) for name, score in scores.items()}
    pairs = actor_pairs(prompts, scores, Iteration(length_control="balanced"), take_first, CHAT)
    assert [pair["chosen_id"] for pair in pairs.values()] == ["p0/r0", "p1/r1"]


def test_without_length_control_ties_are_drawn():
    rows = [(30, 4), (10, 4), (5, 3), (5, 2), (40, 2)]
    assert chosen_and_rejected(rows, take_last, length_control="off") == (1, 4)
    drawn = [chosen_and_rejected(rows, seeded_draw(seed, 1), length_control="off") for seed in range(40)]
    assert set(drawn) == {(c, r) for c in (0, 1) for r in (3, 4)}


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 20)), max_size=7),
    st.integers(0, 100),
    st.sampled_from(["shortest", "balanced", "off"]),
)
def test_length_control_as_method_says_it(quarters, percent: int, control: str):
    rows = [(length, score / 4) for length, score in quarters]
    choice = chosen_and_rejected(rows, rho=percent / 100, length_control=control)
    if isinstance(choice, Reason):
        assert percent >= 50 or choice in (Reason.TOO_FEW_RESPONSES, Reason.EQUAL_SCORES)
        return
    (length, score), (rejected_length, rejected_score) = (rows[i] for i in choice)
    rho = Fraction(percent, 100) if control != "off" else Fraction(0)
    high, low = max(Fraction(s) for _, s in rows), min(Fraction(s) for _, s in rows)
    top, bottom = (1 - rho) * high + rho * low, (1 - rho) * low + rho * high
    assert top <= score > rejected_score <= bottom
    if control == "balanced":
        gaps = [abs(a - b) for (a, s), (b, u) in product(rows, rows) if s >= top and u <= bottom and s > u]
        assert abs(length - rejected_length) == min(gaps)
    if control == "shortest":
        assert all(other >= length for other, s in rows if s >= top)
        assert all(other <= rejected_length for other, s in rows if s <= bottom)
