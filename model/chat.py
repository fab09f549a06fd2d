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
from typing import Any

from model.config import FETCH, LlamaConfig, reading
from model.tokenizer import Tokenizer, load_tokenizer, tokenizer_file
from stages.files import UserError, read_json, read_text
from stages.records import Message

Parts = list[int | str]  # control tokens and texts
Control = Callable[[str], int]  # from the name of a control token that the format needs to its id

# A vocabulary with this token begins each text with a space, and no token of it reaches beyond a newline. Formats whose
# prompt ends with text need one, so that no token reaches from the prompt into the answer.
NEWLINE = "<0x0A>"
ZEPHYR = r"<\|user\|>(\\n|\n)' *\+ *message\['content'\] *\+ *eos_token"


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
        return self.tokenizer.decode([token for token in ids if token not in self.stop_ids])  # these may be no control

    @property
    def _skipped(self) -> int:
        return len(self.tokenizer.encode(self.before))


def llama3(tokenizer: Tokenizer, control: Control, dates: str) -> ChatFormat:
    """BOS, then for each turn <|start_header_id|>role<|end_header_id|>, two newlines, content<|eot_id|>. Llama 3.1's
    `dates`, if any, begin the system's turn, which then is always there."""
    begin, end, start_header, end_header = (
        control(f"<|{name}|>") for name in ("begin_of_text", "eot_id", "start_header_id", "end_header_id")
    )

    def parts(messages: Sequence[Message]) -> Parts:
        if dates and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": ""}, *messages]
        texts = ((m["role"], dates * (m["role"] == "system") + m["content"].strip()) for m in messages)
        turns: Iterator[Parts] = ([start_header, role, end_header, "\n\n" + text, end] for role, text in texts)
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


def llama2(tokenizer: Tokenizer, control: Control, _: str) -> ChatFormat:
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


def zephyr(tokenizer: Tokenizer, control: Control, _: str) -> ChatFormat:
    """For each turn "<|role|>", newline, content, EOS, newline, as in TinyLlama-Chat. No BOS."""
    control(NEWLINE)
    end, before = control("</s>"), "<|assistant|>\n"

    def parts(messages: Sequence[Message]) -> Parts:
        texts = [f"<|{message['role']}|>\n{message['content']}" for message in messages]
        turns: Iterator[Parts] = (["\n" + text, end] for text in texts[1:])
        return [texts[0], end, *chain.from_iterable(turns), "\n" + before]

    return ChatFormat(tokenizer, parts, end, before)


FORMATS = {r"<\|start_header_id\|>": llama3, r"<\|im_start\|>": chatml, "<<SYS>>": llama2, ZEPHYR: zephyr}
DATES = re.compile(r"Cutting Knowledge Date: .*\nToday Date: .*\n\n")  # of a template without a clock: always the same
DEFAULT = re.compile(r"(?<=<\|im_start\|>system)(?:\\n|\n)([^<{}'\"]+)<\|im_end\|>")
TURNS = enumerate(["system", *["user", "assistant"] * 3])
DIALOG: list[Message] = [{"role": role, "content": f"\n {i}{{x}} <b></think> .\n "} for i, role in TURNS]
PROBES = DIALOG[1:2], DIALOG[:2], DIALOG[1:4], DIALOG[:6]  # of which a template must make what our format makes


def load_chat(folder: Path | str, tokenizer: Tokenizer | None = None) -> ChatFormat:
    """The chat format of a model's chat template. `UserError` for a template that makes something else of `PROBES`."""
    folder, names = Path(folder), dict[int, str]()
    tokenizer, (template, render) = tokenizer or load_tokenizer(folder), _template(folder)

    def control(token: str) -> int:
        token_id = tokenizer.control(token) if token == NEWLINE else tokenizer.reserve(token)
        if token_id is None:
            raise UserError(f"{tokenizer_file(folder)}: the chat template needs {token}, which the vocabulary lacks")
        names[token_id] = token
        return token_id

    if not (make := next((make for mark, make in FORMATS.items() if re.search(mark, template)), None)):
        raise UserError(
            f"{folder}: the chat template is none of Llama-3's, ChatML's, Llama-2's and Zephyr's; use these"
        )
    dates, default = make is llama3 and DATES.search(render(PROBES[0])), DEFAULT.search(template)
    chat = make(tokenizer, control, dates[0] if dates else default[1] if default else "")
    for messages in PROBES:
        ours = "".join(part if isinstance(part, str) else names[part] for part in chat.parts(messages))
        if (theirs := render(messages)) != ours:
            raise UserError(f"{folder}: the chat template is not {make.__name__}'s: it makes {theirs!r}, not {ours!r}")
    return replace(chat, stop_ids=load_stop_ids(folder, chat.end))


def _template(folder: Path) -> tuple[str, Callable[[Sequence[Message]], str]]:
    """The chat template, from its own file or from tokenizer_config.json, and what renders it as transformers does."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    config, own = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    table = read_json(config, FETCH) if config.is_file() else {}
    template = read_text(own, FETCH) if own.is_file() else table.get("chat_template")
    if isinstance(template, list):
        named = (row for row in template if isinstance(row, dict) and row.get("name") == "default")
        template = next(named, {}).get("template")
    if not isinstance(template, str):
        raise UserError(f"{config}: no chat_template; use a chat (instruct) model")
    tokens = {key: text for key, text in table.items() if key.endswith("_token") and text is not None}
    given = {key: text.get("content") if isinstance(text, dict) else text for key, text in tokens.items()}
    given |= {"add_generation_prompt": True, "tools": None, "documents": None}
    blocks: Any = {"trim_blocks": True, "lstrip_blocks": True, "extensions": ["jinja2.ext.loopcontrols"]}

    def render(messages: Sequence[Message]) -> str:
        with reading(folder, "the chat template can't be rendered"):
            return ImmutableSandboxedEnvironment(**blocks).from_string(template).render(messages=messages, **given)

    return template, render


def load_stop_ids(folder: Path, *more: int) -> frozenset[int]:
    """The end-of-sequence ids that generation_config.json or config.json lists, one id or several, and `more`."""
    files = [path for path in (folder / "generation_config.json", folder / "config.json") if path.is_file()]
    given: Any = next((v for p in files if (v := read_json(p, FETCH).get("eos_token_id")) is not None), [])
    ids = [*(given if isinstance(given, list) else [given]), *more]
    size = LlamaConfig.load(folder).vocab_size if folder / "config.json" in files else 2**24
    if not all(type(token) is int and 0 <= token < size for token in ids):
        raise UserError(f"{folder}: the ends of sequence are {ids}; they must be ids of tokens, below {size}")
    return frozenset(ids)
