"""Chat formats as token ids: Llama-3's, ChatML, Llama-2's and Zephyr's.

A prompt is built from ids, never from text with control tokens. So there is exactly one BOS, if the format has one, and
the name of a control token in a message is only text. Llama-3's and ChatML's turns are separated by control tokens
alone, so nothing in a message can end its turn. Llama-2's and Zephyr's markers are text, "[INST]" and "<|user|>"; a
message that contains one looks like a turn, and no encoding can tell them apart. Their texts begin with sentencepiece's
space after a control token, as in Meta's code; transformers omits it if tokenizer_config.json has `"legacy": false`.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from model.tokenizer import Tokenizer, load_tokenizer, tokenizer_file
from stages.files import UserError

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}"""

Control = Callable[[str], int]
"""From the name of a control token that the format needs to its id."""

NEWLINE = "<0x0A>"
"""Marks vocabularies like Llama-2's: a space precedes each text, and no token continues beyond a newline."""

ZEPHYR = re.compile(r"<\|user\|>(\\n|\n)' *\+ *message\['content'\] *\+ *eos_token")


@dataclass(frozen=True)
class ChatFormat:
    """How a dialog becomes ids."""

    tokenizer: Tokenizer
    render: Callable[[Sequence[Message]], list[int]]
    """Ids of a dialog, up to where the assistant's answer begins."""
    end: int
    """The token that ends the model's turn."""
    stop_ids: frozenset[int]
    before: str = ""
    """Text directly before an answer, encoded together with it; "" after a control token."""
    space: str = ""
    """Text between `before` and the answer, in the answer's tokens."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a dialog, ready for the assistant's answer."""
        return self.render(messages)

    def completion_ids(self, text: str) -> list[int]:
        """Ids of a finished assistant's answer, its end-of-turn token included: for SFT on written text."""
        return [*self.tokenizer.encode(self.before + self.space + text)[self._skipped :], self.end]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The characters [start, end) of `text` of each of `completion_ids(text)`, without the end-of-turn token."""
        shift = len(self.before + self.space)
        spans = self.tokenizer.offsets(self.before + self.space + text)[self._skipped :]
        return [(max(start - shift, 0), max(end - shift, 0)) for start, end in spans]

    def text(self, ids: Sequence[int]) -> str:
        """Text of a completion's ids, without the stop token."""
        return self.tokenizer.decode(ids)

    @property
    def _skipped(self) -> int:
        return len(self.tokenizer.encode(self.before))


def llama3(tokenizer: Tokenizer, control: Control) -> ChatFormat:
    """BOS, then for each turn <|start_header_id|>role<|end_header_id|>, two newlines, content<|eot_id|>."""
    begin, end = control("<|begin_of_text|>"), control("<|eot_id|>")
    start_header, end_header = control("<|start_header_id|>"), control("<|end_header_id|>")

    def turn(role: str, content: str) -> list[int]:
        return [start_header, *tokenizer.encode(role), end_header, *tokenizer.encode("\n\n" + content.strip())]

    def render(messages: Sequence[Message]) -> list[int]:
        ids = [begin]
        for message in messages:
            ids += [*turn(message["role"], message["content"]), end]
        return ids + turn("assistant", "")

    return ChatFormat(tokenizer, render, end, frozenset({end}))


def chatml(tokenizer: Tokenizer, control: Control, default_system: str) -> ChatFormat:
    """For each turn <|im_start|>role, newline, content<|im_end|>, newline. No BOS.

    `default_system`: system message of a dialog without one; "" for none.
    """
    start, end = control("<|im_start|>"), control("<|im_end|>")
    before = "" if tokenizer.control(NEWLINE) is None else "\n"  # such vocabularies would begin the answer with a space

    def turn(role: str, content: str) -> list[int]:
        return [start, *tokenizer.encode(f"{role}\n{content}")]

    def render(messages: Sequence[Message]) -> list[int]:
        if default_system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": default_system}, *messages]
        ids = []
        for message in messages:
            ids += [*turn(message["role"], message["content"]), end, *tokenizer.encode("\n")]
        return ids + turn("assistant", "")

    return ChatFormat(tokenizer, render, end, frozenset({end}), before)


