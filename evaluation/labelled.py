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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from evaluation.pairwise import Duel, Preference
from prepare.rankings import conversation_text
from stages.files import UserError, read_numbered_jsonl

_ROLES = {"prompter": "prompter", "user": "prompter", "human": "prompter", "assistant": "assistant"}
_LABELS: dict[str, Preference] = {"first": "first", "second": "second", "tie": "tie"}
_NUMBERS: dict[float, Preference] = {1: "first", 2: "second", 0: "tie", 1.5: "tie"}
_QUALITIES: dict[Preference, tuple[float, float]] = {"first": (1, 0), "second": (0, 1), "tie": (0.5, 0.5)}


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
    """The contents of a file."""

    cases: list[Case]
    pairs: list[Pair]
    """Labelled pairs by their ids; and any two of a group with different quality, as "GROUP/0-2"."""

    @property
    def subsets(self) -> dict[str, "Labelled"]:
        """The parts of the file that have a name, by name."""
        return {
            name: Labelled(
                [case for case in self.cases if case.subset == name],
                [pair for pair in self.pairs if pair.first.subset == name],
            )
            for name in sorted({case.subset for case in self.cases} - {""})
        }

    @property
    def rankings(self) -> list[list[Case]]:
        """The ranked groups, without labelled pairs, whose members differ in quality."""
        labelled = {pair.first.group for pair in self.pairs if pair.labels}
        groups: dict[str, list[Case]] = {}
        for case in self.cases:
            if case.group not in labelled:
                groups.setdefault(case.group, []).append(case)
        return [members for members in groups.values() if len({case.quality for case in members}) > 1]


def prefer(first: Any, second: Any) -> Preference:
    """The position of the higher number."""
    return "tie" if first == second else "first" if first > second else "second"


def majority(labels: Iterable[Preference]) -> Preference:
    """The most frequent label; a tie if there are several."""
    counts = Counter(labels)
    most = [label for label, count in counts.items() if count == max(counts.values())]
    return most[0] if len(most) == 1 else "tie"


@dataclass
class _Votes:
    """The labels of a pair, while its rows are read."""

    texts: tuple[str, str, str]
    """Prompt and outputs."""
    subset: str
    labels: dict[str, Preference] = field(default_factory=dict)


def read_cases(path: Path) -> list[Case]:
    """The responses of a file of any of the four forms."""
    return read_labelled(path).cases


def read_labelled(path: Path) -> Labelled:
    """The responses of a file and their pairs, groups first.

    Raises `UserError`, naming file, line and id, for a row of no form, a missing or invalid key, a repeated id of a
    group, an id with two pairs, a pair with two ids, and a repeated label; and for an empty file.
    """
    groups: dict[str, list[Case]] = {}
    votes: dict[Any, _Votes] = {}
    names: dict[tuple[str, str, str], str] = {}
    for number, row in read_numbered_jsonl(path):
        where = f"{path}, line {number}"
        if "output_1" in row:
            _add_vote(row, votes, names, where)
            continue
        members = _group(row, where)
        name = members[0].group
        if name in groups:
            raise UserError(f"{where}: the id {name!r} came before; give each group its own")
        groups[name] = members
    pairs = [
        Pair(f"{name}/{i}-{j}", members[i], members[j])
        for name, members in groups.items()
        for i, j in combinations(range(len(members)), 2)
        if members[i].quality != members[j].quality
    ]
    taken = {*groups, *(pair.name for pair in pairs)}
    for place, (key, own) in enumerate(votes.items()):
        pair = _pair(key if isinstance(key, str) else f"{place:05}", own)
        if pair.name in taken:
            raise UserError(f"{path}: the id {pair.name!r} is of a pair, and of a group or its pairs, too; rename one")
        taken.add(pair.name)
        groups[pair.name] = [pair.first, pair.second]
        pairs.append(pair)
    if not groups:
        raise UserError(f"{path}: no labelled responses; name another file of pairs or groups")
    return Labelled([case for members in groups.values() for case in members], pairs)


