"""Human rankings: OpenAssistant's files (arXiv 2304.07327) read into groups of ranked replies to one question.

A row of JSON lines is one of OpenAssistant's message trees, {message_tree_id, tree_state, prompt: {message_id, text,
role, replies: [{role, rank, replies, ...}], ...}}, in which each prompter's message with its replies is a group; or a
group alone, {message_id, context: [{role, text}], replies: [{rank, text}]}. Rank 0 is the best; replies may share one.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import cycle, islice
from types import NoneType
from typing import Any

from stages.command import UserError
from stages.records import Record
from stages.rows import Kind, Row, conversation_text
from stages.settings import Eft


class LeftOut(StrEnum):  # why something is left out; what is below a message left out is not read
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
class RankedGroup:  # a conversation that ends with a question; two or more replies, of different texts and ranks
    id: str
    tree: str  # the conversation that the group is part of; groups of one tree share messages
    context: list[Record]  # turns {role, text} up to the question, which is the last one
    replies: list[Record]  # {rank, text}; rank 0 is the best

    @property
    def prompt(self) -> str:
        return conversation_text(self.context)

    def row(self) -> Record:
        """The group as a row that `ranked_groups` and `evaluation.agreement` read."""
        return {"message_id": self.id, "context": self.context, "replies": self.replies}


def ranked_groups(rows: Iterable[Row], eft: Eft) -> tuple[list[RankedGroup], Counter[LeftOut]]:
    """The groups of rows, and how often each reason left something out. Raises `UserError` for another format."""
    reader = _Reader(eft)
    for reader.where, content in rows:
        reader.in_tree = "prompt" in content
        reader.read(content)
    return reader.groups, reader.reasons


class _Reader:
    def __init__(self, eft: Eft):
        self.eft, self.where, self.in_tree = eft, "", False
        self.groups: list[RankedGroup] = []
        self.reasons: Counter[LeftOut] = Counter()

    def read(self, row: Record) -> None:
        if self.in_tree:
            if row.get("tree_state", "ready_for_export") != "ready_for_export":
                self.reasons[LeftOut.TREE_STATE] += 1
            elif self.is_usable(row["prompt"], "prompter"):
                self.visit(row["prompt"], [], None)
            return
        turns, replies = self.need(row, "context", list), self.need(row, "replies", list)
        replies = [{"role": "assistant", **reply} if isinstance(reply, dict) else reply for reply in replies]
        if len(turns) % 2 == 0:
            rule = "'context' has to begin and to end with a prompter's turn"
            raise UserError(f"{self.where}: {rule}; mend or remove the line")
        if all(map(self.is_usable, turns, islice(cycle(("prompter", "assistant")), len(turns)))):
            above = [{"role": turn["role"], "text": turn["text"]} for turn in turns[:-1]]
            self.visit(turns[-1] | {"message_id": row.get("message_id"), "replies": replies}, above, None)

    def visit(self, question: Record, above: list[Record], tree: str | None) -> None:
        """Read the group of a usable prompter's message, then those below it, depth first."""
        name, context = self.need(question, "message_id", str), [*above, {"role": "prompter", "text": question["text"]}]
        if len(context) // 2 + 1 > self.eft.max_turns:
            self.reasons[LeftOut.TOO_MANY_TURNS] += 1
            return
        answers = self.usable_replies(question, "assistant")
        ranks: dict[str, int] = {}
        for answer in answers:
            if (rank := self.need(answer, "rank", int, NoneType)) is None:
                self.reasons[LeftOut.UNRANKED] += 1
            elif answer["text"] in ranks:
                self.reasons[LeftOut.DUPLICATE] += 1
            else:
                ranks[answer["text"]] = rank
        if len(ranks) < 2:
            self.reasons[LeftOut.TOO_FEW_REPLIES] += 1
        elif len(set(ranks.values())) == 1:
            self.reasons[LeftOut.EQUAL_RANKS] += 1
        else:
            replies = [{"rank": rank, "text": text} for text, rank in ranks.items()]
            self.groups.append(RankedGroup(name, tree or name, context, replies))
        for answer in answers:
            for further in self.usable_replies(answer, "prompter"):
                self.visit(further, [*context, {"role": "assistant", "text": answer["text"]}], tree or name)

    def usable_replies(self, message: Record, role: str) -> list[Record]:
        replies = self.need(message, "replies", list, NoneType) or []
        return [reply for reply in replies if self.is_usable(reply, role)]

    def is_usable(self, message: Any, role: str) -> bool:
        """Whether a message by the `role` is kept, else the reason is counted. Other missing keys are no reason."""
        if not isinstance(message, dict) or message.get("role") != role:
            wrong = f"expected a message by the {role}, got {message!r:.60}"
            raise UserError(f"{self.where}: {wrong}; roles take turns, mend or remove the line")
        faults = {
            LeftOut.DELETED: message.get("deleted"),
            LeftOut.UNREVIEWED: message.get("review_result", True) is not True,
            LeftOut.LANGUAGE: "lang" in message and message["lang"] not in (self.eft.languages or [message["lang"]]),
            LeftOut.SYNTHETIC: self.in_tree and message.get("synthetic"),
            LeftOut.EMPTY: not self.need(message, "text", str).strip(),
        }
        reasons = [reason for reason, present in faults.items() if present]
        self.reasons.update(reasons[:1])
        return not reasons

    def need(self, row: Record, key: str, *types: type) -> Any:
        """The value of a key, which must be of one of the types; None may be missing."""
        kind = Kind(" or ".join(own.__name__ for own in types), lambda value: type(value) in types)
        return Row(self.where, row if key in row or NoneType not in types else {key: None}).value(key, kind=kind)