def llama2(tokenizer: Tokenizer, control: Control) -> ChatFormat:
    """For each exchange BOS, "[INST] user [/INST] answer ", EOS, each text encoded whole, as in Meta's code.

    The system message stands in the first user message, between <<SYS>> and <</SYS>>. Rendering raises `UserError` if
    user and assistant do not take turns, which the format cannot express.
    """
    begin, end = control("<s>"), control("</s>")

    def render(messages: Sequence[Message]) -> list[int]:
        system = ""
        if messages[0]["role"] == "system":
            system, messages = f"<<SYS>>\n{messages[0]['content']}\n<</SYS>>\n\n", messages[1:]
        roles = [message["role"] for message in messages]
        if roles != ["user", *["assistant", "user"] * (len(roles) // 2)]:
            raise UserError(f"Llama-2's chat format: roles {roles}; it must be user and assistant in turn, a user last")
        contents = [message["content"] for message in messages]
        contents[0] = system + contents[0]
        ids = []
        for user, answer in zip(contents[:-1:2], contents[1::2], strict=True):
            ids += [begin, *tokenizer.encode(f"[INST] {user.strip()} [/INST] {answer.strip()} "), end]
        return [*ids, begin, *tokenizer.encode(f"[INST] {contents[-1].strip()} [/INST]")]

    return ChatFormat(tokenizer, render, end, frozenset({end}), before="[/INST]", space=" ")


def zephyr(tokenizer: Tokenizer, control: Control) -> ChatFormat:
    """For each turn "<|role|>", newline, content, EOS, newline, as in TinyLlama-Chat. No BOS."""
    end = control("</s>")

    def render(messages: Sequence[Message]) -> list[int]:
        ids, newline = [], ""
        for message in messages:
            ids += [*tokenizer.encode(f"{newline}<|{message['role']}|>\n{message['content']}"), end]
            newline = "\n"
        return ids + tokenizer.encode(f"{newline}<|assistant|>\n")

    return ChatFormat(tokenizer, render, end, frozenset({end}), before="<|assistant|>\n")


def load_chat(folder: Path | str) -> ChatFormat:
    """The chat format of a Hugging Face directory, recognised from its chat template.

    Raises `UserError` if there is no template, or one of another format. The dates that the template of Llama-3.1 and
    later puts into the system message are left out; the turns are the same.
    """
    folder = Path(folder)
    tokenizer = load_tokenizer(folder)
    template = _template(folder)

    def control(token: str) -> int:
        token_id = tokenizer.control(token)
        if token_id is None:
            raise UserError(f"{tokenizer_file(folder)}: the chat template needs {token}, which the vocabulary lacks")
        return token_id

    if "<|start_header_id|>" in template:
        chat = llama3(tokenizer, control)
    elif "<|im_start|>" in template:
        default = re.search(r"<\|im_start\|>system(?:\\n|\n)([^<{}'\"]+)<\|im_end\|>", template)
        chat = chatml(tokenizer, control, default[1] if default else "")
    elif "[INST]" in template and "<<SYS>>" in template:
        control(NEWLINE)  # so that no token reaches from the prompt into the answer
        chat = llama2(tokenizer, control)
    elif ZEPHYR.search(template):
        control(NEWLINE)
        chat = zephyr(tokenizer, control)
    else:
        raise UserError(
            f"{folder}: the chat template is none of Llama-3's, ChatML's, Llama-2's and Zephyr's; "
            "only these are implemented"
        )
    return replace(chat, stop_ids=chat.stop_ids | load_stop_ids(folder))


def _template(folder: Path) -> str:
    """The chat template's text, from its own file or from tokenizer_config.json."""
    own, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    template = _json(config).get("chat_template") if config.is_file() else None
    if not isinstance(template, str):
        raise UserError(f"{config}: no chat_template; use a chat (instruct) model")
    return template


def load_stop_ids(folder: Path) -> frozenset[int]:
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
