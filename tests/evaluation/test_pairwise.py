"""Two responses compared: requests, and decisions from verdicts; every case worked by hand."""

from dataclasses import replace
from fractions import Fraction

import pytest

from evaluation.pairwise import Duel, decide, duel_items, read_duel
from judging.verdict import Failure, parse_winner
from stages.settings import Iteration, Model, Respond, Settings

DUEL = Duel("d", "What is {x}?", "It is 100% {y}.", "No idea.")
SETTINGS = Settings(name="t", model=Model("m"), respond=Respond(1), iteration=[Iteration()])
HALF = Fraction(1, 2)


class Chat:
    stop_ids = (0,)


def content(item):
    return "\n".join(message["content"] for message in item.messages())


@pytest.mark.parametrize("form", ["full", "compact"])
def test_both_orders_are_asked_with_the_same_rest(form):
    settings = replace(SETTINGS, judge=replace(SETTINGS.judge, prompt_style=form))
    items = list(duel_items([DUEL], "pairwise", 2, Chat(), settings))
    assert [(item.record["shown"], item.record["index"]) for item in items] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len({item.seed for item in items}) == 4
    first, second = content(items[0]), content(items[2])
    assert first.index(DUEL.first) < first.index(DUEL.second) and sorted(first) == sorted(second)
    assert second.index(DUEL.second) < second.index(DUEL.first)


def test_scores_are_asked_of_each_response_alone():
    items = list(duel_items([DUEL], "scores", 3, Chat(), SETTINGS))
    named = [(DUEL.first in content(item), DUEL.second in content(item)) for item in items]
    assert named == [(True, False)] * 3 + [(False, True)] * 3


def test_equal_texts_tie_unasked():
    twin = Duel("d", "p", "same", "same")
    assert not list(duel_items([twin], "pairwise", 1, Chat(), SETTINGS))
    assert decide(twin, [], "scores").preference == "tie" and decide(twin, [], "pairwise").consistent


@pytest.mark.parametrize(
    ("text", "winner"),
    [
        ("B rambles.\nWinner: Response A", "first"),
        ("Winner: [response b].", "second"),
        ("Winner: B", "second"),
        ("Winner: Judgment A", Failure.MALFORMED),
        ("Winner: Response A or Response B", Failure.AMBIGUOUS),
    ],
)
def test_a_winner_among_responses(text, winner):
    assert parse_winner(text, "stop", compared="responses") == winner
    named, failure = (None, str(winner)) if isinstance(winner, Failure) else (winner, None)
    read = read_duel({"text": text, "finish_reason": "stop"}, "pairwise", SETTINGS.judge)
    assert read == {"winner": named, "failure": failure}


@pytest.mark.parametrize(
    ("key", "first", "second", "share", "preference", "consistent"),
    [
        ("score", [4, 5], [4, 4], 1, "first", None),
        ("score", [4, 5], [4.5, 4.5], HALF, "tie", None),
        ("score", [None, 3], [4], 0, "second", None),
        ("score", [None], [2], None, None, None),
        ("winner", ["first"], ["second"], 1, "first", True),  # the first response won in both orders
        ("winner", ["first"], ["first"], HALF, "tie", False),  # the first place wins, both times
        ("winner", ["tie"], ["tie"], HALF, "tie", True),
        ("winner", ["tie"], ["second"], Fraction(3, 4), "first", False),
        ("winner", [None], ["first"], 0, "second", None),
        ("winner", [None], [None], None, None, None),
        ("winner", ["first", "first", "second"], ["first"], Fraction(1, 3), "second", False),
    ],
)
def test_the_higher_mean_wins_and_orders_are_averaged(key, first, second, share, preference, consistent):
    rows = [{"shown": shown, key: value} for shown, given in enumerate((first, second)) for value in given]
    decision = decide(DUEL, rows, "scores" if key == "score" else "pairwise")
    assert (decision.first, decision.preference, decision.consistent) == (share, preference, consistent)
