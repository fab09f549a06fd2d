"""Dialogs as token ids, by the model's own chat template.

No user's text becomes a control token, whatever the template does with it: a dialog is rendered a second time with
stand-ins for the characters that control tokens are spelled with, so that the template itself has written each one
that the text has then. Beyond that, ids are those of transformers' `apply_chat_template`.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from model.config import FETCH, LlamaConfig, check_links, reading
from model.template import Template
from model.tokenizer import Control, JsonTokenizer, Tokenizer, load_tokenizer, tokenizer_file
from stages.command import UserError
from stages.files import read_json
from stages.records import Message

ANSWER = "\U000f0000"  # a private character that stands for an answer
STAND_INS = range(0xF0001, 0x110000)  # private characters, too


@dataclass(frozen=True)
class ChatFormat:
    tokenizer: Tokenizer
    template: Template
    control: Control
    end: int  # the token that ends the model's turn
    space: str  # text with which the template begins an answer
    stop_ids: frozenset[int]
    # What a text is encoded behind: a newline where that keeps the vocabulary from beginning it with a space.
    inner: str  # of a text after a control token
    spaced: str  # of one that begins with a space itself
    before: str  # of an answer

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a dialog, ready for the assistant's answer."""
        ids: list[int] = []
        for part in self._parts(messages):
            ids += [part] if isinstance(part, int) else self._encode(part, self.inner if ids else "")
        return ids

    def completion_ids(self, text: str) -> list[int]:
        """Ids of a finished assistant's answer, with its end-of-turn token."""
        return [*self._encode(self.space + text, self.before), self.end]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The characters [start, end) of `text` of each of `completion_ids(text)`, without the end-of-turn token."""
        before = self._before(self.space + text, self.before)
        shift, skipped = len(before + self.space), len(self.tokenizer.encode(before))
        spans = self.tokenizer.offsets(before + self.space + text)[skipped:]
        return [(max(start - shift, 0), max(end - shift, 0)) for start, end in spans]

    def text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode([token for token in ids if token not in self.stop_ids])  # these may be no control

    def _before(self, text: str, before: str) -> str:
        return self.spaced or before if text.startswith(" ") else before

    def _encode(self, text: str, before: str) -> list[int]:
        before = self._before(text, before)
        return self.tokenizer.encode(before + text)[len(self.tokenizer.encode(before)) :]

    def _parts(self, messages: Sequence[Message]) -> list[int | str]:
        """The template's control tokens, and texts: of the dialog as it is, if that has no others. Else the names of
        control tokens in messages are text, for the template, too. `UserError` if one appears all the same."""
        used = set(chain(self.template.text, *(message["content"] for message in messages)))
        spare = (code for code in STAND_INS if chr(code) not in used)
        hide = {ord(character): next(spare, None) for character in self.control.characters}
        show = {stand_in: character for character, stand_in in hide.items()}

        def rendered(change: Callable[[str], str]) -> str:
            return self.template.render([{**message, "content": change(message["content"])} for message in messages])

        def tokens(text: str) -> list[int | str]:
            return [part for part in self.control.split(text) if isinstance(part, int)]

        hidden, text = rendered(lambda content: content.translate(hide)), rendered(str)
        if hidden.translate(show) != text:  # the template looks at what messages say
            if tokens(text) == tokens(hidden) and not self._named(messages):
                return self.control.split(text)
            own, names = tokens(hidden), self.control.names
            hidden = rendered(lambda content: names.sub(lambda name: name[0].translate(hide), content))
            if tokens(hidden) != own:
                raise UserError(f"{self.template.path}: the chat template makes control tokens of what a message says")
        return [part if isinstance(part, int) else part.translate(show) for part in self.control.split(hidden)]

    def _named(self, messages: Sequence[Message]) -> bool:
        """Whether a message names a control token; in an assistant's, of which templates read thoughts, the end."""
        said = [(message["role"], self.control.names.findall(message["content"])) for message in messages]
        return any(role != "assistant" or self.control.ids[name] == self.end for role, names in said for name in names)


