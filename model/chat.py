"""Chat formats as token ids: Llama-3's and ChatML.

A prompt is put together from ids, never from text that holds control tokens, so there is exactly one BOS (where the
model has one), and nothing in a message can end its turn.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from files import UserError
from model.tokenizer import Tokenizer

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}"""


@dataclass(frozen=True)
class ChatFormat:
    """How a dialog becomes ids: control tokens around a turn, and what stands between them."""

    tokenizer: Tokenizer
    begin: tuple[int, ...]
    """At position 0: BOS, or nothing."""
    turn: int
    """Opens a turn, before the role."""
    header_end: tuple[int, ...]
    """Between the role and the content."""
    turn_end: tuple[int, ...]
    """After the content; its first id is what the model emits to end its turn."""
    strip: bool
    """Whether contents lose white space at both ends, as Llama-3's template does."""
    default_system: str
    """The system message of a dialog that brings none, or "" for none at all."""
    stop_ids: frozenset[int]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a dialog, ready for the assistant's answer."""
        if self.default_system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.default_system}, *messages]
        ids = list(self.begin)
        for message in messages:
            content = message["content"].strip() if self.strip else message["content"]
            ids += [self.turn, *self._header(message["role"], content), *self.turn_end]
        return [*ids, self.turn, *self._header("assistant", "")]

    def completion_ids(self, text: str) -> list[int]:
        """Ids of a finished assistant's answer, its end-of-turn token included: for SFT on written text."""
        return [*self.tokenizer.encode(text), self.turn_end[0]]

    def text(self, ids: Sequence[int]) -> str:
        """Text of a completion's ids, the stop token left out."""
        return self.tokenizer.decode(ids)

    def _header(self, role: str, content: str) -> list[int]:
        if self.header_end:
            return [*self.tokenizer.encode(role), *self.header_end, *self.tokenizer.encode("\n\n" + content)]
        return self.tokenizer.encode(f"{role}\n{content}")


def load_chat(folder: Path | str) -> ChatFormat:
    """The chat format of a Hugging Face directory, recognised from its chat template.

    Raises `UserError` when there is no template, or it is neither Llama-3's nor ChatML. The dated preamble of
    Llama-3.1's template is left out, as it changes from day to day; the turns are the same.
    """
    folder = Path(folder)
    tokenizer = Tokenizer.load(folder)
    template = _template(folder)
    stop_ids = _stop_ids(folder)

    def control(token: str) -> int:
        found = tokenizer.control(token)
        if found is None:
            raise UserError(f"{folder}/tokenizer.json: the chat template needs {token}, which the vocabulary lacks")
        return found

    if "<|start_header_id|>" in template:
        end = control("<|eot_id|>")
        return ChatFormat(
            tokenizer=tokenizer,
            begin=(control("<|begin_of_text|>"),),
            turn=control("<|start_header_id|>"),
            header_end=(control("<|end_header_id|>"),),
            turn_end=(end,),
            strip=True,
            default_system="",
            stop_ids=stop_ids | {end},
        )
    if "<|im_start|>" in template:
        end = control("<|im_end|>")
        default = re.search(r"<\|im_start\|>system(?:\\n|\n)([^<{}'\"]+)<\|im_end\|>", template)
        return ChatFormat(
            tokenizer=tokenizer,
            begin=(),
            turn=control("<|im_start|>"),
            header_end=(),
            turn_end=(end, *tokenizer.encode("\n")),
            strip=False,
            default_system=default[1] if default else "",
            stop_ids=stop_ids | {end},
        )
    raise UserError(f"{folder}: the chat template is neither Llama-3's nor ChatML; only these are implemented")


def _template(folder: Path) -> str:
    """The chat template's text, from its own file or from tokenizer_config.json."""
    own, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    template = _json(config).get("chat_template") if config.is_file() else None
    if not isinstance(template, str):
        raise UserError(f"{config}: no chat_template; use a chat (instruct) model")
    return template


def _stop_ids(folder: Path) -> frozenset[int]:
    """The end-of-sequence ids that generation_config.json or config.json lists: one id, or several."""
    for name in ("generation_config.json", "config.json"):
        value = _json(folder / name).get("eos_token_id") if (folder / name).is_file() else None
        if value is not None:
            return frozenset(value if isinstance(value, list) else [value])
    return frozenset()


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg}); fetch the file again") from None
