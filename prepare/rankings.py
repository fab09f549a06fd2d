"""Human rankings: OpenAssistant's files (arXiv 2304.07327) read into groups of ranked replies to one question.

Two formats of JSON lines are read. Message trees, as OpenAssistant exports them (also .jsonl.gz): {message_tree_id,
tree_state, prompt: {message_id, text, role: "prompter", lang, review_result, deleted, synthetic, replies: [{role:
"assistant", rank, replies, ...}]}}; each prompter's message with its replies is a group, and the conversation above it
the group's context. And single groups: {message_id, context: [{role, text}], replies: [{rank, text}]}. Rank 0 is the
best; replies may share a rank. Whatever is left out is counted by its reason.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from stages.files import UserError, read_numbered_jsonl
from stages.records import Record
from stages.settings import Eft

Turn = dict[str, str]
"""{"role": "prompter" | "assistant", "text": text}"""

_SPEAKERS = {"prompter": "User", "assistant": "Assistant"}


class LeftOut(StrEnum):
    """Why a tree, a message, a reply or a group is left out. Messages below one that is left out are not read."""

    TREE_STATE = "tree_state"  # tree: not ready for export, so perhaps not ranked to the end, or given up
    DELETED = "deleted"  # message: deleted by a moderator or its author
    UNREVIEWED = "unreviewed"  # message: without a review, or rejected by the reviewers
    LANGUAGE = "language"  # message: in a language that is not wanted
    SYNTHETIC = "synthetic"  # message of a tree: written by a model. The replies of single groups may be a model's
    EMPTY = "empty"  # message: only white space
    TOO_MANY_TURNS = "too_many_turns"  # group: the conversation has more turns of the prompter than wanted
    UNRANKED = "unranked"  # reply: without a rank. The conversation below it is still read
    DUPLICATE = "duplicate"  # reply: an earlier reply of the group has the same text
    TOO_FEW_REPLIES = "too_few_replies"  # group: fewer than two ranked replies are left
    EQUAL_RANKS = "equal_ranks"  # group: all replies have one rank
    REPEATED = "repeated"  # group: an earlier group, perhaps of another source, has the same id


@dataclass(frozen=True)
class Reply:
    text: str
    rank: int  # 0 is the best; ranks are compared only within a group


@dataclass(frozen=True)
class RankedGroup:
    """A question, or a conversation that ends with one, and two or more replies of different texts and ranks."""

    id: str
    tree: str  # the conversation that the group is part of; groups of one tree share messages
    context: tuple[Turn, ...]  # the turns up to the question, which is the last one
    replies: tuple[Reply, ...]

    @property
    def prompt(self) -> str:
        return conversation_text(self.context)

    def row(self) -> dict[str, Any]:
        """The group as a row that `ranked_groups` and `evaluation.agreement` read."""
        replies = [{"rank": reply.rank, "text": reply.text} for reply in self.replies]
        return {"message_id": self.id, "context": list(self.context), "replies": replies}


def conversation_text(context: Sequence[Mapping[str, str]]) -> str:
    """A conversation as the question shown to a judge: a single turn as it is, several turns under their roles."""
    if len(context) == 1:
        return context[0]["text"]
    turns = [f"{_SPEAKERS[turn['role']]}:\n" + turn["text"] for turn in context]
    return "\n\n".join(["The response continues this conversation.", *turns])


def ranked_groups(path: Path, eft: Eft) -> tuple[list[RankedGroup], Counter[LeftOut]]:
    """The groups of a file, and how often each reason left something out. Raises `UserError` for another format."""
    groups: list[RankedGroup] = []
    reasons: Counter[LeftOut] = Counter()
    for number, row in read_numbered_jsonl(path):
        read = _tree_groups if "prompt" in row else _single_group
        for group in read(row, eft, f"{path}, line {number}"):
            if isinstance(group, LeftOut):
                reasons[group] += 1
            else:
                groups.append(group)
    return groups, reasons


def _tree_groups(row: Record, eft: Eft, where: str) -> Iterator[RankedGroup | LeftOut]:
    """The groups of a message tree, from its root down."""
    root = row["prompt"]
    _check(root, "prompter", where)
    if row.get("tree_state", "ready_for_export") != "ready_for_export":
        yield LeftOut.TREE_STATE
    else:
        yield from _below(root, (), root["message_id"], eft, synthetic=True)


def _single_group(row: Record, eft: Eft, where: str) -> Iterator[RankedGroup | LeftOut]:
    """The group of a row that is a single group; its replies, to the context's last turn, may be a model's samples."""
    turns, replies = _need(row, "context", list, where), _need(row, "replies", list, where)
    if len(turns) % 2 == 0:
        raise UserError(f"{where}: 'context' has to begin and to end with a prompter's turn; mend or remove the line")
    for i, turn in enumerate(turns):
        _check(turn, ("prompter", "assistant")[i % 2], where, name=False)
    replies = [{"role": "assistant", **reply} if isinstance(reply, dict) else reply for reply in replies]
    question = {**turns[-1], "message_id": row.get("message_id"), "replies": replies}
    _check(question, "prompter", where)
    reasons = (_fault(turn, eft, synthetic=False) for turn in turns[:-1])
    if reason := next(filter(None, reasons), None):
        yield reason
    else:
        yield from _below(question, tuple(map(_turn, turns[:-1])), question["message_id"], eft, synthetic=False)


def _below(
    question: Record, above: tuple[Turn, ...], tree: str, eft: Eft, synthetic: bool
) -> Iterator[RankedGroup | LeftOut]:
    """The group of a prompter's message, then those below it, depth first; or why they are left out."""
    if reason := _fault(question, eft, synthetic):
        yield reason
        return
    context = (*above, _turn(question))
    if len(context) // 2 + 1 > eft.max_turns:
        yield LeftOut.TOO_MANY_TURNS
        return
    usable: list[Record] = []
    replies: dict[str, Reply] = {}
    for reply in question.get("replies") or []:
        if reason := _fault(reply, eft, synthetic):
            yield reason
            continue
        usable.append(reply)
        if reply.get("rank") is None:
            yield LeftOut.UNRANKED
        elif reply["text"] in replies:
            yield LeftOut.DUPLICATE
        else:
            replies[reply["text"]] = Reply(reply["text"], reply["rank"])
    if len(replies) < 2:
        yield LeftOut.TOO_FEW_REPLIES
    elif len({reply.rank for reply in replies.values()}) == 1:
        yield LeftOut.EQUAL_RANKS
    else:
        yield RankedGroup(question["message_id"], tree, context, tuple(replies.values()))
    for reply in usable:
        for further in reply.get("replies") or []:
            yield from _below(further, (*context, _turn(reply)), tree, eft, synthetic)


