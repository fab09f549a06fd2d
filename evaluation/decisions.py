"""A judge's verdicts on labelled responses, and the preferences and values that follow from them.

A file of verdicts is JSON lines, all of one of three forms; `evaluation.agreement` writes the first two:

- scores {id, index, score} of responses: an id is the group's id, a slash and the response's place from 0, as in
  "g1/2". The outputs of a labelled pair "p" are "p/0" and "p/1".
- comparisons {id, order, index, winner} of pairs: order 0 shows the pair as the file has it, order 1 the other way
  round. The winner is "first" or "second" as shown, or "tie". Each pair needs both orders. Two responses of a group
  "g1" are the pair "g1/0-2", the earlier first; all pairs of different quality are needed.
- decisions {id, decision} of pairs, from anywhere: "first", "second" or "tie", as the file has the pair.

"index", a whole number, distinguishes several verdicts on one response or pair; a single one needs no index. null means
that the verdict could not be read. Responses with equal texts tie without a comparison. Other keys are ignored.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from evaluation.labelled import Labelled, Pair, prefer
from evaluation.pairwise import Decision, Preference, decide
from judging.scores import mean_score
from stages.files import UserError, read_numbered_jsonl

Record = dict[str, Any]
Form = Literal["scores", "comparisons", "decisions"]
KEYS: dict[Form, str] = {"scores": "score", "comparisons": "winner", "decisions": "decision"}
"""The key of the verdict, by form."""
_SHARES = {"first": Fraction(1), "tie": Fraction(1, 2), "second": Fraction(0), None: None}


@dataclass(frozen=True)
class Opinion:
    """Somebody's preferences between labelled responses; None where there is no verdict."""

    preferences: Mapping[str, Preference | None]
    """By pair, as the file has it."""
    values: Mapping[str, Fraction | int | None]
    """By response; higher is better, within its group. From comparisons, the value is the share of wins."""


def longer_wins(labelled: Labelled) -> Opinion:
    """The opinion that the longer response is better, in characters."""
    return _by_value(labelled, {case.name: len(case.text) for case in labelled.cases})


@dataclass(frozen=True)
class Decisions:
    """A judge's verdicts, all of one form."""

    form: Form
    rows: Mapping[str, list[Record]]
    """By response or pair; "index" counts from 0, in each order."""

    @property
    def verdicts(self) -> list[Any]:
        """The verdicts of all rows; None for an unreadable one."""
        return [row[KEYS[self.form]] for rows in self.rows.values() for row in rows]

    @property
    def most(self) -> int:
        """The greatest number of verdicts on one response, or on one order of a pair."""
        return 1 + max((row["index"] for rows in self.rows.values() for row in rows), default=0)

    def first(self, n: int) -> "Decisions":
        """The first `n` verdicts on each response, or on each order of a pair."""
        return Decisions(self.form, {name: [r for r in rows if r["index"] < n] for name, rows in self.rows.items()})

    def of(self, pair: Pair) -> Decision:
        """The decision of a pair by its comparisons, or by its row (`evaluation.pairwise`)."""
        rows = self.rows[pair.name]
        if self.form == "comparisons":
            return decide(pair.duel, [row | {"shown": row["order"]} for row in rows], "pairwise")
        return Decision(_SHARES[rows[0]["decision"]] if rows else Fraction(1, 2))

    def opinion(self, labelled: Labelled) -> Opinion:
        """The judge's opinion: the higher mean score wins; or the comparisons decide, with a tie if the two orders
        disagree, which is MT-Bench's rule."""
        if self.form == "scores":
            return _by_value(labelled, {case.name: mean_score(self.rows[case.name], 1) for case in labelled.cases})
        preferences: dict[str, Preference | None] = {}
        for pair in labelled.pairs:
            decision = self.of(pair)
            preferences[pair.name] = "tie" if decision.consistent is False else decision.preference
        return Opinion(preferences, _shares_of_wins(labelled, preferences))


def _by_value(labelled: Labelled, values: Mapping[str, Fraction | int | None]) -> Opinion:
    """The opinion that the response with the higher value is better."""
    preferences: dict[str, Preference | None] = {}
    for pair in labelled.pairs:
        first, second = values[pair.first.name], values[pair.second.name]
        preferences[pair.name] = None if first is None or second is None else prefer(first, second)
    return Opinion(preferences, values)


