"""Length control against tables worked by hand."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import take_first, take_last

from judging.actor_pairs import Scored, choose_responses
from judging.scores import Reason, seeded_draw
from stages.settings import Iteration


def scored(*rows: tuple[int, object]) -> list[Scored]:
    """Responses r0, r1, ... of (length, score)."""
    return [Scored(f"r{i}", length, Fraction(str(score))) for i, (length, score) in enumerate(rows)]


def chosen_and_rejected(responses, rule=None, draw=take_first, **rules):
    choice = choose_responses(responses, rule or Iteration(**rules), draw, "p")
    return choice if isinstance(choice, Reason) else (choice[0].id, choice[1].id)


# Seven responses, S from 1 to 5. With rho the tiers reach 4 rho inwards: [5 - 4 rho, 5] and [1, 1 + 4 rho].
SEVEN = scored((900, 5), (700, 5), (500, "3.75"), (300, "3.5"), (600, "2.25"), (800, "1.5"), (400, 1))


@pytest.mark.parametrize(
    ("rho", "pair"),
    [
        (0, ("r1", "r6")),  # tiers {r0 900, r1 700}, {r6 400}
        (0.2, ("r1", "r5")),  # from 4.2: {r0, r1}; to 1.8: {r5 800, r6 400}
        (0.3124, ("r1", "r5")),  # from 3.7504: r2 is not in
        (0.3125, ("r2", "r5")),  # from 3.75: the border itself is in; to 2.25: r4 600 is in and shorter than r5
        (0.32, ("r2", "r5")),  # from 3.72: {r0, r1, r2 500}; to 2.28: {r4 600, r5 800, r6 400}
        (0.4, ("r3", "r5")),  # from 3.4: {r0, r1, r2, r3 300}; to 2.6
        (0.5, ("r3", "r5")),  # from 3; to 3: nobody in both
        (0.7, ("r3", "r5")),  # from 2.2: r4 600 joins; to 3.8: {r2, r3, r4, r5, r6}, the longest still r5
        (1, Reason.NOT_BETTER),  # both tiers hold all: the shortest is r3 with 3.5, the longest r0 with 5
    ],
)
def test_length_control_by_hand(rho, pair):
    assert chosen_and_rejected(SEVEN, rho=float(rho)) == pair


@pytest.mark.parametrize(
    ("responses", "rules", "pair"),
    [
        # equal scores at both ends: the shortest of the best, the longest of the worst
        (scored((30, 4), (10, 4), (20, 4), (5, 2), (40, 2), (35, 2)), {}, ("r1", "r4")),
        # equally long: the better score for chosen, the worse for rejected, then the earlier response
        (scored((10, 4), (10, 5), (90, 2), (90, 1)), {"rho": 0.4}, ("r1", "r3")),
        (scored((10, 5), (10, 5), (90, 1), (90, 1)), {}, ("r0", "r2")),
        # tiers that meet at 3: r1 is the shortest above and the longest below
        (scored((50, 5), (40, 3), (30, 1)), {"rho": 0.5}, Reason.SAME_RESPONSE),
        # just before they meet
        (scored((50, 5), (40, 3), (30, 1)), {"rho": 0.4999}, ("r0", "r2")),
        # both at 3, different responses, equal scores
        (scored((50, 5), (10, 3), (60, 3), (30, 1)), {"rho": 0.5}, Reason.NOT_BETTER),
        # meeting tiers with a valid pair in them
        (scored((50, 5), (10, 4), (60, 2), (30, 1)), {"rho": 0.8}, ("r1", "r2")),
        # crossed: chosen 2, rejected 4
        (scored((50, 5), (60, 4), (10, 2), (30, 1)), {"rho": 0.8}, Reason.NOT_BETTER),
        # exact fractions: tiers of rho = 0.1 over [0, 1] reach 0.9 and 0.1 exactly, which doubles would miss
        (scored((50, 1), (10, "0.9"), (60, "0.1"), (30, 0)), {"rho": 0.1}, ("r1", "r2")),
        (scored((50, 3), (10, "2.1"), (60, "0.9"), (30, 0)), {"rho": 0.3}, ("r1", "r2")),
        # off: rho and lengths have no say
        (scored((30, 4), (10, 4), (5, "3.9"), (5, 2), (40, 2)), {"rho": 0.4, "length_control": False}, ("r0", "r3")),
        # nothing to choose between
        ([], {}, Reason.TOO_FEW_SCORED),
        (scored((10, 5)), {}, Reason.TOO_FEW_SCORED),
        (scored((10, 3), (20, 3), (30, 3)), {}, Reason.EQUAL_SCORES),
        (scored((10, 3), (20, 3)), {"rho": 1.0}, Reason.EQUAL_SCORES),
        (scored((10, 3), (20, 3)), {"length_control": False}, Reason.EQUAL_SCORES),
        # the limit is on the chosen one, and itself allowed
        (scored((10, 5), (99, 1)), {"max_response_characters": 10}, ("r0", "r1")),
        (scored((11, 5), (1, 1)), {"max_response_characters": 10}, Reason.CHOSEN_TOO_LONG),
        (scored((11, 5), (1, 1)), {"length_control": False, "max_response_characters": 10}, Reason.CHOSEN_TOO_LONG),
    ],
)
def test_more_length_control_by_hand(responses, rules, pair):
    assert chosen_and_rejected(responses, **rules) == pair


def test_without_length_control_ties_are_drawn():
    responses = scored((30, 4), (10, 4), (5, 3), (5, 2), (40, 2))
    rule = Iteration(length_control=False)
    assert chosen_and_rejected(responses, rule, take_last) == ("r1", "r4")
    draws = {seed: chosen_and_rejected(responses, rule, seeded_draw(seed, 1)) for seed in range(40)}
    assert set(draws.values()) == {(c, r) for c in ("r0", "r1") for r in ("r3", "r4")}
    again = {seed: chosen_and_rejected(responses, rule, seeded_draw(seed, 1)) for seed in range(40)}
    assert again == draws
    assert {seed: chosen_and_rejected(responses, rule, seeded_draw(seed, 2)) for seed in range(40)} != draws


lists_of_scored = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 20)), max_size=7).map(
    lambda rows: scored(*[(length, score / 4) for length, score in rows])
)


@given(lists_of_scored, st.integers(0, 100), st.booleans())
def test_length_control_as_method_says_it(responses, percent: int, on: bool):
    choice = choose_responses(responses, Iteration(rho=percent / 100, length_control=on), take_first, "p")
    if isinstance(choice, Reason):
        assert percent >= 50 or choice in (Reason.TOO_FEW_SCORED, Reason.EQUAL_SCORES)
        return
    chosen, rejected = choice
    rho = Fraction(percent, 100) if on else Fraction(0)
    high, low = max(r.score for r in responses), min(r.score for r in responses)
    assert (1 - rho) * high + rho * low <= chosen.score and rejected.score <= (1 - rho) * low + rho * high
    assert chosen.score > rejected.score
    if on:
        assert all(r.length >= chosen.length for r in responses if r.score >= (1 - rho) * high + rho * low)
        assert all(r.length <= rejected.length for r in responses if r.score <= (1 - rho) * low + rho * high)
