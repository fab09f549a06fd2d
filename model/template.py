"""A model's chat template: jinja2 in its sandbox, with what transformers gives a template, and the same text each time.

The clock stands still, chance is left out, and loops and calls are counted, so that a template ends.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from functools import partial, wraps
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError, safe_range

from model.config import FETCH
from stages.command import UserError
from stages.files import read_json, read_text
from stages.records import Message

TODAY = date(2024, 7, 26)  # the date of Llama 3.1's template where there is no clock
STEPS = 30_000  # most passes of loops and calls of a rendering, and the largest factor
MARKS = re.compile(r"({%[-+]?\s*(?:end)?)generation(\s*[-+]?%})")  # of the assistant's texts, for other programs
TOKENS = [f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]


class Template:
    """A model's template; `config` is its tokenizer_config.json, `text` the source, and that of others beside it."""

    def __init__(self, folder: Path):
        self.path, own = folder / "tokenizer_config.json", folder / "chat_template.jinja"
        self.config = read_json(self.path, FETCH) if self.path.is_file() else {}
        given = {key: value for key, value in self._declared(folder).items() if value is not None}
        texts = {key: text.get("content") if isinstance(text, dict) else text for key, text in given.items()}
        self.tokens = {key: text for key, text in texts.items() if isinstance(text, str)}
        if self.tokens != texts:
            raise UserError(f"{self.path}: the special tokens are {given}; they must be texts")
        source = self.config.get("chat_template")
        if own.is_file():
            self.path, source = own, read_text(own, FETCH)
        rows = source if isinstance(source, list) else [{"name": "default", "template": source}]
        named = {str(row.get("name")): row.get("template") for row in rows if isinstance(row, dict)}
        if not isinstance(source := named.get("default"), str):
            raise UserError(f"{self.path}: no chat_template; use a chat (instruct) model")
        self.text, self.sandbox = "\0".join(map(str, named.values())), Sandbox()
        try:
            self.compiled = self.sandbox.from_string(MARKS.sub(r"\1with\2", source))
        except Exception as error:  # of jinja2's parser, and of Python's compiler
            raise self._fault(error) from None

    def _declared(self, folder: Path) -> dict[str, Any]:
        """The special tokens that transformers gives a template, by variable: of tokenizer_config.json, before those of
        special_tokens_map.json in older folders and a LlamaTokenizer's own."""
        path, llama = folder / "special_tokens_map.json", "LlamaTokenizer" in str(self.config.get("tokenizer_class"))
        given: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} if llama else {}
        if path.is_file() and "added_tokens_decoder" not in self.config:
            given |= read_json(path, FETCH)
        extra = self.config.get("extra_special_tokens")
        given |= self.config | (extra if isinstance(extra, dict) else {})
        return {key: given[key] for key in (*TOKENS, *(extra if isinstance(extra, dict) else ())) if key in given}

    def render(self, messages: Sequence[Message], prompt: bool = True) -> str:
        """The text of a dialog; a `prompt` goes up to the assistant's next answer. Thinking is off."""
        self.sandbox.left = STEPS
        own = [{"role": message["role"], "content": message["content"]} for message in messages]
        given = {"tools": None, "documents": None, "add_generation_prompt": prompt, "enable_thinking": False}
        try:
            return self.compiled.render(messages=own, **self.tokens, **given)
        except Exception as error:  # of whatever the template does
            raise self._fault(error) from None

    def _fault(self, error: Exception) -> UserError:
        return UserError(f"{self.path}: the chat template can't be rendered ({error!r:.200}); mend it or the messages")


class Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**"})
    left = STEPS

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        self.filters |= {"tojson": partial(json.dumps, ensure_ascii=False), "counted": self._counted}
        self.globals |= {"raise_exception": _raise, "strftime_now": TODAY.strftime}
        self.filters = {name: self._bounded(function) for name, function in self.filters.items()}
        self.globals["range"] = lambda *bounds: self._counted(safe_range(*bounds))
        del self.filters["random"], self.globals["lipsum"]

    def _parse(self, *source: Any) -> nodes.Template:
        tree = super()._parse(*source)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
        return tree

    def _counted(self, items: Iterable[Any]) -> list[Any]:
        taken = list(islice(items, self.left + 1))
        self.left -= len(taken)
        if self.left < 0:
            raise SecurityError(f"more than {STEPS} steps")
        return taken

    def _bounded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter, or a method, that is given no number above `STEPS`, such as that of slices or characters."""

        @wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            if any(isinstance(value, int | float) and abs(value) > STEPS for value in (*args[1:], *kwargs.values())):
                raise SecurityError(f"a number above {STEPS}")
            return function(*args, **kwargs)

        return checked

    def call(self, *args: Any, **kwargs: Any) -> Any:
        self._counted("1")
        return self._bounded(super().call)(*args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        for factor in (left, right):
            if (abs(factor) if isinstance(factor, int | float) else len(factor)) > STEPS:
                raise SecurityError(f"a factor above {STEPS}")
        return super().call_binop(context, operator, left, right)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
