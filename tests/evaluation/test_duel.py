"""Win rates against the seed, worked by hand."""

from dataclasses import replace

import pytest

from evaluation.duel import duels_of, report
from stages.files import UserError
from stages.settings import Evaluation, Iteration, Model, Respond, Settings

SETTINGS = Settings(name="t", model=Model("m"), respond=Respond(1), iteration=[Iteration()])
PAIRWISE = replace(SETTINGS, evaluation=Evaluation(protocol="pairwise"))


def answers(**texts):
    return {name: {"prompt": f"{name}?", "text": text} for name, text in texts.items()}


DUELS = duels_of(answers(a="A1", b="B1", c="same", d="D1"), answers(a="A2", b="B2", c="same", d="D2"))


def score(duel, shown, value):
    return {"duel": duel, "shown": shown, "score": value, "failure": None if value is not None else "missing"}


def winner(duel, shown, value):
    return {"duel": duel, "shown": shown, "winner": value, "failure": None if value else "missing"}


def test_by_scores():
    rows = [
        score("a", 0, 4),
        score("a", 1, 3),
        score("b", 0, 2),
        score("b", 1, 2),
        score("d", 0, None),
        score("d", 1, 5),
    ]
    result = report(DUELS, rows, SETTINGS)
    assert result["by_id"] == {"a": 1.0, "b": 0.5, "c": 0.5, "d": None}  # c: equal texts tie unasked
    assert result["win_rate"]["value"] == round(2 / 3, 4) and result["win_rate"]["count"] == 3
    assert result["ties"]["value"] == round(2 / 3, 4)
    assert result["parse_rate"]["value"] == round(5 / 6, 4)
    assert result["consistency"]["count"] == 0 and result["first_position"]["count"] == 0


def test_in_both_orders():
    rows = [winner("a", 0, "first"), winner("a", 1, "second")]  # the model's answer, in either place
    rows += [winner("b", 0, "first"), winner("b", 1, "first")]  # the first place, both times
    rows += [winner("d", 0, "second"), winner("d", 1, None)]
    result = report(DUELS, rows, PAIRWISE)
    assert result["by_id"] == {"a": 1.0, "b": 0.5, "c": 0.5, "d": 0.0}
    assert result["win_rate"]["value"] == 0.5
    assert result["consistency"]["value"] == round(2 / 3, 4)  # a and c, not b; d has one order alone
    assert result["first_position"]["value"] == 0.6  # of five that name a place


def test_a_prompt_s_verdicts_are_drawn_together():
    """Two prompts, each with four equal comparisons: resampled one by one, they would count as eight prompts."""
    duels = duels_of(answers(a="A1", b="B1"), answers(a="A2", b="B2"))

    def four(name, place):
        return [winner(name, shown, place) for shown in (0, 0, 1, 1)]

    result = report(duels, four("a", "first") + four("b", None), PAIRWISE)
    assert result["parse_rate"] == {"value": 0.5, "low": 0.0, "high": 1.0, "count": 8}
    result = report(duels, four("a", "first") + four("b", "second"), PAIRWISE)
    assert result["first_position"] == {"value": 0.5, "low": 0.0, "high": 1.0, "count": 8}


def test_without_a_verdict_there_is_no_win_rate():
    duels = duels_of(answers(a="A1"), answers(a="A2"))
    result = report(duels, [score("a", 0, None), score("a", 1, None)], SETTINGS)
    assert result["win_rate"] == {"value": None, "low": None, "high": None, "count": 0}
    assert result["by_id"] == {"a": None}


def test_both_models_must_answer_the_same_prompts():
    with pytest.raises(UserError, match="prompt 'b': answered by only one of the two"):
        duels_of(answers(a="A1", b="B1"), answers(a="A2"))
