"""Verdicts from elsewhere, of any model or of people, in the place of a judge that runs here.

A file of JSON lines, a row a verdict. Where answers are compared, AlpacaEval and Arena-Hard:

    {"id": "a2", "verdict": "second", "judge": "three friends"}
    {"id": "a2", "verdict": "tie", "game": 2, "judge": "three friends", "text": "Both add up."}

- "id": the benchmark's question_id or uid; in AlpacaEval the instruction, or its place in the baseline's file, from 0.
- "verdict": "first" where the baseline's answer is the better one, "second" where the model's is, "tie"; or
  AlpacaEval's preference, a number from 1, the baseline's, to 2, the model's; or null: asked, and nothing could be
  read. The names are of answers, not of places: whichever was shown first.
- "game", may be left out: 1, the baseline's answer was shown first; 2, the model's was. A question has either one row
  without it, which then counts for both games of Arena-Hard, or a row of each.

MT-Bench's answers are scored, each of its two turns, on a scale that the row names:

    {"id": 81, "turn": 1, "score": 7, "scale": [1, 10], "judge": "three friends"}

with a score of null where none could be read. "judge" is who said so, the same in all rows, and may be left out where
`--judge-name` says it. "text", what the judge wrote, may be left out; further keys are kept beside it in AlpacaEval's
annotations.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from evaluation.answers import ALPACA_EVAL, MT_BENCH, TURNS, Question
from evaluation.findings import Finding, Score
from evaluation.matches import Match, shortened, told_by
from evaluation.pairwise import Decision
from stages.files import UserError, read_numbered_jsonl

Record = dict[str, Any]

_SHARES = {"first": Fraction(1), "second": Fraction(0), "tie": Fraction(1, 2)}


def read_verdicts(benchmark: str, questions: Sequence[Question], path: Path) -> dict[str, dict[int, Record]]:
    """The rows of each question, by its id here and by turn or game; 0 is the row of a question without games.

    Raises `UserError` naming file and line for what is no verdict, an unknown question and one that comes twice; and
    naming the questions without one.
    """
    part = "turn" if benchmark == MT_BENCH else "game"
    names = {question.id: question.id for question in questions}
    names |= {told_by(benchmark, question): question.id for question in questions}
    found: dict[str, dict[int, Record]] = {question.id: {} for question in questions}
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
        found[name][which], lines[name, which] = row, number
    if missing := [told_by(benchmark, q) for q in questions if not found[q.id]]:
        few = shortened(missing)
        raise UserError(f"{path}: no verdict on {len(missing)} of {len(questions)} questions: {few}; add them")
    if torn := [told_by(benchmark, q) for q in questions if set(found[q.id]) not in ({0}, {1, 2})]:
        either = "one row a question, or one" if benchmark != MT_BENCH else "a row"
        raise UserError(f"{path}: {shortened(torn)}: there must be {either} of each {part}, 1 and 2; mend their rows")
    return found


def share(row: Record, where: str = "") -> Fraction | None:
    """The baseline's share of a row's verdict, in [0, 1]; None where there is no verdict.

    Raises `UserError` for what is no verdict.
    """
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
    """What a question's rows say, as of a judge that runs here: the mean over the games that have a verdict."""
    if 0 in rows:
        return Decision(share(rows[0]))
    orders = (share(rows[1]), share(rows[2]))
    known = [value for value in orders if value is not None]
    return Decision(sum(known, Fraction(0)) / len(known) if known else None, orders)


def judge_of(verdicts: dict[str, dict[int, Record]], path: Path) -> str:
    """Whom all rows name as the judge. Raises `UserError` where one names none, or another."""
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
    """What a file's verdicts say of each match. Raises `UserError` where they prefer one of two equal answers."""
    findings = []
    for match in matches:
        rows = verdicts[match.question.id]
        found = decision(rows)
        if match.baseline and match.baseline.texts == match.answer.texts and found.preference not in ("tie", None):
            [row, *_] = rows.values()
            raise UserError(f"{path}: the answers to {str(row['id'])[:60]!r} are equal: its verdict must be a tie")
        first, second = (str((rows.get(0) or rows[game]).get("text", "")) for game in (1, 2))
        findings.append(Finding(found, list(rows.values()), (first, second)))
    return findings


def scored_elsewhere(matches: Sequence[Match], verdicts: dict[str, dict[int, Record]]) -> list[list[Score]]:
    """The same from a file."""
    rows = [[verdicts[match.question.id][turn + 1] for turn in range(TURNS[MT_BENCH])] for match in matches]
    return [[Score(row["score"], row["scale"], str(row.get("text", ""))) for row in turns] for turns in rows]