def _turn(message: Record) -> Turn:
    return {"role": message["role"], "text": message["text"]}


def _fault(message: Record, eft: Eft, synthetic: bool) -> LeftOut | None:
    """Why a message is left out, if it is. A missing key is no reason; null as the review's result is."""
    faults = {
        LeftOut.DELETED: message.get("deleted"),
        LeftOut.UNREVIEWED: message.get("review_result", True) is not True,
        LeftOut.LANGUAGE: "lang" in message and message["lang"] not in eft.languages,
        LeftOut.SYNTHETIC: synthetic and message.get("synthetic"),
        LeftOut.EMPTY: not message["text"].strip(),
    }
    return next((reason for reason, present in faults.items() if present), None)


def _check(message: Any, role: str, where: str, name: bool = True) -> None:
    """Raise `UserError` where a message, or one below it, lacks a key or has a wrong type."""
    if not isinstance(message, dict):
        raise UserError(f"{where}: expected a message, got {message!r:.40}; mend or remove the line")
    if message.get("role") != role:
        wrong = f"expected a message by the {role}, got {message.get('role')!r}"
        raise UserError(f"{where}: {wrong}; roles take turns, mend or remove the line")
    _need(message, "text", str, where)
    if role == "assistant":
        _need(message, "rank", int, where, optional=True)
    elif name:
        _need(message, "message_id", str, where)
    for reply in _need(message, "replies", list, where, optional=True) or []:
        _check(reply, "assistant" if role == "prompter" else "prompter", where)


def _need(row: Record, key: str, kind: type, where: str, optional: bool = False) -> Any:
    """The value of a key, which must be of type `kind`; None where it is optional and missing or null."""
    value = row.get(key)
    if type(value) is not kind and not (value is None and optional):
        got = "is missing" if value is None else f"is {value!r:.40}, not of type {kind.__name__}"
        raise UserError(f"{where}: {key!r} {got}; expected message trees or groups of ranked replies")
    return value