def _shares_of_wins(labelled: Labelled, preferences: Mapping[str, Preference | None]) -> dict[str, Fraction | None]:
    """By response: the share of its decided pairs that it wins, a tie counting half; None without decided pairs."""
    won: dict[str, list[Fraction]] = {case.name: [] for case in labelled.cases}
    for pair in labelled.pairs:
        share = _SHARES[preferences[pair.name]]
        if share is not None:
            won[pair.first.name].append(share)
            won[pair.second.name].append(1 - share)
    return {name: sum(shares, Fraction(0)) / len(shares) if shares else None for name, shares in won.items()}


def read_decisions(path: Path, labelled: Labelled) -> Decisions:
    """The verdicts of a file.

    Raises `UserError`, naming file, line and id, for a row of no form or of another form than the first row, an unknown
    id, an invalid verdict and a repeated one; and naming the responses or pairs without a verdict.
    """
    rows = [(f"{path}, line {number}", row) for number, row in read_numbered_jsonl(path, ("id",))]
    if not rows:
        raise UserError(f"{path}: no verdicts; name another file")
    where, row = rows[0]
    form = next((form for form, key in KEYS.items() if key in row), None)
    if form is None:
        raise UserError(f"{where}: no score, winner or decision; evaluation/decisions.py describes the rows")
    return collect(form, rows, labelled, str(path))


def collect(form: Form, rows: Iterable[tuple[str, Record]], labelled: Labelled, where: str) -> Decisions:
    """The verdicts of rows, each row with its place in `where`. Raises the errors of `read_decisions`."""
    judged = labelled.cases if form == "scores" else labelled.pairs
    verdicts: dict[str, dict[tuple[int, int], Any]] = {item.name: {} for item in judged}
    for place, row in rows:
        name = str(row["id"])
        if name not in verdicts:
            kind = "response" if form == "scores" else "pair"
            raise UserError(f"{place}: no {kind} of the cases has the id {name!r}; remove the line, or name their file")
        if KEYS[form] not in row:
            raise UserError(f"{place}: {name!r} has no {KEYS[form]}; all rows must be of one form, add it")
        order = _whole(row, "order", place) if form == "comparisons" else 0
        index = _whole(row, "index", place) if row.get("index") is not None and form != "decisions" else 0
        if (order, index) in verdicts[name]:
            raise UserError(f'{place}: {name!r} has this verdict already; remove one, or give each its own "index"')
        verdicts[name][order, index] = _verdict(form, row, place)
    needed = [row for row in _needed(form, labelled) if row[1] not in {order for order, _ in verdicts[row[0]]}]
    if missing := [repr(name) + (f", order {order}" if form == "comparisons" else "") for name, order in needed]:
        shown = "; ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise UserError(f"{where}: no {KEYS[form]} of {shown}; add a row for each, null where there is none")
    return Decisions(form, {name: _numbered(KEYS[form], own) for name, own in verdicts.items()})


def _numbered(key: str, verdicts: Mapping[tuple[int, int], Any]) -> list[Record]:
    """Rows of the verdicts by (order, index); the new index counts from 0 in each order."""
    rows: list[Record] = []
    for order in (0, 1):
        indices = sorted(index for o, index in verdicts if o == order)
        rows += [{"order": order, "index": i, key: verdicts[order, index]} for i, index in enumerate(indices)]
    return rows


def _needed(form: Form, labelled: Labelled) -> list[tuple[str, int]]:
    """(name, order) of each row that is needed."""
    if form == "scores":
        return [(case.name, 0) for case in labelled.cases]
    orders = (0, 1) if form == "comparisons" else (0,)
    pairs = [pair for pair in labelled.pairs if pair.first.text != pair.second.text]
    return [(pair.name, order) for pair in pairs for order in orders]


def _verdict(form: Form, row: Record, where: str) -> Any:
    value = row[KEYS[form]]
    if form == "scores" and value is not None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{where}: the score of {row['id']!r} is {value!r}; it must be a finite number or null")
    elif value not in ("first", "second", "tie", None):
        verdict = f"the {KEYS[form]} of {row['id']!r} is {value!r}"
        raise UserError(f'{where}: {verdict}; it must be "first", "second", "tie" or null')
    return value


def _whole(row: Record, key: str, where: str) -> int:
    value = row.get(key)
    if type(value) is not int or value < 0 or (key == "order" and value > 1):
        raise UserError(
            f"{where}: the {key} of {row['id']!r} is {value!r}; it must be "
            + ("0 or 1" if key == "order" else "a whole number from 0")
        )
    return value
