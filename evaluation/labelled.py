"""Responses whose quality people, or another judge, have labelled: labelled pairs, and ranked groups.

A file of them is JSON lines. Each row has one of four forms:

- a labelled pair {id, prompt, output_1, output_2, label}: label 1 or 2 is the better output, and "tie" (or 0, or 1.5)
  means that neither is better. Rows with the same id are one pair by several annotators, whom "annotator" names.
- AlpacaEval's pair {instruction, output_1, output_2, preference}: from 1 to 2, and the nearer output is better. It
  needs no id: rows with the same texts are one pair, and "annotator_index" names the annotator.
- a group {id, prompt, responses: [{text, score}]}: a higher score is better.
- OpenAssistant's ranked replies {message_id, context: [{role, text}], replies: [{rank, text}]}: rank 0 is the best.

A prompt is a text, or a conversation [{role, content}] that ends with the user's turn. "subset" (in AlpacaEval's rows
also "dataset") names a part of the file, for which measurements have a row of their own.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

from evaluation.pairwise import Duel, Preference, prefer
from prepare.rankings import conversation_text
from stages.files import UserError, read_numbered_jsonl

Record = Mapping[str, Any]
_ROLES = {"prompter": "prompter", "user": "prompter", "human": "prompter", "assistant": "assistant"}
_QUALITIES: dict[Preference, tuple[float, float]] = {"first": (1, 0), "second": (0, 1), "tie": (0.5, 0.5)}
_KINDS: dict[str, Callable[[Any], bool]] = {
    "a text": lambda value: isinstance(value, str),
    "a text or a whole number": lambda value: type(value) in (str, int) and value != "",
    "a finite number": lambda value: type(value) in (int, float) and math.isfinite(value),
    "a list of objects": lambda value: type(value) is list and value != [] and all(type(x) is dict for x in value),
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

    @property
    def response(self) -> dict[str, str]:
        """The response as a judge's stage takes it: {id, prompt_id, prompt, text}."""
        return {"id": self.name, "prompt_id": self.group, "prompt": self.prompt, "text": self.text}


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


def read_cases(path: Path) -> list[Case]:
    """The responses of a file of any of the four forms."""
    return read_labelled(path).cases


def read_labelled(path: Path) -> Labelled:
    """The responses of a file and their pairs, groups first.

    Raises `UserError`, naming file, line and id, for a row of no form, a missing or invalid key, a repeated id of a
    group, an id with two pairs, and a repeated label; and for an empty file.
    """
    groups: dict[str, list[Case]] = {}
    votes: dict[Any, _Votes] = {}
    for number, row in read_numbered_jsonl(path):
        where = f"{path}, line {number}"
        if "output_1" in row:
            _add_vote(row, votes, where)
            continue
        members = _group(row, where)
        if groups.setdefault(members[0].group, members) is not members:
            raise UserError(f"{where}: the id {members[0].group!r} came before; give each group its own")
    pairs = [
        Pair(f"{name}/{i}-{j}", members[i], members[j])
        for name, members in groups.items()
        for i, j in combinations(range(len(members)), 2)
        if members[i].quality != members[j].quality
    ]
    taken = {*groups, *(pair.name for pair in pairs)}
    for place, (key, (texts, subset, labels)) in enumerate(votes.items()):
        name, qualities = key if isinstance(key, str) else f"{place:05}", _QUALITIES[majority(labels.values())]
        if name in taken:
            raise UserError(f"{path}: the id {name!r} is of a pair, and of a group or its pairs, too; rename one")
        a, b = (Case(name, f"{name}/{i}", texts[0], texts[1 + i], qualities[i], "", subset) for i in (0, 1))
        groups[name] = [a, b]
        pairs.append(Pair(name, a, b, labels))
    if not groups:
        raise UserError(f"{path}: no labelled responses; name another file of pairs or groups")
    return Labelled([case for members in groups.values() for case in members], pairs)


_Votes = tuple[tuple[str, ...], str, dict[str, Preference]]
"""Of one pair: prompt and outputs, subset, and labels by annotator."""


def _add_vote(row: Record, votes: dict[Any, _Votes], where: str) -> None:
    """Add one annotator's label of a pair. The pair's key is its id, or else its texts."""
    official = "instruction" in row
    prompt = _prompt(_value(row, "instruction" if official else "prompt", where), where)
    texts = (prompt, *(_value(row, key, where, "a text") for key in ("output_1", "output_2")))
    key: Any = texts if official and "id" not in row else str(_value(row, "id", where, "a text or a whole number"))
    label, annotator = _label(row, where), row.get("annotator", row.get("annotator_index"))
    annotator = "" if annotator is None else str(annotator)
    subset = row.get("subset", row.get("dataset", "") if official else "")
    before, _, labels = votes.setdefault(key, (texts, str(subset), {}))
    shown = repr(key) if isinstance(key, str) else f"the pair of {prompt[:40]!r}"
    if before != texts:
        raise UserError(f"{where}: {shown} came before with another prompt or outputs; give each pair its own id")
    if annotator in labels:
        who = f"annotator {annotator!r} has" if annotator else "one without a name has"
        raise UserError(f'{where}: {shown}: {who} labelled it before; remove a line, or name each "annotator"')
    labels[annotator] = label


def _group(row: Record, where: str) -> list[Case]:
    """The members of a row of either form of groups."""
    forms = (("responses", "id", "prompt", "score", 1), ("replies", "message_id", "context", "rank", -1))
    for key, id_key, prompt_key, quality_key, sign in forms:
        if key in row:
            name = str(_value(row, id_key, where, "a text or a whole number"))
            prompt, subset = _prompt(_value(row, prompt_key, where), where), str(row.get("subset", ""))
            cases = []
            for i, response in enumerate(_value(row, key, where, "a list of objects")):
                quality = sign * _value(response, quality_key, where, "a finite number")
                text = _value(response, "text", where, "a text")
                cases.append(Case(name, f"{name}/{i}", prompt, text, quality, response.get("flaw", ""), subset))
            return cases
    raise UserError(f"{where}: neither a labelled pair nor a group; evaluation/labelled.py describes the rows")


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


def _prompt(value: Any, where: str) -> str:
    """A prompt's text; of a conversation, the text that a judge is shown."""
    if isinstance(value, str):
        return value
    turns = []
    for message in _value({"prompt": value}, "prompt", where, "a list of objects"):
        if message.get("role") not in _ROLES:
            raise UserError(f"{where}: a message of the prompt must be {{role, content}} of user or assistant")
        text = _value(message, "text" if "text" in message else "content", where, "a text")
        turns.append({"role": _ROLES[message["role"]], "text": text})
    if turns[-1]["role"] != "prompter":
        raise UserError(f"{where}: the prompt must end with the user's turn; mend or remove the line")
    return conversation_text(turns)


def _value(row: Record, key: str, where: str, kind: str = "") -> Any:
    """A value of a row, of one of `_KINDS` if named."""
    value = row.get(key)
    if value is None:
        raise UserError(f"{where}: key {key!r} is missing; add it")
    if kind and not _KINDS[kind](value):
        raise UserError(f"{where}: {key} is {value!r:.40}; it must be {kind}")
    return value
