"""Rows of the files that users give: the kinds of values in them, checked once, where a file is read.

A prompt is a text, or a conversation [{role, content}]: a system line, if any, then user and assistant in turn, a user
last. OpenAssistant's [{role: "prompter", text}] is one, too.
"""

import json
import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from stages.command import UserError
from stages.files import read_objects
from stages.records import Message, Prompt, Record


class Kind(NamedTuple):  # of values
    words: str  # for the user
    fits: Callable[[Any], bool]


def one_of(*values: Any) -> Kind:
    typed = [(type(value), value) for value in values]  # 1.0 and True are not 1
    return Kind(" or ".join(map(json.dumps, values)), lambda value: (type(value), value) in typed)


def objects(count: int = 0, /, **kinds: Kind) -> Kind:
    """A list, not empty or of `count`, of objects whose values are of these kinds, by key."""

    def fits(value: Any) -> bool:
        listed = type(value) is list and len(value) == (count or max(len(value), 1))
        return listed and all(type(v) is dict and all(kinds[key].fits(v.get(key)) for key in kinds) for v in value)

    parts = ", ".join(f"{key}: {kind.words}" for key, kind in kinds.items())
    return Kind(" ".join(f"a list of {count or ''} objects {{{parts}}}".replace("{}", "").split()), fits)


def token_ids(vocab_size: int) -> Kind:
    """A list of token ids of a vocabulary. Another model's may be larger."""
    words = f"a list of token ids below {vocab_size}, the model's vocabulary, and not empty"
    return Kind(words, lambda v: type(v) is list and v != [] and all(type(i) is int and 0 <= i < vocab_size for i in v))


ANY = Kind("a value", lambda value: True)
TEXT = Kind("a text", lambda value: isinstance(value, str))
FULL_TEXT = Kind("a text that is not blank", lambda value: isinstance(value, str) and bool(value.strip()))
NAME = Kind("a text or a whole number", lambda value: type(value) in (str, int) and value != "")
# Of sums and squares of these none is infinite, and a whole one is exact as a float.
NUMBER = Kind("a number from -1e15 to 1e15", lambda value: type(value) in (int, float) and abs(value) <= 1e15)
RATING = Kind(f"{NUMBER.words} or null", lambda value: value is None or NUMBER.fits(value))
SCORE = Kind("a number from 0 to 5", lambda value: NUMBER.fits(value) and 0 <= value <= 5)
LIST = objects()
PROMPT = Kind("a text, or [{role, content}] of user and assistant in turn, a user last", lambda v: _is_prompt(v))
EVIDENCE = Kind("{asked, given, missing}, texts", lambda v: objects(asked=TEXT, given=TEXT, missing=TEXT).fits([v]))
RESPONSES = objects(text=TEXT, score=SCORE, evidence=EVIDENCE)
JUDGMENTS = objects(2, score=SCORE, justification=TEXT)

# Labelled rows for SFT, by "kind", and for measuring meta-judges: the kinds of their values.
COMPARED = {"prompt": PROMPT, "response": TEXT, "judgments": JUDGMENTS, "winner": one_of("first", "second")}
LABELLED = {
    "judge": {"prompt": PROMPT, "response": TEXT, "score": SCORE, "justification": TEXT},
    "metajudge": COMPARED | {"score": SCORE},
    "respond": {"prompt": PROMPT, "response": FULL_TEXT, "finished": one_of(True, False)},
}


class Row(NamedTuple):  # an object of a file, and its place: "PATH, entry I" or "PATH, line N"
    where: str
    content: Record

    def value(self, *keys: str | int, kind: Kind = ANY) -> Any:
        """The value at nested keys. Raises `UserError` naming place and key where it is missing or of another kind."""
        inner, name = self.content, ".".join(map(str, keys))
        try:
            for key in keys:
                inner = inner[key]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            raise UserError(f"{self.where}: key {name!r} is missing; it must be {kind.words}") from None
        if not kind.fits(inner):
            raise UserError(f"{self.where}: {name} is {inner!r:.40}; it must be {kind.words}")
        return inner

    def checked(self, **kinds: Kind) -> Record:
        """The content, which has these keys, with values of these kinds. Raises `UserError`."""
        for key, kind in kinds.items():
            self.value(key, kind=kind)
        return self.content


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a JSON list (.json) or of JSON lines."""
    return map(Row._make, read_objects(path))


def rows_by_id(*paths: Path, **kinds: Kind) -> dict[str, Row]:
    """The rows of files by their "id". Raises `UserError` for a missing or wrong value, a repeated id, and no rows."""
    rows: dict[str, Row] = {}
    for row in chain.from_iterable(map(read_rows, paths)):
        name = row.checked(id=FULL_TEXT, **kinds)["id"]
        if rows.setdefault(name, row) is not row:
            raise UserError(f"{row.where}: id {name!r} came before; give each row its own")
    if not rows:
        raise UserError(f"{paths[0]}: no rows; name a file of rows with id, {', '.join(kinds)}")
    return rows


def read_prompts(*paths: Path, kind: Kind = PROMPT) -> list[Record]:
    """The rows {id, prompt, ...} of files. Raises the errors of `rows_by_id`."""
    return [row.content for row in rows_by_id(*paths, prompt=kind).values()]


def messages_of(prompt: Any) -> list[Message]:
    """The messages of a prompt, which ask for the assistant's answer."""
    turns: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    roles = {"prompter": "user", "human": "user"}
    return [{"role": roles.get(m["role"], m["role"]), "content": m.get("text", m.get("content"))} for m in turns]


def conversation_text(prompt: Prompt) -> str:
    """A prompt as the question shown to a judge: a single turn as it is, several under their roles."""
    messages = messages_of(prompt)
    turns = [f"{message['role'].capitalize()}:\n{message['content']}" for message in messages]
    several = "\n\n".join(["The response continues this conversation.", *turns])
    return several if len(messages) > 1 else messages[0]["content"]


def _is_prompt(value: Any) -> bool:
    if not objects(role=TEXT).fits(value):
        return FULL_TEXT.fits(value)
    roles, texts = zip(*((message["role"], message["content"]) for message in messages_of(value)), strict=True)
    turns_taken = re.fullmatch("(system )?user( assistant user)*", " ".join(roles))
    return bool(turns_taken) and all(map(FULL_TEXT.fits, texts))
