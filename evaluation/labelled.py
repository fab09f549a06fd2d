"""Labelled pairs and ranked groups of responses, and a judge's verdicts on them: docs/evaluation.md has the formats.

A response is named by its group or pair: "g1/2" is the third response of group g1, "p/0" the first output of pair p.
The first and the third response of group g1 are the pair "g1/0-2". Responses with equal texts tie without a comparison.
"""

import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import combinations, groupby
from pathlib import Path
from statistics import multimode
from types import MappingProxyType
from typing import Any, NamedTuple

from evaluation.pairwise import SHARES, Decision, Duel, Preference, decide, mean_share, prefer
from evaluation.statistics import shortened
from judging.scores import mean_score
from prepare.rankings import LeftOut, ranked_groups
from stages.command import UserError
from stages.records import Record
from stages.rows import NAME, NUMBER, PROMPT, RATING, TEXT, Kind, Row, conversation_text, objects, one_of, read_rows
from stages.settings import Eft

WINNER = one_of(*SHARES)
INDEX = Kind("a whole number from 0", lambda value: type(value) is int and value >= 0)
NAMED = Kind("a text or a number", lambda value: isinstance(value, str) or NUMBER.fits(value))
ANNOTATOR = ("annotator", "annotator_index")
# Keys of labelled pairs: first and second output, prompt, id, subset. The last has labels of its own.
FORMS = (
    ("output_1", "output_2", "instruction", "id", "dataset"),  # AlpacaEval
    ("output_1", "output_2", "prompt", "id", "subset"),  # our own
    ("output_1", "output_2", "input", "id", "subset"),  # LLMBar
    ("response_A", "response_B", "question", "pair_id", "source"),  # JudgeBench
    ("response1", "response2", "instruction", "idx", "subset"),  # PandaLM
    ("response 1", "response 2", "prompt", "id", "scenario"),  # Auto-J
)
LABELS: dict[str, float] = {"first": 1, "a>b": 1, "true": 1, "second": 2, "b>a": 2, "false": 2, "tie": 1.5, "a=b": 1.5}
AUTO_J = {"0": 1, "1": 2, "2": 1.5}
# By the key of a group's members: the keys of id, prompt and quality, and the quality's sign.
GROUPS = {"responses": ("id", "prompt", "score", 1), "replies": ("message_id", "context", "rank", -1)}
GROUPS |= dict.fromkeys(("target_scores", "targets"), ("", "input", "score", 1))  # HHH's
TREES = Eft(languages=[], max_turns=sys.maxsize)  # of OpenAssistant: all languages, all turns
# By form: the verdict's key and kind, and the number of orders in which there are verdicts.
VERDICTS = {"comparisons": ("winner", WINNER, 2), "scores": ("score", RATING, 1)}
VERDICTS |= {"decisions": ("decision", WINNER, 1)}
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
    left_out: Mapping[LeftOut, int] = MappingProxyType({})  # of message trees, by reason

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
    left_out: Counter[LeftOut] = Counter()
    for number, row in enumerate(read_rows(path)):
        where = row.where
        if form := next((form for form in FORMS if {*form[:3]} <= row.content.keys()), None):
            key, shown, *own = _outputs(row, *form, number)
            if texts.setdefault(key, own)[:3] != own[:3]:
                raise UserError(f"{where}: {shown} came before with other texts; give each pair its own id")
            for annotator, label in _labels(row):
                if annotator in votes[key]:
                    advice = 'remove one, or name each "annotator"'
                    raise UserError(f"{where}: {shown} has a label by {annotator!r}; {advice}")
                votes[key][annotator] = label
            continue
        ranked = [row]
        if type(row.content.get("prompt")) is dict:  # a message tree
            found, reasons = ranked_groups([row], TREES)
            ranked, left_out = [Row(where, group.row()) for group in found], left_out + reasons
        for group in ranked:
            members = _group(group, f"{len(groups):05}")
            if groups.setdefault(members[0].group, members) is not members:
                raise UserError(f"{where}: the id {members[0].group!r} came before; give each group its own")
    pairs = []
    for name, members in groups.items():
        both = combinations(enumerate(members), 2)
        pairs += [Pair(f"{name}/{i}-{j}", a, b) for (i, a), (j, b) in both if a.quality != b.quality]
    taken = {pair.name for pair in pairs}
    for place, (key, (prompt, first, second, subset)) in enumerate(texts.items()):
        name = key if isinstance(key, str) else f"{place:05}"
        if name in taken or name in groups:
            others = "a group, its pairs, or a pair without an id, named by its place"
            raise UserError(f"{path}: the id {name!r} is of a pair, and of {others}, too; rename one")
        sides = zip((first, second), QUALITIES[majority(votes[key].values())], strict=True)
        a, b = groups[name] = [Case(name, f"{name}/{i}", prompt, *own, subset=subset) for i, own in enumerate(sides)]
        pairs.append(Pair(name, a, b, votes[key]))
    if not groups:
        raise UserError(f"{path}: no labelled responses; name another file of pairs or groups")
    return Labelled([case for members in groups.values() for case in members], pairs, left_out)


