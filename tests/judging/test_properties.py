"""Properties of any iteration: symmetries of the battles, constants in the scores, and failures as deletions."""

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from records import actor_pairs, decided, judge_pairs, make_settings

from judging.elo import battle_matrix, position_weights
from judging.judge_pairs import elo_rows, position_wins
from judging.metajudge import choose_meta_judged
from judging.schedule import scheduled
from judging.scores import Reason, response_scores, to_number
from stages.records import group_by
from stages.settings import Iteration, Judge, Settings

few = hypothesis_settings(max_examples=30)


@dataclass(frozen=True)
class Invented:  # an iteration's records and its settings
    settings: Settings
    responses: list[dict]
    judgments: list[dict]
    battles: dict[str, list[tuple]]

    def scores(self) -> dict[str, Fraction]:
        return response_scores(group_by(self.judgments, "response_id"), self.settings.judge.minimum_valid)

    def actor(self):
        return actor_pairs(group_by(self.responses, "prompt_id"), self.scores(), self.settings)

    def judge(self):
        """Judge pairs or reasons, and all Elo scores."""
        contests = decided(self.responses, group_by(self.judgments, "response_id"), self.battles, self.settings)
        return judge_pairs(contests, self.settings), list(elo_rows(contests))


@st.composite
def iterations(draw) -> Invented:
    def one(*values):
        return draw(st.sampled_from(values))

    rule = Iteration(
        rho=one(0, 0, 1, 3, 4, 5, 8, 10) / 10,
        length_control=one("shortest", "balanced", "off"),
        max_response_characters=one(None, None, None, 2, 6, 8),
        max_judgment_characters=one(None, None, None, 2, 6, 8),
    )
    settings = replace(
        make_settings(max_score_gap=one(None, None, 0.0, 1.0)),
        judge=Judge(minimum_valid=one(1, 1, 2, 3)),
        iteration=[rule],
    )
    scores = st.lists(st.sampled_from([3, 0, 1, 2, 4, 5, 5, None]), min_size=one(3, 0), max_size=5)
    responses, judgments = [], []
    for prompt in range(one(3, 2, 1)):
        for sample in range(one(4, 3, 2, 1)):
            name = f"p{prompt}/r{sample}"
            row = {"id": name, "prompt_id": f"p{prompt}", "prompt": "q", "ids": [sample], "finish_reason": "stop"}
            responses.append(row | {"text": one("bb", "a", "ccc", "dddd", "e", "ff", "")})
            for index, score in enumerate(draw(scores)):
                row = {"id": f"{name}/j{index}", "response_id": name, "index": index, "score": score, "ids": [index]}
                judgments.append(row | {"text": f"{one('fair', 'thin', 'rather good')} {score}"})
    battles, judged = {}, group_by(judgments, "response_id")
    for row in choose_meta_judged(responses, judged, settings, 1):
        compared = [own for own in judged.get(row["response_id"], ()) if own["index"] in row["judgments"]]
        for a, b in scheduled(compared, settings.metajudge, 0):
            winner = one("first", "second", "first", "second", "tie", None)
            battles.setdefault(row["response_id"], []).append((a["index"], b["index"], winner))
    return Invented(settings, responses, judgments, battles)


@few
@given(iterations(), st.sampled_from([Fraction(1), Fraction(1, 3), Fraction(-7, 2)]))
def test_a_constant_added_to_all_scores_changes_no_pair(case: Invented, constant: Fraction):
    """Shifted scores go beyond a judge's range, so only differences can decide."""
    plus = [row if row["score"] is None else row | {"score": row["score"] + constant} for row in case.judgments]
    shifted = replace(case, judgments=plus)
    assert shifted.scores() == {name: score + constant for name, score in case.scores().items()}
    for one in (case, shifted):
        pairs = [pair for pair in one.actor().values() if not isinstance(pair, Reason)]
        assert all(pair["chosen_score"] == to_number(one.scores()[pair["chosen_id"]]) for pair in pairs)

    def choices(made: dict) -> list:
        return [one if isinstance(one, Reason) else (one["chosen_id"], one["rejected_id"]) for one in made.values()]

    assert choices(case.actor()) == choices(shifted.actor())
    assert choices(case.judge()[0]) == choices(shifted.judge()[0])


@few
@given(iterations(), st.text(max_size=8), st.booleans())
def test_a_parse_failure_acts_as_a_deleted_record(case: Invented, text: str, copied: bool):
    """The text of a failure does not matter, even if it equals the text of a judgment with a score."""
    kept = [row for row in case.judgments if row["score"] is not None]
    text = kept[0]["text"] if copied and kept else text
    rewritten = [row if row["score"] is not None else row | {"text": text} for row in case.judgments]
    decisive = {name: [one for one in own if one[2] is not None] or own[:1] for name, own in case.battles.items()}
    for changed in (replace(case, judgments=rewritten), replace(case, judgments=kept, battles=decisive)):
        assert changed.actor() == case.actor()
        assert changed.judge() == case.judge()


@few
@given(iterations())
def test_exchanged_positions_change_nothing(case: Invented):
    """r_mn becomes -r_nm for all pairs: each comparison is shown in the opposite order, with the same winner. First and
    second wins exchange, hence w1 and w2, and B is the same."""
    flipped = {"first": "second", "second": "first"}
    exchanged = {name: [(n, m, flipped.get(w, w)) for m, n, w in own] for name, own in case.battles.items()}
    wins, exchanged_wins = position_wins(case.battles), position_wins(exchanged)
    assert (wins["first"], wins["second"]) == (exchanged_wins["second"], exchanged_wins["first"])
    w1, w2 = position_weights(wins["first"], wins["second"])
    for name, own in case.battles.items():
        size = 1 + max(max(m, n) for m, n, _ in own)
        B, same = battle_matrix(size, own, w1, w2), battle_matrix(size, exchanged[name], w2, w1)
        np.testing.assert_allclose(same, B, rtol=0, atol=1e-15 * len(own))

    def rounded(value):  # sums of the same weights in another order differ in the last bit
        if isinstance(value, dict):
            return {key: rounded(own) for key, own in value.items()}
        return round(value, 5) if isinstance(value, float) else value

    (pairs, elo), (same_pairs, same_elo) = case.judge(), replace(case, battles=exchanged).judge()
    assert rounded(same_pairs) == rounded(pairs) and list(map(rounded, same_elo)) == list(map(rounded, elo))
