"""A judge's findings on answers, and their rows in the formats of the benchmarks' own tools."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from evaluation.answers import ALPACA_EVAL
from evaluation.matches import Match
from evaluation.pairwise import Decision
from stages.files import write_json, write_jsonl

Record = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """A judge's finding on two answers to a question."""

    decision: Decision
    """"first" is the baseline's share."""
    raw: list[Record]
    """The judgments or verdicts behind the decision."""
    games: tuple[str, str]
    """The judge's texts: with the baseline's answer first, and with the model's first."""


@dataclass(frozen=True)
class Score:
    """A judge's score of the answer of one turn."""

    value: float | None
    scale: list[float]
    """The lowest and the highest possible score."""
    text: str


def alpaca_row(match: Match, finding: Finding, judge: str) -> Record:
    """One instruction's annotation, in AlpacaEval's format."""
    assert match.baseline is not None
    first = finding.decision.first
    copied = {key: match.question.row[key] for key in ("dataset", "instruction") if key in match.question.row}
    return copied | {
        "output_1": match.baseline.texts[0],
        "generator_1": match.baseline.model,
        "output_2": match.answer.texts[0],
        "generator_2": match.answer.model,
        "annotator": judge,
        "preference": None if first is None else plain(2 - first),
        "raw": finding.raw,
    }


def arena_row(match: Match, finding: Finding, judge: str) -> Record:
    """One question's row in Arena-Hard's format, of the version that its questions have."""
    assert match.baseline is not None
    first = finding.decision.first
    baseline, swapped = finding.decision.orders or (first, first)
    scores = (_sign(baseline), _sign(None if swapped is None else 1 - swapped))
    row = match.question.row
    second_version = "uid" in row
    copied = {key: row[key] for key in (("uid", "category") if second_version else ("question_id",))}
    texts = [{"answer": text} if second_version else text for text in finding.games]
    return copied | {
        "model": match.answer.model,
        "judge": judge,
        "baseline": match.baseline.model,
        "games": [{"judgment": text, "score": score} for text, score in zip(texts, scores, strict=True)],
    }


def _sign(a: Fraction | None) -> str | None:
    """A game's verdict, from A's share of it."""
    return None if a is None else "A=B" if 2 * a == 1 else "A>B" if 2 * a > 1 else "B>A"


def plain(value: Fraction) -> int | float:
    """A fraction as a number for JSON."""
    return int(value) if value.denominator == 1 else float(value)


def turn_rows(match: Match, scores: Sequence[Score], judge: str, tstamp: float) -> list[Record]:
    """One question's rows in MT-Bench's format; `tstamp` is in seconds since 1970."""
    return [
        {
            "question_id": match.question.row["question_id"],
            "model": match.answer.model,
            "judge": judge,
            "judgment": score.text,
            "score": score.value,
            "scale": score.scale,
            "turn": turn,
            "tstamp": tstamp,
        }
        for turn, score in enumerate(scores, 1)
    ]


def write_findings(
    benchmark: str, matches: Sequence[Match], findings: Sequence[Finding], judge: str, name: str, out: Path
) -> Path:
    """Write the annotations of compared answers; returns their path. `name` is the stem of Arena-Hard's file."""
    pairs = list(zip(matches, findings, strict=True))
    if benchmark == ALPACA_EVAL:
        path = out / "annotations.json"
        write_json(path, [alpaca_row(match, finding, judge) for match, finding in pairs])
    else:
        path = out / "model_judgment" / judge / f"{name}.jsonl"
        write_jsonl(path, [arena_row(match, finding, judge) for match, finding in pairs])
    return path


def write_scores(matches: Sequence[Match], scores: Sequence[Sequence[Score]], judge: str, out: Path) -> Path:
    """Write MT-Bench's annotations; returns their path."""
    path, now = out / "model_judgment" / f"{judge}_single.jsonl", time.time()
    pairs = zip(matches, scores, strict=True)
    write_jsonl(path, [row for match, turns in pairs for row in turn_rows(match, turns, judge, now)])
    return path
