"""Verdicts from a file, by any model or by people, in place of a judge that runs here.

The file is JSON lines, one row for each verdict. In AlpacaEval and Arena-Hard, which compare answers:

    {"id": "a2", "verdict": "second", "judge": "three friends"}
    {"id": "a2", "verdict": "tie", "game": 2, "judge": "three friends", "text": "Both add up."}

- "id": the benchmark's question_id or uid; in AlpacaEval the instruction, or its place in the baseline's file, from 0.
- "verdict": "first" if the baseline's answer is better, "second" if the model's is, or "tie", whichever was shown
  first; or AlpacaEval's preference, a number from 1 (the baseline's) to 2 (the model's); or null for an unreadable
  verdict.
- "game", optional: 1, the baseline's answer was shown first; 2, the model's answer was shown first. A question has
  either one row without a game, which counts for both games of Arena-Hard, or one row for each game.

In MT-Bench, which scores each of two turns on the scale in the row:

    {"id": 81, "turn": 1, "score": 7, "scale": [1, 10], "judge": "three friends"}

A score of null is unreadable. "judge" is the same in all rows, and optional with `--judge-name`. "text", the judge's
text, is optional. AlpacaEval's annotations keep it and all other keys.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from evaluation.answers import ALPACA_EVAL, MT_BENCH, TURNS, Question
from evaluation.findings import Finding, Score
from evaluation.matches import Match, question_key
from evaluation.pairwise import Decision
from evaluation.statistics import shortened
from stages.files import UserError, read_numbered_jsonl

Record = dict[str, Any]

_SHARES = {"first": Fraction(1), "second": Fraction(0), "tie": Fraction(1, 2)}


def read_verdicts(benchmark: str, questions: Sequence[Question], path: Path) -> dict[str, dict[int, Record]]:
    """The rows by `Question.id`, and by turn or game; 0 is the row without a game.

    Raises `UserError` naming file and line for an invalid verdict, an unknown question and a repeated one; and naming
    the questions without a verdict.
    """
    part = "turn" if benchmark == MT_BENCH else "game"
    names = {question.id: question.id for question in questions}
    names |= {question_key(benchmark, question): question.id for question in questions}
    verdicts: dict[str, dict[int, Record]] = {question.id: {} for question in questions}
    lines: dict[tuple[str, int], int] = {}
    for number, row in read_numbered_jsonl(path, ("id", "score" if benchmark == MT_BENCH else "verdict")):
        where, given = f"{path}, line {number}", row["id"]
        name = names.get(f"{given:04}" if benchmark == ALPACA_EVAL and type(given) is int else str(given))
        if name is None:
            raise UserError(f"{where}: no question is {str(given)[:60]!r}; name the file of this benchmark's verdicts")
        which = row.get(part, 0)
        if which not in (1, 2) and (benchmark == MT_BENCH or part in row):
            raise UserError(f"{where}: {part} is {row.get(part)!r}; it must be 1 or 2")
        if (name, which) in lines:
            raise UserError(
                f"{where}: {str(given)[:60]!r} came before, in line {lines[name, which]}; keep one of the two"
            )
        _check_score(row, where) if benchmark == MT_BENCH else share(row, where)
        verdicts[name][which], lines[name, which] = row, number
    if missing := [question_key(benchmark, q) for q in questions if not verdicts[q.id]]:
        few = shortened(missing)
        raise UserError(f"{path}: no verdict on {len(missing)} of {len(questions)} questions: {few}; add them")
    if torn := [question_key(benchmark, q) for q in questions if set(verdicts[q.id]) not in ({0}, {1, 2})]:
        either = "one row a question, or one" if benchmark != MT_BENCH else "a row"
        raise UserError(f"{path}: {shortened(torn)}: there must be {either} of each {part}, 1 and 2; mend their rows")
    return verdicts


def share(row: Record, where: str = "") -> Fraction | None:
    """The baseline's share of a row's verdict, in [0, 1]; None for null. Raises `UserError` for an invalid verdict."""
    verdict = row["verdict"]
    if verdict is None:
        return None
    if isinstance(verdict, str) and verdict in _SHARES:
        return _SHARES[verdict]
    if type(verdict) in (int, float) and 1 <= verdict <= 2:
        return 2 - Fraction(str(verdict))
    raise UserError(f"{where}: verdict is {verdict!r}; it must be first, second, tie, null or a number from 1 to 2")


def _check_score(row: Record, where: str) -> None:
    scale, score = row.get("scale"), row["score"]
    if not isinstance(scale, list) or len(scale) != 2 or any(type(end) not in (int, float) for end in scale):
        raise UserError(f"{where}: scale is {scale!r}; it must be the lowest and the highest score, such as [1, 10]")
    if score is not None and (type(score) not in (int, float) or not scale[0] <= score <= scale[1]):
        raise UserError(f"{where}: score is {score!r}; it must be null or a number of its scale, {scale}")


def decision(rows: dict[int, Record]) -> Decision:
    """The decision of a question's rows: the mean over the games with a verdict, as for a judge that runs here."""
    if 0 in rows:
        return Decision(share(rows[0]))
    orders = (share(rows[1]), share(rows[2]))
    shares = [value for value in orders if value is not None]
    return Decision(sum(shares, Fraction(0)) / len(shares) if shares else None, orders)


def judge_of(verdicts: dict[str, dict[int, Record]], path: Path) -> str:
    """The judge that all rows name. Raises `UserError` for a row without a judge, or with another one."""
    names: set[str] = set()
    for rows in verdicts.values():
        for row in rows.values():
            name = row.get("judge")
            if not isinstance(name, str):
                raise UserError(f"{path}: a row's judge is {name!r}; say who judged, in each row or by --judge-name")
            names.add(name)
    if len(names) > 1:
        raise UserError(f"{path}: rows name {len(names)} judges, {shortened(sorted(names))}; give each its file")
    return names.pop()


def found_elsewhere(matches: Sequence[Match], verdicts: dict[str, dict[int, Record]], path: Path) -> list[Finding]:
    """Findings from a file's verdicts. Raises `UserError` for a verdict that prefers one of two equal answers."""
    findings = []
    for match in matches:
        rows = verdicts[match.question.id]
        own = decision(rows)
        if match.baseline and match.baseline.texts == match.answer.texts and own.preference not in ("tie", None):
            [row, *_] = rows.values()
            raise UserError(f"{path}: the answers to {str(row['id'])[:60]!r} are equal: its verdict must be a tie")
        first, second = (str((rows.get(0) or rows[game]).get("text", "")) for game in (1, 2))
        findings.append(Finding(own, list(rows.values()), (first, second)))
    return findings


def scored_elsewhere(matches: Sequence[Match], verdicts: dict[str, dict[int, Record]]) -> list[list[Score]]:
    """Scores of each match's turns, from a file's verdicts."""
    rows = [[verdicts[match.question.id][turn + 1] for turn in range(TURNS[MT_BENCH])] for match in matches]
    return [[Score(row["score"], row["scale"], str(row.get("text", ""))) for row in turns] for turns in rows]