def _add_vote(row: dict[str, Any], votes: dict[Any, _Votes], names: dict[Any, str], where: str) -> None:
    """Add one annotator's label of a pair. The pair's key is its id, or else its texts.

    `names` maps texts to their id, for rows that name the annotator.
    """
    official = "instruction" in row
    prompt = _prompt(_need(row, "instruction" if official else "prompt", where), where)
    texts = (prompt, _text(row, "output_1", where), _text(row, "output_2", where))
    key: Any = texts if official and "id" not in row else _id(row, "id", where)
    label = _label(row, where)
    given = row.get("annotator", row.get("annotator_index"))
    annotator = "" if given is None else str(given)
    subset = row.get("subset", row.get("dataset", "") if official else "")
    pair = votes.setdefault(key, _Votes(texts, str(subset)))
    shown = repr(key) if isinstance(key, str) else f"the pair of {prompt[:40]!r}"
    if pair.texts != texts:
        raise UserError(f"{where}: {shown} came before with another prompt or outputs; give each pair its own id")
    if annotator in pair.labels:
        who = f"annotator {annotator!r} has" if annotator else "one without a name has"
        raise UserError(f'{where}: {shown}: {who} labelled it before; remove a line, or name each "annotator"')
    if isinstance(key, str) and annotator and names.setdefault(texts, key) != key:
        raise UserError(f"{where}: {shown} and {names[texts]!r} are the same pair; annotators need one id for it")
    pair.labels[annotator] = label


def _pair(name: str, votes: _Votes) -> Pair:
    prompt, *texts = votes.texts
    qualities = _QUALITIES[majority(votes.labels.values())]
    first, second = (
        Case(name, f"{name}/{place}", prompt, text, quality, subset=votes.subset)
        for place, (text, quality) in enumerate(zip(texts, qualities, strict=True))
    )
    return Pair(name, first, second, votes.labels)


def _group(row: dict[str, Any], where: str) -> list[Case]:
    """The members of a row of either form of groups."""
    if "responses" in row:
        key, name, prompt = "responses", _id(row, "id", where), _need(row, "prompt", where)
    elif "replies" in row and "context" in row:
        key, name, prompt = "replies", _id(row, "message_id", where), row["context"]
    else:
        raise UserError(f"{where}: neither a labelled pair nor a group of responses nor ranked replies; see the README")
    given = row[key]
    if not isinstance(given, list) or not given or not all(isinstance(response, dict) for response in given):
        raise UserError(f"{where}: {key!r} of {name!r} must be a list of objects; mend or remove the line")
    prompt, subset = _prompt(prompt, where), str(row.get("subset", ""))
    members = []
    for place, response in enumerate(given):
        quality = _number(response, "score", where) if key == "responses" else -_number(response, "rank", where)
        text, flaw = _text(response, "text", where), response.get("flaw", "")
        members.append(Case(name, f"{name}/{place}", prompt, text, quality, flaw, subset))
    return members


def _label(row: dict[str, Any], where: str) -> Preference:
    key = "preference" if "preference" in row and "label" not in row else "label"
    value = _need(row, key, where)
    text = str(value).strip().lower()
    if text in _LABELS:
        return _LABELS[text]
    number = _finite(text)
    if isinstance(value, bool) or number is None or number not in _NUMBERS:
        if key == "preference" and number is not None and 1 < number < 2:  # 1 + probability that output 2 is better
            return "first" if number < 1.5 else "second"
        raise UserError(f'{where}: {key} is {value!r}; it must be 1, 2 or "tie"')
    return _NUMBERS[number]


def _prompt(value: Any, where: str) -> str:
    """A prompt's text; of a conversation, the text that a judge is shown."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Sequence) or not value:
        raise UserError(f"{where}: the prompt must be a text or a list of messages; mend or remove the line")
    turns = []
    for message in value:
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise UserError(f"{where}: a message of the prompt must be {{role, content}} of user or assistant")
        key = "text" if "text" in message else "content"
        turns.append({"role": _ROLES[message["role"]], "text": _text(message, key, where)})
    if turns[-1]["role"] != "prompter":
        raise UserError(f"{where}: the prompt must end with the user's turn; mend or remove the line")
    return conversation_text(turns)


def _id(row: Mapping[str, Any], key: str, where: str) -> str:
    value = _need(row, key, where)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UserError(f"{where}: {key} is {value!r}; it must be a text")
    return str(value)


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = _need(row, key, where)
    if not isinstance(value, str):
        raise UserError(f"{where}: {key} is {value!r:.40}; it must be a text")
    return value


def _number(row: Mapping[str, Any], key: str, where: str) -> float:
    value = _need(row, key, where)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{where}: {key} is {value!r:.40}; it must be a finite number")
    return value


def _need(row: Mapping[str, Any], key: str, where: str) -> Any:
    if row.get(key) is None:
        raise UserError(f"{where}: key {key!r} is missing; add it")
    return row[key]


def _finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