def load_chat(folder: Path | str, tokenizer: Tokenizer | None = None) -> ChatFormat:
    """The chat format of a model. `UserError` for a template that does not end an answer with a control token."""
    check_links(folder := Path(folder))
    tokenizer, template = tokenizer or load_tokenizer(folder), Template(folder)
    user, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": ANSWER}
    prompt, whole = template.render([user]), template.render([user, answer])
    written = prompt + whole
    with suppress(UserError):  # not all take a system line
        written += template.render([{"role": "system", "content": "Hi"}, user, answer, user])
    _check_declared(folder, tokenizer, template, written)
    with reading(tokenizer_file(folder), "texts are encoded to a control token"):
        control = tokenizer.reserve(template.text, [*template.tokens.values()], written)
    begun, found, rest = whole.rpartition(ANSWER)
    space, end = begun[len(prompt) :] if begun.startswith(prompt) else "", next(iter(control.split(rest.strip())), "")
    # Behind the answer the next turn's beginning may stand, which would be no end.
    ended = control.names.search(template.render([user, answer], prompt=False).rpartition(ANSWER)[2])
    declared = {*load_stop_ids(folder), control.ids.get(template.tokens.get("eos_token", ""))}
    if not found or control.names.search(space) or isinstance(end, str) or not (ended or end in declared):
        made = f"writes {space!r} before an answer and {rest!r} after it"
        raise UserError(f"{template.path}: the chat template {made}; only the end must be a control token, and be one")
    inner, spaced, newline = _spacing(folder, tokenizer, template.config)
    before = newline if isinstance(control.split(prompt)[-1], str) else inner
    return ChatFormat(tokenizer, template, control, end, space, load_stop_ids(folder, end), inner, spaced, before)


def _check_declared(folder: Path, tokenizer: Tokenizer, template: Template, written: str) -> None:
    """Raise `UserError` for a token that the template writes, which the tokenizer's file lacks or gives another id than
    a file beside it."""
    added, config = folder / "added_tokens.json", template.config
    listed, numbered = config.get("additional_special_tokens") or [], config.get("added_tokens_decoder") or {}
    rows: list[tuple[Any, Any]] = [*(read_json(added, FETCH) if added.is_file() else {}).items()]
    with reading(folder / "tokenizer_config.json", "its tokens are no texts with ids"):
        rows += [(row["content"], int(i)) for i, row in numbered.items()]
        rows += [(name["content"] if isinstance(name, dict) else name, None) for name in listed]
        rows += [(name, None) for name in template.tokens.values()]
        own = {name: tokenizer.control(name) for name, _ in rows if name and name in written}
    for name, i in rows:
        if name in own and (own[name] is None or i not in (None, own[name])):
            given = "" if i is None else f" with the id {i}"
            wrong = f"{tokenizer_file(folder).name} gives it {'none' if own[name] is None else own[name]}"
            raise UserError(
                f"{folder}: token {name!r}, which the chat template writes, is declared{given}, but {wrong}"
            )


def _spacing(folder: Path, tokenizer: Tokenizer, config: dict[str, Any]) -> tuple[str, str, str]:
    """What texts are encoded behind as transformers does it: after a control token, with a space of their own, and
    after other text. Of a LlamaTokenizer it reads no more than the vocabulary, unless the model is Mistral's."""
    bare = tokenizer.encode("\nx")[len(tokenizer.encode("\n")) :]
    newline = "\n" if tokenizer.encode("x") != bare else ""
    llama, architecture = "LlamaTokenizer" in str(config.get("tokenizer_class")), folder / "config.json"
    llama &= not architecture.is_file() or read_json(architecture, FETCH).get("model_type") != "mistral"
    legacy = config.get("legacy", not llama)
    if legacy not in (None, True, False):
        raise UserError(f"{folder / 'tokenizer_config.json'}: legacy is {legacy!r}; it must be true or false")
    if isinstance(tokenizer, JsonTokenizer) and not llama:
        legacy = "prepend_scheme=first" not in str(tokenizer.backend.pre_tokenizer)
    return "" if legacy else newline, newline if llama else "", newline


def load_stop_ids(folder: Path, *more: int) -> frozenset[int]:
    """The end-of-sequence ids that generation_config.json or config.json lists, one id or several, and `more`."""
    files = [path for path in (folder / "generation_config.json", folder / "config.json") if path.is_file()]
    given: Any = next((v for p in files if (v := read_json(p, FETCH).get("eos_token_id")) is not None), [])
    ids = [*(given if isinstance(given, list) else [given]), *more]
    size = LlamaConfig.load(folder).vocab_size if folder / "config.json" in files else 2**24
    if not all(type(token) is int and 0 <= token < size for token in ids):
        raise UserError(f"{folder}: the ends of sequence are {ids}; they must be ids of tokens, below {size}")
    return frozenset(ids)
