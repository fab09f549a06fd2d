"""Questions, answers and judgments that are made up, in the forms of AlpacaEval, Arena-Hard and MT-Bench."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stages.command import UserError
from stages.files import write_json, write_jsonl


def written(path: Path, rows: list[dict]) -> Path:
    """Rows in a file: AlpacaEval's is one JSON list, the others' are JSON lines."""
    write_json(path, rows) if path.suffix == ".json" else write_jsonl(path, rows)
    return path


def without(row: dict, key: str) -> dict:
    return {name: value for name, value in row.items() if name != key}


@contextmanager
def refused(complaint: str) -> Iterator[None]:
    """The block raises a `UserError` of one line that matches."""
    with pytest.raises(UserError, match=complaint) as error:
        yield
    assert "\n" not in str(error.value)


ALPACA = [
    {"instruction": "Name a river.", "output": "The Po.", "generator": "baseline", "dataset": "made_up", "split": "e"},
    {"instruction": "Why is {it} blue?", "output": "Because.", "generator": "baseline", "dataset": "other"},
    {"instruction": "Add 2 and 2.", "output": "4", "generator": "baseline", "dataset": "made_up"},
]
ARENA_1 = [
    {"question_id": "b1", "category": "arena-hard-v0.1", "cluster": "Rivers", "turns": [{"content": "Name a river."}]},
    {"question_id": "a2", "category": "arena-hard-v0.1", "cluster": "Sums", "turns": [{"content": "Add 2 and 2."}]},
]
ARENA_2 = [
    {"uid": "f00d", "category": "hard_prompt", "subcategory": "coding", "prompt": "Sort a list."},
    {"uid": "beef", "category": "creative_writing", "subcategory": "creative_writing", "prompt": "A poem, please."},
]
MT = [
    {"question_id": 81, "category": "writing", "turns": ["Write of a lake.", "Shorter."]},
    {"question_id": 111, "category": "math", "turns": ["Add 2 and 2.", "Add 3."], "reference": ["4", "7"]},
    {"question_id": 141, "category": "stem", "turns": ["What is a lake?", "And a pond?"]},
]
OUTPUTS = [
    {"dataset": "made_up", "instruction": "Add 2 and 2.", "output": "5", "generator": "M1"},
    {"dataset": "made_up", "instruction": "Name a river.", "output": "The Po.", "generator": "M1"},
    {"dataset": "other", "instruction": "Why is {it} blue?", "output": "It is {not}.", "generator": "M1"},
]


def annotation(place: int, preference, **more) -> dict:
    """A row of AlpacaEval's annotations."""
    outputs = {"output_1": "b" * (10 + place), "generator_1": "base", "output_2": "m" * (20 + 3 * place)}
    row = {"instruction": f"Say {place}."} | outputs | {"generator_2": "model", "annotator": "a coin"}
    return row | {"preference": preference} | more


def game(question: str, first: str | None, second: str | None, **more) -> dict:
    """A row of Arena-Hard v0.1: the verdicts with the baseline's answer as A, and with the model's."""
    games = [{"judgment": "...", "score": first}, {"judgment": "...", "score": second}]
    return {"question_id": question, "model": "M1", "judge": "M1's", "games": games} | more


def game_2(uid: str, first: str | None, second: str | None, **more) -> dict:
    row = game(uid, first, second, category="hard_prompt", baseline="o3-mini-2025-01-31") | more
    return {"uid": row.pop("question_id")} | row


def rated(question: int, turn: int, score: float | None, model: str = "M1", **more) -> dict:
    """A row of MT-Bench, as FastChat writes it."""
    judge = ["gpt-4", "single-v1" if turn == 1 else "single-v1-multi-turn"]
    return {"question_id": question, "model": model, "judge": judge, "score": score, "turn": turn} | more
