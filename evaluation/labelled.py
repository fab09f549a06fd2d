"""Labelled pairs and ranked groups of responses, and a judge's verdicts on them.

A file of labelled responses is JSON lines. Each row has one of four forms:

- a labelled pair {id, prompt, output_1, output_2, label}: label 1 or 2 is the better output; "tie", 0 or 1.5 means that
  neither is better. Rows with the same id are one pair by several annotators, whom "annotator" names.
- AlpacaEval's pair {instruction, output_1, output_2, preference}: from 1 to 2, and the nearer output is better. Without
  an id, rows with the same texts are one pair; "annotator_index" names the annotator.
- a group {id, prompt, responses: [{text, score}]}: a higher score is better.
- OpenAssistant's ranked replies {message_id, context: [{role, text}], replies: [{rank, text}]}: rank 0 is the best.

A prompt is a text, or a conversation [{role, content}] that ends with the user's turn. "subset" (in AlpacaEval's rows
also "dataset") names a part of the file, for which measurements have a row of their own.

A file of verdicts is JSON lines, all of one of three forms; `evaluation.agreement` writes the first two:

- scores {id, index, score} of responses: "g1/2" is the third response of group g1, "p/0" the first output of pair p.
- comparisons {id, order, index, winner} of pairs: order 0 shows the pair as the file has it, order 1 the other way
  round; the winner is "first" or "second" as shown, or "tie". Each pair needs both orders. The first and the third
  response of group g1 are the pair "g1/0-2"; all pairs of different quality are needed.
- decisions {id, decision} of pairs, from anywhere: "first", "second" or "tie", as the file has the pair.

"index", a whole number, tells several verdicts on one response or pair apart. null: the verdict could not be read.
Responses with equal texts tie without a comparison. Other keys are ignored.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import combinations, groupby
from pathlib import Path
from typing import Any, Literal

from evaluation.pairwise import SHARES, Decision, Duel, Preference, Record, decide, mean_share, prefer
from evaluation.statistics import shortened
from judging.scores import mean_score
from prepare.rankings import conversation_text
from stages.files import UserError, read_numbered_jsonl

Form = Literal["scores", "comparisons", "decisions"]
_VERDICTS: dict[Form, tuple[str, str]] = {
    "comparisons": ("winner", '"first", "second", "tie" or null'),
    "scores": ("score", "a finite number or null"),
    "decisions": ("decision", '"first", "second", "tie" or null'),
}
"""Key and kind of the verdict, by form."""
_KINDS: dict[str, Callable[[Any], bool]] = {
    "a text": lambda value: isinstance(value, str),
    "a text or a whole number": lambda value: type(value) in (str, int) and value != "",
    "a finite number": lambda value: type(value) in (int, float) and math.isfinite(value),
    "a finite number or null": lambda value: value is None or _KINDS["a finite number"](value),
    "a list of objects": lambda value: type(value) is list and value != [] and all(type(x) is dict for x in value),
    '"first", "second", "tie" or null': lambda value: value in list(SHARES),
    "0 or 1": lambda value: type(value) is int and value in (0, 1),
    "a whole number from 0": lambda value: type(value) is int and value >= 0,
}


@dataclass(frozen=True)
class Case:
    """A response of known quality."""

    group: str
    name: str
    prompt: str
    text: str
    quality: float
    """Higher is better, within a group. In a labelled pair the better response has 1, the worse 0, tied ones 0.5."""
    flaw: str = ""
    subset: str = ""


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt."""

    name: str
    first: Case
    second: Case
    labels: Mapping[str, Preference] = field(default_factory=dict)
    """By annotator; "" is an annotator without a name. Empty for two members of a ranked group."""

    @property
    def label(self) -> Preference:
        """The better response by the annotators' majority, or by the group's order."""
        return prefer(self.first.quality, self.second.quality)

    @property
    def duel(self) -> Duel:
        return Duel(self.name, self.first.prompt, self.first.text, self.second.text)


@dataclass(frozen=True)
class Labelled:
    """The contents of a file, or of one of its subsets."""

    cases: list[Case]
    """Those of a group one after another."""
    pairs: list[Pair]
    """Labelled pairs by their ids; and any two of a group with different quality, as "GROUP/0-2"."""

    def subset(self, name: str) -> "Labelled":
        pairs = [pair for pair in self.pairs if pair.first.subset == name]
        return Labelled([case for case in self.cases if case.subset == name], pairs)

    @property
    def rankings(self) -> list[list[Case]]:
        """The ranked groups, without labelled pairs, whose members differ in quality."""
        labelled = {pair.first.group for pair in self.pairs if pair.labels}
        groups = [list(members) for name, members in groupby(self.cases, lambda c: c.group) if name not in labelled]
        return [members for members in groups if len({case.quality for case in members}) > 1]


