"""Chat formats as token ids: Llama-3's, ChatML, Llama-2's and Zephyr's.

The name of a control token in a message is only text, so nothing in a message can end its turn. Llama-2's and Zephyr's
markers "[INST]" and "<|user|>" are text, however. Their texts begin with sentencepiece's space after a control token,
as in Meta's code; transformers omits it if tokenizer_config.json has `"legacy": false`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from model.config import read_table
from model.tokenizer import Tokenizer, load_tokenizer, tokenizer_file
from stages.files import UserError
from stages.records import Message

Parts = list[int | str]  # control tokens and texts
Control = Callable[[str], int]  # from the name of a control token that the format needs to its id

# A vocabulary with this token begins each text with a space, and no token of it reaches beyond a newline. Formats whose
# prompt ends with text need one, so that no token reaches from the prompt into the answer.
NEWLINE = "<0x0A>"
ZEPHYR = re.compile(r"<\|user\|>(\\n|\n)' *\+ *message\['content'\] *\+ *eos_token")


@dataclass(frozen=True)
class ChatFormat:
    tokenizer: Tokenizer
    parts: Callable[[Sequence[Message]], Parts]  # up to the assistant's answer
    end: int  # the token that ends the model's turn
    before: str = ""  # text directly before an answer, encoded together with it; "" after a control token
    space: str = ""  # text between `before` and the answer, in the answer's tokens
    stop_ids: frozenset[int] = frozenset()

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a dialog, ready for the assistant's answer."""
        encoded = ([part] if isinstance(part, int) else self.tokenizer.encode(part) for part in self.parts(messages))
        return list(chain.from_iterable(encoded))

    def completion_ids(self, text: str) -> list[int]:
        """Ids of a finished assistant's answer, with its end-of-turn token."""
        return [*self.tokenizer.encode(self.before + self.space + text)[self._skipped :], self.end]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The characters [start, end) of `text` of each of `completion_ids(text)`, without the end-of-turn token."""
        shift = len(self.before + self.space)
        spans = self.tokenizer.offsets(self.before + self.space + text)[self._skipped :]
        return [(max(start - shift, 0), max(end - shift, 0)) for start, end in spans]

    def text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    @property
    def _skipped(self) -> int:
        return len(self.tokenizer.encode(self.before))


def llama3(tokenizer: Tokenizer, control: Control) -> ChatFormat:
    """BOS, then for each turn <|start_header_id|>role<|end_header_id|>, two newlines, content<|eot_id|>."""
    begin, end, start_header, end_header = (
        control(f"<|{name}|>") for name in ("begin_of_text", "eot_id", "start_header_id", "end_header_id")
    )

    def parts(messages: Sequence[Message]) -> Parts:
        turns: Iterator[Parts] = (
            [start_header, m["role"], end_header, "\n\n" + m["content"].strip(), end] for m in messages
        )
        return [begin, *chain.from_iterable(turns), start_header, "assistant", end_header, "\n\n"]

    return ChatFormat(tokenizer, parts, end)


def chatml(tokenizer: Tokenizer, control: Control, default_system: str) -> ChatFormat:
    """For each turn <|im_start|>role, newline, content<|im_end|>, newline. No BOS. `default_system` may be ""."""
    start, end = control("<|im_start|>"), control("<|im_end|>")
    before = "" if tokenizer.control(NEWLINE) is None else "\n"  # such vocabularies would begin the answer with a space

    def parts(messages: Sequence[Message]) -> Parts:
        if default_system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": default_system}, *messages]
        turns: Iterator[Parts] = ([start, f"{turn['role']}\n{turn['content']}", end, "\n"] for turn in messages)
        return [*chain.from_iterable(turns), start, "assistant\n"]

    return ChatFormat(tokenizer, parts, end, before)


def llama2(tokenizer: Tokenizer, control: Control) -> ChatFormat:
    """For each exchange BOS, "[INST] user [/INST] answer ", EOS, each text encoded whole, as in Meta's code."""
    control(NEWLINE)
    begin, end = control("<s>"), control("</s>")

    def parts(messages: Sequence[Message]) -> Parts:
        system = ""
        if messages[0]["role"] == "system":
            system, messages = f"<<SYS>>\n{messages[0]['content']}\n<</SYS>>\n\n", messages[1:]
        roles = [message["role"] for message in messages]
        if roles != ["user", *["assistant", "user"] * (len(roles) // 2)]:
            raise UserError(f"Llama-2's chat format: roles {roles}; it must be user and assistant in turn, a user last")
        first, *contents = (message["content"] for message in messages)
        dialog: Parts = [begin, f"[INST] {(system + first).strip()} [/INST]"]
        for answer, user in zip(contents[::2], contents[1::2], strict=True):
            dialog[-1] = f"{dialog[-1]} {answer.strip()} "
            dialog += [end, begin, f"[INST] {user.strip()} [/INST]"]
        return dialog

    return ChatFormat(tokenizer, parts, end, before="[/INST]", space=" ")


def zephyr(tokenizer: Tokenizer, control: Control) -> ChatFormat:
    """For each turn "<|role|>", newline, content, EOS, newline, as in TinyLlama-Chat. No BOS."""
    control(NEWLINE)
    end, before = control("</s>"), "<|assistant|>\n"

    def parts(messages: Sequence[Message]) -> Parts:
        texts = [f"<|{message['role']}|>\n{message['content']}" for message in messages]
        turns: Iterator[Parts] = (["\n" + text, end] for text in texts[1:])
        return [texts[0], end, *chain.from_iterable(turns), "\n" + before]

    return ChatFormat(tokenizer, parts, end, before)


def load_chat(folder: Path | str) -> ChatFormat:
    """The chat format that a model's chat template shows; the dates that Llama-3.1's template adds are left out."""
    folder = Path(folder)
    tokenizer, template = load_tokenizer(folder), _template(folder)

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
        chat = llama2(tokenizer, control)
    elif ZEPHYR.search(template):
        chat = zephyr(tokenizer, control)
    else:
        known = "none of Llama-3's, ChatML's, Llama-2's and Zephyr's"
        raise UserError(f"{folder}: the chat template is {known}; only these are implemented")
    return replace(chat, stop_ids=load_stop_ids(folder) | {chat.end})


def _template(folder: Path) -> str:
    """The chat template's text, from its own file or from tokenizer_config.json."""
    if (own := folder / "chat_template.jinja").is_file():
        return own.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    template = read_table(config).get("chat_template") if config.is_file() else None
    if not isinstance(template, str):
        raise UserError(f"{config}: no chat_template; use a chat (instruct) model")
    return template


def load_stop_ids(folder: Path) -> frozenset[int]:
    """The end-of-sequence ids that generation_config.json or config.json lists: one id, or several."""
    for path in (folder / "generation_config.json", folder / "config.json"):
        value = read_table(path).get("eos_token_id") if path.is_file() else None
        if value is not None:
            return frozenset(value if isinstance(value, list) else [value])
    return frozenset()
