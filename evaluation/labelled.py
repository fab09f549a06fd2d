"""Labelled pairs and ranked groups of responses, and a judge's verdicts on them: docs/evaluation.md has the formats.

A response is named by its group or pair: "g1/2" is the third response of group g1, "p/0" the first output of pair p.
The first and the third response of group g1 are the pair "g1/0-2". Responses with equal texts tie without a comparison.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import combinations, groupby
from pathlib import Path
from statistics import multimode
from types import MappingProxyType
from typing import Any, NamedTuple

from evaluation.pairwise import SHARES, Decision, Duel, Preference, decide, mean_share, prefer
from evaluation.statistics import shortened
from judging.scores import mean_score
from prepare.rankings import conversation_text
from stages.files import UserError, read_numbered_jsonl
from stages.records import Record

ANY: Any = ("a value", lambda value: value is not None)  # kinds of values: words for the user, and the check
TEXT: Any = ("a text", lambda value: isinstance(value, str))
NAME: Any = ("a text or a whole number", lambda value: type(value) in (str, int) and value != "")
LIST: Any = ("a list of objects", lambda v: type(v) is list and v != [] and all(type(x) is dict for x in v))
NUMBER: Any = ("a finite number", lambda value: type(value) in (int, float) and math.isfinite(value))
SCORE: Any = ("a finite number or null", lambda value: value is None or NUMBER[1](value))
WINNER: Any = ('"first", "second", "tie" or null', lambda value: value in list(SHARES))
ORDER: Any = ("0 or 1", lambda value: type(value) is int and value in (0, 1))
INDEX: Any = ("a whole number from 0", lambda value: type(value) is int and value >= 0)
# By the key of a group's members: the keys of id, prompt and quality, and the quality's sign.
GROUPS = {"responses": ("id", "prompt", "score", 1), "replies": ("message_id", "context", "rank", -1)}
# By form: the verdict's key and kind, and the number of orders in which there are verdicts.
VERDICTS = {"comparisons": ("winner", WINNER, 2), "scores": ("score", SCORE, 1), "decisions": ("decision", WINNER, 1)}
QUALITIES = {"first": (1, 0), "second": (0, 1), "tie": (0.5, 0.5)}


class Case(NamedTuple):  # a response of known quality
    group: str
    name: str
    prompt: str
    text: str
    quality: float  # higher is better, within a group; in a labelled pair one of `QUALITIES`
    flaw: str = ""
    subset: str = ""


class Pair(NamedTuple):  # two responses to one prompt
    name: str
    first: Case
    second: Case
    labels: Mapping[str, Preference] = MappingProxyType({})  # by annotator; none within a ranked group

    @property
    def label(self) -> Preference:
        """The better response by the annotators' majority, or by the group's order."""
        return prefer(self.first.quality, self.second.quality)

    @property
    def duel(self) -> Duel:
        return Duel(self.name, self.first.prompt, self.first.text, self.second.text)


class Labelled(NamedTuple):
    cases: list[Case]  # those of a group one after another
    pairs: list[Pair]  # any two of a group with different quality, as "GROUP/0-2"; then labelled pairs by their ids

    def subset(self, name: str) -> "Labelled":
        pairs = [pair for pair in self.pairs if pair.first.subset == name]
        return Labelled([case for case in self.cases if case.subset == name], pairs)

    @property
    def rankings(self) -> list[list[Case]]:
        """The ranked groups, without labelled pairs, whose members differ in quality."""
        labelled = {pair.first.group for pair in self.pairs if pair.labels}
        groups = [list(members) for name, members in groupby(self.cases, lambda c: c.group) if name not in labelled]
        return [members for members in groups if len({case.quality for case in members}) > 1]


def read_labelled(path: Path) -> Labelled:
    """The responses of a file and their pairs, groups first.

    Raises `UserError` for a row of no form, a missing or invalid key, a repeated id or label, and an empty file.
    """
    groups: dict[str, list[Case]] = {}
    votes: dict[Any, dict[str, Preference]] = defaultdict(dict)
    texts: dict[Any, list[str]] = {}
    for number, row in read_numbered_jsonl(path):
        where = f"{path}, line {number}"
        if "output_1" not in row:
            members = _group(row, where)
            if groups.setdefault(members[0].group, members) is not members:
                raise UserError(f"{where}: the id {members[0].group!r} came before; give each group its own")
            continue
        key, shown, *own = _outputs(row, where)
        if texts.setdefault(key, own)[:3] != own[:3]:
            raise UserError(f"{where}: {shown} came before with other texts; give each pair its own id")
        annotator = next((str(row[key]) for key in ("annotator", "annotator_index") if row.get(key) is not None), "")
        if annotator in votes[key]:
            raise UserError(f'{where}: {shown} has a label by {annotator!r}; remove one, or name each "annotator"')
        votes[key][annotator] = _label(row, where)
    pairs = []
    for name, members in groups.items():
        both = combinations(enumerate(members), 2)
        pairs += [Pair(f"{name}/{i}-{j}", a, b) for (i, a), (j, b) in both if a.quality != b.quality]
    taken = {*groups, *(pair.name for pair in pairs)}
    for place, (key, (prompt, first, second, subset)) in enumerate(texts.items()):
        name = key if isinstance(key, str) else f"{place:05}"
        if name in taken:
            raise UserError(f"{path}: the id {name!r} is of a pair, and of a group or its pairs, too; rename one")
        sides = zip((first, second), QUALITIES[majority(votes[key].values())], strict=True)
        a, b = groups[name] = [Case(name, f"{name}/{i}", prompt, *own, subset=subset) for i, own in enumerate(sides)]
        pairs.append(Pair(name, a, b, votes[key]))
    if not groups:
        raise UserError(f"{path}: no labelled responses; name another file of pairs or groups")
    return Labelled([case for members in groups.values() for case in members], pairs)


def majority(labels: Iterable[Preference]) -> Preference:
    """The most frequent label, or a tie."""
    label, *others = multimode(labels)
    return "tie" if others else label


def _outputs(row: Record, where: str) -> tuple[Any, ...]:
    """Of a labelled pair: what identifies it, its name in messages, its prompt, both outputs, and its subset."""
    official = "instruction" in row
    prompt = _prompt(_value(row, "instruction" if official else "prompt", where), where)
    texts = (prompt, *(_value(row, key, where, TEXT) for key in ("output_1", "output_2")))
    subset = str(row.get("subset", row.get("dataset", "") if official else ""))
    if official and "id" not in row:
        return texts, f"the pair of {prompt[:40]!r}", *texts, subset
    name = str(_value(row, "id", where, NAME))
    return name, repr(name), *texts, subset


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
    form = next((form for form in GROUPS if form in row), None)
    if form is None:
        raise UserError(f"{where}: neither a labelled pair nor a group; docs/evaluation.md describes the rows")
    id_key, prompt_key, quality_key, sign = GROUPS[form]
    name, prompt = str(_value(row, id_key, where, NAME)), _prompt(_value(row, prompt_key, where), where)

    def case(i: int, member: Record) -> Case:
        text, quality = _value(member, "text", where, TEXT), sign * _value(member, quality_key, where, NUMBER)
        return Case(name, f"{name}/{i}", prompt, text, quality, member.get("flaw", ""), str(row.get("subset", "")))

    return [case(i, member) for i, member in enumerate(_value(row, form, where, LIST))]


def _prompt(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    turns = []
    for message in _value({"prompt": value}, "prompt", where, LIST):
        role = {"user": "prompter", "human": "prompter"}.get(message.get("role"), message.get("role"))
        turns.append({"role": role, "text": _value(message, "text" if "text" in message else "content", where, TEXT)})
    if {turn["role"] for turn in turns} - {"prompter", "assistant"} or turns[-1]["role"] != "prompter":
        raise UserError(f"{where}: a prompt's messages are of user or assistant, the last of the user; mend the line")
    return conversation_text(turns)


def _value(row: Record, key: str, where: str, kind: Any = ANY) -> Any:
    words, fits = kind
    value = row.get(key)
    if value is None and not (key in row and fits(None)):
        raise UserError(f"{where}: key {key!r} is missing; add it")
    if not fits(value):
        raise UserError(f"{where}: {key} is {value!r:.40}; it must be {words}")
    return value


class Opinion(NamedTuple):  # which response of each pair is better, and by how much; None where there is no verdict
    preferences: Mapping[str, Preference | None]
    values: Mapping[str, Fraction | int | None]  # by response: mean score, or share of wins over its decided pairs


def by_value(labelled: Labelled, values: Mapping[str, Fraction | int | None]) -> Opinion:
    """The higher value, such as the length, is better."""
    both = {pair.name: (values[pair.first.name], values[pair.second.name]) for pair in labelled.pairs}
    return Opinion({name: None if None in own else prefer(*own) for name, own in both.items()}, values)


class Decisions(NamedTuple):  # a judge's verdicts of one of the forms `VERDICTS`
    form: str
    verdicts: Mapping[str, Sequence[Sequence[Any]]]  # by response or pair: for each order, in the order of indices

    def first(self, n: int) -> "Decisions":
        return Decisions(self.form, {name: [own[:n] for own in orders] for name, orders in self.verdicts.items()})

    def of(self, pair: Pair) -> Decision:
        orders = enumerate(self.verdicts[pair.name])
        return decide(pair.duel, [{"shown": i, "winner": winner} for i, own in orders for winner in own], "pairwise")

    def opinion(self, labelled: Labelled) -> Opinion:
        """The higher mean score wins; or the comparisons do, with a tie if both orders disagree, MT-Bench's rule."""
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
    """A file's verdicts. Raises `UserError` for a row not of the first's form, and a wrong, repeated or missing one."""
    rows = [(f"{path}, line {number}", row) for number, row in read_numbered_jsonl(path, ("id",))]
    form = next((form for form, (key, *_) in VERDICTS.items() if not rows or key in rows[0][1]), None)
    if form is None:
        raise UserError(f"{rows[0][0]}: no score, winner or decision; docs/evaluation.md describes the rows")
    key, kind, orders = VERDICTS[form]
    items: Sequence[Case | Pair] = labelled.cases if form == "scores" else labelled.pairs
    verdicts: dict[str, list[dict[int, Any]]] = {item.name: [{} for _ in range(orders)] for item in items}
    for where, row in rows:
        if (name := str(row["id"])) not in verdicts:
            raise UserError(f"{where}: the cases have no {name!r} for a {key}; remove the line, or name their file")
        own = verdicts[name][_value(row, "order", where, ORDER) if orders == 2 else 0]
        verdict = _value(row, key, where, kind)
        index = 0 if form == "decisions" else _value({"index": row.get("index") or 0}, "index", where, INDEX)
        if index in own:
            raise UserError(f'{where}: {name!r} has this verdict already; remove one, or give each its own "index"')
        own[index] = verdict
    places = [(name, i) for name, given in verdicts.items() for i in range(orders) if not given[i]]
    twins = {pair.name for pair in labelled.pairs if pair.first.text == pair.second.text}
    if missing := [name + (f", order {i}" if orders == 2 else "") for name, i in places if name not in twins]:
        raise UserError(f"{path}: no {key} of {shortened(missing)}; add a row for each, null where there is none")
    return Decisions(form, {n: [[own[i] for i in sorted(own)] for own in given] for n, given in verdicts.items()})
