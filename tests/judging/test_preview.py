"""The preview: a response, two judgments of it and their comparison, as far as the model gives them."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from records import BYTES_CHAT

from judging.preview import preview
from sampling.request import Completion
from stages.settings import load_settings

SETTINGS = load_settings(Path(__file__).parents[2] / "configs" / "smollm2-135m.toml")
PROMPTS = [{"id": "a", "prompt": "What is rain?"}, {"id": "b", "prompt": "What is snow?"}]
ANSWERS = {"a": "Water that falls.", "b": "Cold."}


def shown(judge, metajudge: str, settings=SETTINGS) -> list[str]:
    """The preview of a worker with scripted answers: the judge's j-th answer, and the meta-judge's."""

    def run(requests):
        for request in requests:
            kind = request.id.split("/")[-1]
            text = judge(kind) if kind[0] == "j" else {"r": ANSWERS[request.id[0]], "m": metajudge}[kind[0]]
            yield Completion(request.id, [*text.encode(), 0], "stop", 0.0)

    engine = SimpleNamespace(run=run)
    return preview(SimpleNamespace(settings=settings, chat=BYTES_CHAT, engine=lambda log: engine), PROMPTS, 1)


def judged(kind: str) -> str:
    return f"Score: {1 + int(kind[1:]) % 2}\nBecause {kind}."


def test_the_longest_response_with_two_judgments_and_their_comparison():
    response, a, b, winner = shown(judged, "It deserves 2.\nWinner: Judgment B")
    assert "What is rain?" in response and "Water that falls." in response
    assert a.startswith("\nJudgment A of it: ") and b.startswith("\nJudgment B of it: ")
    assert a.split("Because")[1] != b.split("Because")[1]
    assert "winner | B" in winner


@pytest.mark.parametrize(("judge", "N", "count"), [(lambda kind: "no score", 11, 1), (judged, 11, 3), (judged, 1, 2)])
def test_a_model_that_does_not_judge_or_compare_shows_the_rest(judge, N, count):
    settings = replace(SETTINGS, judge=replace(SETTINGS.judge, N=N))
    assert len(shown(judge, "who knows", settings)) == count