def majority(labels: Iterable[Preference]) -> Preference:
    """The most frequent label, or a tie."""
    label, *others = multimode(labels)
    return "tie" if others else label


def _outputs(row: Row, first: str, second: str, asked: str, id: str, part: str, number: int) -> tuple[Any, ...]:
    """Of a labelled pair: what identifies it, its name in messages, its prompt, both outputs, and its subset."""
    content, prompt = row.content, conversation_text(row.value(asked, kind=PROMPT))
    if asked == "instruction" and (given := content.get("input")) and given == given:  # PandaLM's may be NaN
        prompt += "\n\n" + row.value("input", kind=TEXT)
    texts = (prompt, row.value(first, kind=TEXT), row.value(second, kind=TEXT))
    subset = _name(row, "subset", part)
    if id in content:
        name = str(row.value(id, kind=NAME))
        return name, repr(name), *texts, subset
    return texts if _name(row, *ANNOTATOR) else number, f"the pair of {prompt[:40]!r}", *texts, subset


def _name(row: Row, *keys: str) -> str:
    """What the first of these keys that a row has, not null or "", names."""
    return next((str(row.value(key, kind=NAMED)) for key in keys if row.content.get(key) not in (None, "")), "")


def _labels(row: Row) -> Iterator[tuple[str, Preference]]:
    """The annotators, who may have no name, and their labels."""
    label = "preference" if "preference" in row.content and "label" not in row.content else "label"
    several = [key for key in row.content if re.fullmatch(r"annotator\d+", key)]  # PandaLM's
    for annotator, key in [(key, key) for key in several] or [(_name(row, *ANNOTATOR), label)]:
        value = row.value(key)
        text = str(value).strip().lower() if key == "label" or not isinstance(value, bool) else ""
        try:
            number = AUTO_J[text] if "response 1" in row.content else LABELS.get(text) or float(text)
        except (KeyError, ValueError):
            number = math.nan
        if number not in (0, 1, 1.5, 2) and not (key == "preference" and 1 < number < 2):
            raise UserError(f'{row.where}: {key} is {value!r}; it must be 1, 2 or "tie"')
        yield annotator, prefer(1.5, number or 1.5)  # 0 is a tie, too


def _group(row: Row, place: str) -> list[Case]:
    form = next((form for form in GROUPS if form in row.content), None)
    if form is None:
        raise UserError(f"{row.where}: neither a labelled pair nor a group; docs/evaluation.md describes the rows")
    id_key, prompt_key, quality_key, sign = GROUPS[form]
    prompt, subset = conversation_text(row.value(prompt_key, kind=PROMPT)), _name(row, "subset")
    name = str(row.value(id_key, kind=NAME)) if id_key else place
    if not id_key:
        try:
            given = row.content[form]
            scores = zip(given["choices"], given["labels"], strict=True) if form == "targets" else given.items()
            row = Row(row.where, {form: [{"text": text, "score": score} for text, score in scores]})
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UserError(f"{row.where}: {form} must have a score of each response; mend the row") from None
    members = row.value(form, kind=objects(**{"text": TEXT, quality_key: NUMBER}))

    def case(i: int, member: Record) -> Case:
        quality, flaw = sign * member[quality_key], str(member.get("flaw") or "")
        return Case(name, f"{name}/{i}", prompt, member["text"], quality, flaw, subset)

    return [case(i, member) for i, member in enumerate(members)]


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
    rows = list(read_rows(path))
    form = next((form for form, (key, *_) in VERDICTS.items() if not rows or key in rows[0].content), None)
    if form is None:
        raise UserError(f"{rows[0].where}: no score, winner or decision; docs/evaluation.md describes the rows")
    key, kind, orders = VERDICTS[form]
    items: Sequence[Case | Pair] = labelled.cases if form == "scores" else labelled.pairs
    verdicts: dict[str, list[dict[int, Any]]] = {item.name: [{} for _ in range(orders)] for item in items}
    for row in rows:
        if (name := str(row.value("id", kind=NAME))) not in verdicts:
            raise UserError(f"{row.where}: the cases have no {name!r} for a {key}; remove the line, or name their file")
        own = verdicts[name][row.value("order", kind=one_of(0, 1)) if orders == 2 else 0]
        verdict = row.value(key, kind=kind)
        index = row.value("index", kind=INDEX) if form != "decisions" and row.content.get("index") is not None else 0
        if index in own:
            raise UserError(f'{row.where}: {name!r} has this verdict already; remove one, or give each its own "index"')
        own[index] = verdict
    places = [(name, i) for name, given in verdicts.items() for i in range(orders) if not given[i]]
    twins = {pair.name for pair in labelled.pairs if pair.first.text == pair.second.text}
    if missing := [name + (f", order {i}" if orders == 2 else "") for name, i in places if name not in twins]:
        raise UserError(f"{path}: no {key} of {shortened(missing)}; add a row for each, null where there is none")
    return Decisions(form, {n: [[own[i] for i in sorted(own)] for own in given] for n, given in verdicts.items()})
