"""Chat templates as models come with them, and small tokenizers with the control tokens that they need.

The templates of Llama, Gemma and Qwen3 are of our own wording and make the same texts as the published ones; the
others are the published ones without their parts for tools.
"""

# ruff: noqa: RUF001

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from prepare.meta import LLAMA2_TEMPLATE, LLAMA3_TEMPLATE

LLAMA31 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" %}
{%- endif %}
{%- set own = messages[0]['content'] | trim if messages[0]['role'] == 'system' else "" %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" + own + "<|eot_id|>" }}
{%- for message in messages if message['role'] != 'system' %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SMOLLM2 = CHATML.replace(
    "messages %}",
    "messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are a helpful AI "
    "assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}{% endif %}",
)
QWEN15 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role']"
    " + '\\n' + message['content']}}{% if (loop.last and add_generation_prompt) or not loop.last %}"
    "{{ '<|im_end|>' + '\\n'}}{% endif %}{% endfor %}{% if add_generation_prompt and messages[-1]['role'] != "
    "'assistant' %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN25 = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant") %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if tools %}
    {{- '<tool_call></tool_call>' }}
{%- endif %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
QWEN3 = """{%- set ns = namespace(query=messages|length - 1, open=true) %}
{%- for message in messages[::-1] %}
    {%- set called = message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>') %}
    {%- if ns.open and message.role == "user" and not called %}
        {%- set ns.open = false %}
        {%- set ns.query = messages|length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.query and (loop.last or thought) %}
            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content }}
    {%- endif %}
    {{- '<tool_call></tool_call>' if message.tool_calls else '' }}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
ROLES = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must "
    "alternate user/assistant/user/assistant/...') }}{% endif %}"
)
MISTRAL1 = (
    "{{ bos_token }}{% for message in messages %}" + ROLES + "{% if message['role'] == 'user' %}{{ '[INST] ' + "
    "message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' "
    "' }}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
MISTRAL2 = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}{%- set loop_messages ="
    " messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}{{- bos_token }}"
    "{%- for message in loop_messages %}" + ROLES + "{%- if message['role'] == 'user' %}"
    "{%- if loop.first and system_message is defined %}{{- ' [INST] ' + system_message + '\\n\\n' + "
    "message['content'] + ' [/INST]' }}{%- else %}{{- ' [INST] ' + message['content'] + ' [/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + message['content'] + eos_token}}{%- endif %}{%- endfor %}\n"
)
MISTRAL3 = (  # the system's text goes to the last user
    MISTRAL2.replace("' [INST] '", "'[INST] '")
    .replace("' [/INST]'", "'[/INST]'")
    .replace("message['content'] + eos", "message['content'] | trim + eos")
    .replace("loop.first and", "loop.last and")
)
TEKKEN = MISTRAL3.replace("[INST] ", "[INST]").replace("' ' + ", "")
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
GEMMA = """{{ bos_token }}{% if messages[0].role == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) }}
{{ message.content | trim }}<end_of_turn>
{% endfor %}
{% if add_generation_prompt %}
{{ '<start_of_turn>model' }}
{% endif %}"""
PHI3 = (
    "{% for message in messages %}{{'<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
OPENCHAT = (
    "{{ bos_token }}{% for message in messages %}{{ 'GPT4 Correct ' + message['role'].title() + ': ' + "
    "message['content'] + '<|end_of_turn|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}"
)
DEEPSEEK = (
    "{% set ns = namespace(system='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{% set ns.system = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system}}"
    "{%- for message in messages %}{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' %}{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' + content + "
    "'<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor %}"
    "{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"
)
VICUNA = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}{% endif %}{% for message in messages "
    "if message['role'] != 'system' %}{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'].strip() + ' '"
    " }}{% else %}{% generation %}{{ 'ASSISTANT: ' + message['content'].strip() + eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

L3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"]
IM, S = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<unk>", "<s>", "</s>"]
L3_TEXTS = {"bos_token": L3[0], "eos_token": L3[4]}
IM_TEXTS: dict[str, Any] = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
S_TEXTS = {"bos_token": {"content": "<s>", "__type": "AddedToken"}, "eos_token": "</s>", "unk_token": "<unk>"}
THINK = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
HERMES = [
    {"name": "tool_use", "template": "{{ '<tool_call></tool_call><tool_response></tool_response>' }}"},
    {"name": "default", "template": "{{bos_token}}" + CHATML},
]


@dataclass(frozen=True)
class Case:
    template: str | list[dict[str, str]]
    kind: str  # of tokenizer: "bytes", or like sentencepiece's with a space before each text ("all") or the "first"
    special: list[str]
    texts: dict[str, Any]  # in tokenizer_config.json
    plain: list[str] = field(default_factory=list)  # added tokens that the file does not call special
    flags: dict[str, bool] = field(default_factory=dict)  # of all but the first three tokens
    file: bool = False  # chat_template.jinja
    end: str = "</s>"


CASES = {
    "llama2": Case(LLAMA2_TEMPLATE, "all", S, S_TEXTS),
    "llama2-first": Case(LLAMA2_TEMPLATE, "first", S, S_TEXTS),
    "llama3": Case(LLAMA3_TEMPLATE, "bytes", L3, L3_TEXTS, end="<|eot_id|>"),
    "llama3.1": Case(LLAMA31, "bytes", L3, L3_TEXTS, end="<|eot_id|>"),
    "mistral-v0.1": Case(MISTRAL1, "all", S, S_TEXTS),
    "mistral-v0.2": Case(MISTRAL2, "all", S, S_TEXTS),
    "mistral-v0.3": Case(MISTRAL3, "first", [*S, "[INST]", "[/INST]"], S_TEXTS),
    "mistral-nemo": Case(TEKKEN, "bytes", [*S, "[INST]", "[/INST]"], S_TEXTS),
    "chatml": Case(CHATML, "bytes", IM, IM_TEXTS, end="<|im_end|>"),
    "chatml-plain": Case(CHATML, "bytes", [], IM_TEXTS, IM, end="<|im_end|>"),
    "chatml-all": Case(CHATML, "all", [*S, *IM], S_TEXTS, end="<|im_end|>"),
    "chatml-bos": Case("{{ bos_token }}" + CHATML, "first", [*S, *IM], S_TEXTS, end="<|im_end|>"),
    "smollm2": Case(SMOLLM2, "bytes", IM, IM_TEXTS | {"bos_token": "<|im_start|>"}, end="<|im_end|>"),
    "qwen1.5": Case(QWEN15, "bytes", IM, IM_TEXTS, end="<|im_end|>"),
    "qwen2.5": Case(QWEN25, "bytes", IM, IM_TEXTS, THINK[:2], end="<|im_end|>"),
    "qwen3": Case(QWEN3, "bytes", IM, IM_TEXTS, THINK, end="<|im_end|>"),
    "hermes": Case(HERMES, "bytes", [*L3, *IM], L3_TEXTS, THINK[:4], end="<|im_end|>"),
    "zephyr": Case(ZEPHYR, "all", S, S_TEXTS),
    "tinyllama-first": Case(ZEPHYR, "first", S, S_TEXTS),
    "gemma": Case(
        GEMMA, "none", ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
        {"bos_token": "<bos>", "eos_token": "<eos>"}, ["\n\n", "\n\n\n", "<b>", "▁▁"], file=True, end="<end_of_turn>",
    ),
    "phi3": Case(
        PHI3, "all", [*S, "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"], S_TEXTS, flags={"rstrip": True},
        file=True, end="<|end|>",
    ),
    "openchat": Case(OPENCHAT, "all", [*S, "<|end_of_turn|>"], S_TEXTS, end="<|end_of_turn|>"),
    "deepseek": Case(
        DEEPSEEK, "bytes", ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"],
        {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"},
        ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "<|fim_begin|>"], end="<｜end▁of▁sentence｜>",
    ),
    "vicuna": Case(VICUNA, "first", S, S_TEXTS),
}  # fmt: skip


def backend(case: Case) -> Tokenizer:
    """A small BPE, with merges beyond a newline; the bytes of characters that it has not seen are tokens."""
    texts = ["user\n\nHello there, the cat sat on the mat. assistant\n  Yes <b>: 5 4\n\n\n<|im_ [INST] ASSISTANT: "] * 9
    tokenizer = Tokenizer(models.BPE(byte_fallback=case.kind != "bytes", fuse_unk=True))
    if case.kind == "bytes":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=90))
        tokenizer.pre_tokenizer = None
        if case.kind == "all":
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), tokenizer.normalizer])
        if case.kind == "first":
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        table = json.loads(tokenizer.to_str())
        table["model"]["merges"] = [pair for pair in table["model"]["merges"] if "\n" not in "".join(pair)]
        vocabulary = [token for token in table["model"]["vocab"] if "\n" not in token]
        vocabulary += [f"<0x{byte:02X}>" for byte in range(256)]
        table["model"]["vocab"] = {token: i for i, token in enumerate(vocabulary)}
        tokenizer = Tokenizer.from_str(json.dumps(table))
    added = [AddedToken(name, special=True, normalized=False, **(case.flags if i > 2 else {}))
             for i, name in enumerate(case.special)]  # fmt: skip
    tokenizer.add_tokens([*added, *(AddedToken(name, special=False, normalized=False) for name in case.plain)])
    return tokenizer


def write(folder: Path, name: str) -> Path:
    case = CASES[name]
    folder.mkdir(exist_ok=True)
    backend(case).save(str(folder / "tokenizer.json"))
    table = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | case.texts
    if case.file:
        (folder / "chat_template.jinja").write_text(str(case.template))
    else:
        table["chat_template"] = case.template
    (folder / "tokenizer_config.json").write_text(json.dumps(table))
    (folder / "generation_config.json").write_text("{}")
    return folder


def _talk(*turns: str) -> list[dict[str, str]]:
    roles = ["system"] * (len(turns) % 2 == 0) + ["user", "assistant"] * len(turns)
    return [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]


# An even number of turns begins with the system's.
DIALOGS = [
    *map(_talk, ("Hi", "  Hi {x} \n", "\n\n\nWhat is <b>this</b>? ", "é 漢字 🙂\tand a tab", " ", "the\n\nend\r\n")),
    _talk(" Be brief. ", "Hello there"),
    _talk("\nBe brief.\n\n", "\n\nthe cat "),
    _talk("One?", " Yes: 1.\n", "  And two? "),
    _talk("Be brief.", "One?", "\n\n Yes\n\n", "Two?\n", "2", "the mat {{ 7 * 7 }} {% if %}"),
]