def majority(labels: Iterable[Preference]) -> Preference:
    """The most frequent label; a tie if there are several."""
    (label, most), *others = Counter(labels).most_common()
    return "tie" if any(count == most for _, count in others) else label


def read_labelled(path: Path) -> Labelled:
    """The responses of a file and their pairs, groups first.

    Raises `UserError`, naming file and line or id, for a row of no form, a missing or invalid key, a repeated id of a
    group, an id with two pairs, and a repeated label; and for an empty file.
    """
    groups: dict[str, list[Case]] = {}
    votes: dict[Any, tuple[list[str], str, dict[str, Preference]]] = {}
    for number, row in read_numbered_jsonl(path):
        where = f"{path}, line {number}"
        if "output_1" in row:
            _add_vote(row, votes, where)
        elif (members := _group(row, where))[0].group in groups:
            raise UserError(f"{where}: the id {members[0].group!r} came before; give each group its own")
        else:
            groups[members[0].group] = members
    pairs = [
        Pair(f"{name}/{i}-{j}", a, b)
        for name, members in groups.items()
        for (i, a), (j, b) in combinations(enumerate(members), 2)
        if a.quality != b.quality
    ]
    taken = {*groups, *(pair.name for pair in pairs)}
    for place, (key, (texts, subset, labels)) in enumerate(votes.items()):
        name = key if isinstance(key, str) else f"{place:05}"
        if name in taken:
            raise UserError(f"{path}: the id {name!r} is of a pair, and of a group or its pairs, too; rename one")
        qualities = {"first": (1, 0), "second": (0, 1), "tie": (0.5, 0.5)}[majority(labels.values())]
        a, b = (Case(name, f"{name}/{i}", texts[0], texts[1 + i], qualities[i], "", subset) for i in (0, 1))
        groups[name] = [a, b]
        pairs.append(Pair(name, a, b, labels))
    if not groups:
        raise UserError(f"{path}: no labelled responses; name another file of pairs or groups")
    return Labelled([case for members in groups.values() for case in members], pairs)


def _add_vote(row: Record, votes: dict[Any, tuple[list[str], str, dict[str, Preference]]], where: str) -> None:
    """Add one annotator's label of a pair to its (prompt and outputs, subset, labels), by its id or else its texts."""
    official = "instruction" in row
    texts = [_prompt(_value(row, "instruction" if official else "prompt", where), where)]
    texts += [_value(row, key, where, "a text") for key in ("output_1", "output_2")]
    named = not official or "id" in row
    key: Any = str(_value(row, "id", where, "a text or a whole number")) if named else tuple(texts)
    subset = row.get("subset", row.get("dataset", "") if official else "")
    before, _, labels = votes.setdefault(key, (texts, str(subset), {}))
    shown = repr(key) if named else f"the pair of {texts[0][:40]!r}"
    if before != texts:
        raise UserError(f"{where}: {shown} came before with other texts; give each pair its own id")
    annotator = row.get("annotator", row.get("annotator_index"))
    annotator = "" if annotator is None else str(annotator)
    if annotator in labels:
        raise UserError(f'{where}: {shown} has a label by {annotator!r}; remove one, or name each "annotator"')
    labels[annotator] = _label(row, where)


def _label(row: Record, where: str) -> Preference:
    key = "preference" if "preference" in row and "label" not in row else "label"
    value = _value(row, key, where)
    text = str(value).strip().lower()
    try:
        number = {"first": 1, "second": 2, "tie": 1.5}.get(text) or float(text)
    except ValueError:
        number = math.nan
    if number not in (0, 1, 1.5, 2) and not (key == "preference" and 1 < number < 2):
        raise UserError(f'{where}: {key} is {value!r}; it must be 1, 2 or "tie"')
    return prefer(1.5, number or 1.5)  # 0 is a tie, too


