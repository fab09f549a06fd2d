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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from evaluation.labelled import Labelled, Pair
from evaluation.pairwise import SHARES, Decision, Preference, decide, mean_share, prefer
from judging.scores import mean_score
from stages.files import UserError, read_numbered_jsonl

Record = dict[str, Any]
Form = Literal["scores", "comparisons", "decisions"]
KEYS: dict[Form, str] = {"scores": "score", "comparisons": "winner", "decisions": "decision"}
"""The key of the verdict, by form."""


@dataclass(frozen=True)
class Opinion:
    """Somebody's preferences between labelled responses; None where there is no verdict."""

    preferences: Mapping[str, Preference | None]
    """By pair, as the file has it."""
    values: Mapping[str, Fraction | int | None]
    """By response; higher is better, within its group. From comparisons, the value is the share of wins."""


def by_value(labelled: Labelled, values: Mapping[str, Fraction | int | None]) -> Opinion:
    """The opinion that the response with the higher value is better, such as the longer one."""
    both = {pair.name: (values[pair.first.name], values[pair.second.name]) for pair in labelled.pairs}
    return Opinion({name: None if None in own else prefer(*own) for name, own in both.items()}, values)


@dataclass(frozen=True)
class Decisions:
    """A judge's verdicts, all of one form."""

    form: Form
    verdicts: Mapping[str, Sequence[Sequence[Any]]]
    """By response or pair: the verdicts in each order, in the order of their indices."""

    def first(self, n: int) -> "Decisions":
        """The first `n` verdicts on each response, or on each order of a pair."""
        return Decisions(self.form, {name: [own[:n] for own in orders] for name, orders in self.verdicts.items()})

    def of(self, pair: Pair) -> Decision:
        """The decision of a pair by its comparisons, or by its row (`evaluation.pairwise`)."""
        orders = self.verdicts[pair.name]
        if self.form == "comparisons":
            rows = [{"shown": order, "winner": winner} for order, own in enumerate(orders) for winner in own]
            return decide(pair.duel, rows, "pairwise")
        return Decision(SHARES[orders[0][0] if orders[0] else "tie"])

    def opinion(self, labelled: Labelled) -> Opinion:
        """The judge's opinion: the higher mean score wins; or the comparisons decide, with a tie if the two orders
        disagree, which is MT-Bench's rule. A response's share of wins is over its decided pairs, a tie counting half.
        """
        if self.form == "scores":
            rows = {case.name: [{"score": score} for score in self.verdicts[case.name][0]] for case in labelled.cases}
            return by_value(labelled, {name: mean_score(own, 1) for name, own in rows.items()})
        preferences: dict[str, Preference | None] = {}
        won: dict[str, list[Fraction | None]] = {case.name: [] for case in labelled.cases}
        for pair in labelled.pairs:
            decision = self.of(pair)
            preferences[pair.name] = "tie" if decision.consistent is False else decision.preference
            share = SHARES[preferences[pair.name]]
            won[pair.first.name].append(share)
            won[pair.second.name].append(None if share is None else 1 - share)
        return Opinion(preferences, {name: mean_share(shares) for name, shares in won.items()})


def read_decisions(path: Path, labelled: Labelled) -> Decisions:
    """The verdicts of a file.

    Raises `UserError`, naming file, line and id, for a row of no form or of another form than the first row, an unknown
    id, an invalid verdict and a repeated one; and naming the responses or pairs without a verdict.
    """
    rows = [(f"{path}, line {number}", row) for number, row in read_numbered_jsonl(path, ("id",))]
    if not rows:
        raise UserError(f"{path}: no verdicts; name another file")
    form = next((form for form, key in KEYS.items() if key in rows[0][1]), None)
    if form is None:
        raise UserError(f"{rows[0][0]}: no score, winner or decision; evaluation/decisions.py describes the rows")
    return collect(form, rows, labelled, str(path))


def collect(form: Form, rows: Iterable[tuple[str, Record]], labelled: Labelled, where: str) -> Decisions:
    """The verdicts of rows, each row with its place in `where`. Raises the errors of `read_decisions`."""
    key, orders = KEYS[form], (0, 1) if form == "comparisons" else (0,)
    verdicts: dict[str, dict[Any, Any]]
    verdicts = {item.name: {} for item in (labelled.cases if form == "scores" else labelled.pairs)}
    for place, row in rows:
        own, name = verdicts.get(str(row["id"])), repr(row["id"])
        if own is None:
            kind = "response" if form == "scores" else "pair"
            raise UserError(f"{place}: no {kind} of the cases has the id {name}; remove the line, or name their file")
        if key not in row:
            raise UserError(f"{place}: {name} has no {key}; all rows must be of one form, add it")
        order, index = row.get("order") if form == "comparisons" else 0, row.get("index") or 0
        number = row[key] is None or (type(row[key]) in (int, float) and math.isfinite(row[key]))
        for part, valid, wanted in (
            ("score", number or form != "scores", "a finite number or null"),
            (key, row[key] in list(SHARES) or form == "scores", '"first", "second", "tie" or null'),
            ("order", type(order) is int and order in orders, "0 or 1"),
            ("index", type(index) is int and index >= 0, "a whole number from 0"),
        ):
            if not valid:
                raise UserError(f"{place}: the {part} of {name} is {row.get(part)!r}; it must be {wanted}")
        at = (order, 0 if form == "decisions" else index)
        if at in own:
            raise UserError(f'{place}: {name} has this verdict already; remove one, or give each its own "index"')
        own[at] = row[key]
    ordered = {
        n: [[own[at] for at in sorted(own) if at[0] == order] for order in orders] for n, own in verdicts.items()
    }
    twins = {pair.name for pair in labelled.pairs if pair.first.text == pair.second.text}
    missing = [(name, order) for name in ordered if name not in twins for order in orders if not ordered[name][order]]
    if missing:
        few = "; ".join(f"{n!r}, order {order}" if form == "comparisons" else repr(n) for n, order in missing[:3])
        few += f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(f"{where}: no {key} of {few}; add a row for each, null where there is none")
    return Decisions(form, ordered)