def _group(row: Record, where: str) -> list[Case]:
    """The members of a row of either form of groups."""
    forms = {"responses": ("id", "prompt", "score", 1), "replies": ("message_id", "context", "rank", -1)}
    form = next((form for form in forms if form in row), None)
    if form is None:
        raise UserError(f"{where}: neither a labelled pair nor a group; evaluation/labelled.py describes the rows")
    id_key, prompt_key, quality_key, sign = forms[form]
    name = str(_value(row, id_key, where, "a text or a whole number"))
    prompt, subset, cases = _prompt(_value(row, prompt_key, where), where), str(row.get("subset", "")), []
    for i, response in enumerate(_value(row, form, where, "a list of objects")):
        quality = sign * _value(response, quality_key, where, "a finite number")
        text = _value(response, "text", where, "a text")
        cases.append(Case(name, f"{name}/{i}", prompt, text, quality, response.get("flaw", ""), subset))
    return cases


def _prompt(value: Any, where: str) -> str:
    """A prompt's text; of a conversation, the text that a judge is shown."""
    if isinstance(value, str):
        return value
    turns = []
    for message in _value({"prompt": value}, "prompt", where, "a list of objects"):
        role = {"user": "prompter", "human": "prompter"}.get(message.get("role"), message.get("role"))
        text = _value(message, "text" if "text" in message else "content", where, "a text")
        turns.append({"role": role, "text": text})
    if {turn["role"] for turn in turns} - {"prompter", "assistant"} or turns[-1]["role"] != "prompter":
        raise UserError(f"{where}: a prompt's messages are of user or assistant, the last of the user; mend the line")
    return conversation_text(turns)


def _value(row: Record, key: str, where: str, kind: str = "") -> Any:
    """A value of a row, of one of `_KINDS` if named."""
    value = row.get(key)
    if value is None and not (key in row and kind.endswith("null")):
        raise UserError(f"{where}: key {key!r} is missing; add it")
    if kind and not _KINDS[kind](value):
        raise UserError(f"{where}: {key} is {value!r:.40}; it must be {kind}")
    return value


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
        """The decision of a pair by its comparisons, or by its row."""
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
        won: dict[str, list[Fraction]] = {case.name: [] for case in labelled.cases}
        for pair in labelled.pairs:
            decision = self.of(pair)
            preferences[pair.name] = "tie" if decision.consistent is False else decision.preference
            if (share := SHARES[preferences[pair.name]]) is not None:
                won[pair.first.name].append(share)
                won[pair.second.name].append(1 - share)
        return Opinion(preferences, {name: mean_share(shares) for name, shares in won.items()})


def read_decisions(path: Path, labelled: Labelled) -> Decisions:
    """The verdicts of a file.

    Raises `UserError`, naming file and line, for a row of no form or of another form than the first row, an unknown id,
    an invalid verdict and a repeated one; and naming the responses or pairs without a verdict.
    """
    rows = [(f"{path}, line {number}", row) for number, row in read_numbered_jsonl(path, ("id",))]
    form = next((form for form, (key, _) in _VERDICTS.items() if not rows or key in rows[0][1]), None)
    if form is None:
        raise UserError(f"{rows[0][0]}: no score, winner or decision; evaluation/labelled.py describes the rows")
    (key, kind), orders = _VERDICTS[form], (0, 1) if form == "comparisons" else (0,)
    items: Sequence[Case | Pair] = labelled.cases if form == "scores" else labelled.pairs
    verdicts: dict[str, list[dict[int, Any]]] = {item.name: [{} for _ in orders] for item in items}
    for where, row in rows:
        if (name := str(row["id"])) not in verdicts:
            raise UserError(f"{where}: the cases have no {name!r} for a {key}; remove the line, or name their file")
        verdict = _value(row, key, where, kind)
        own = verdicts[name][_value(row, "order", where, "0 or 1") if form == "comparisons" else 0]
        index = _value({"index": row.get("index") or 0}, "index", where, "a whole number from 0")
        index = 0 if form == "decisions" else index
        if index in own:
            raise UserError(f'{where}: {name!r} has this verdict already; remove one, or give each its own "index"')
        own[index] = verdict
    twins = {pair.name for pair in labelled.pairs if pair.first.text == pair.second.text}
    missing = [
        f"{name}, order {order}" if form == "comparisons" else name
        for name, given in verdicts.items()
        for order, own in enumerate(given)
        if not own and name not in twins
    ]
    if missing:
        raise UserError(f"{path}: no {key} of {shortened(missing)}; add a row for each, null where there is none")
    return Decisions(form, {n: [[own[i] for i in sorted(own)] for own in given] for n, given in verdicts.items()})
