"""A chat template that makes other texts than its family's standard form is an error; other spellings of it are none.

What each variant makes is what transformers makes: Jinja's sandbox with blocks trimmed, and these variables.
"""

import json

import pytest
from test_chat import CHATML, CHATML_TEMPLATE, LLAMA3, SYSTEM, USER, ZEPHYR_TEMPLATE, folder, pieces, shown

from model.chat import load_chat
from prepare.meta import LLAMA2_TEMPLATE, LLAMA3_TEMPLATE
from stages.files import UserError

BYTES = {"llama3": (LLAMA3, 259), "chatml": (CHATML, 257)}  # families' control tokens and end
STANDARD = {"llama3": LLAMA3_TEMPLATE, "chatml": CHATML_TEMPLATE, "llama2": LLAMA2_TEMPLATE, "zephyr": ZEPHYR_TEMPLATE}


def load(path, family: str, template, **texts):
    place = folder(path, *[BYTES[family][0], "", BYTES[family][1]]) if family in BYTES else pieces(path, "")
    config = place / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": template} | texts))
    return load_chat(place)


SET_DEFAULT = (
    "{% set default = 'You are kind.' %}{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\n' + default + '<|im_end|>\\n' }}{% endif %}"
)
SET_LLAMA3 = (
    "{% if messages[0].role != 'system' %}{% set messages = [{'role': 'system', 'content': 'Hi'}] + messages %}"
    "{% endif %}"
)


@pytest.mark.parametrize(
    ("family", "old", "new"),
    [
        # BOS
        ("llama3", "{{ bos_token }}", ""),
        ("llama3", "{{ bos_token }}", "{{ bos_token }}{{ bos_token }}"),
        ("chatml", "{% for", "{{ bos_token }}{% for"),
        ("llama2", "bos_token + ", ""),
        ("zephyr", "{% for", "{{ bos_token }}{% for"),
        # a default system message, or text beside a given one
        ("chatml", "{% for", SET_DEFAULT + "{% for"),
        ("chatml", "{% for", "{{ '<|im_start|>system\\nAlways.<|im_end|>\\n' }}{% for"),
        ("chatml", "{% for", SET_DEFAULT.replace("You are", "You're") + "{% for"),
        ("llama3", "{% for", SET_LLAMA3 + "{% for"),
        ("llama2", "{% set system = '' %}", "{% set system = '<<SYS>>\\nBe kind.\\n<</SYS>>\\n\\n' %}"),
        # trim
        ("llama3", " | trim", ""),
        ("llama3", " | trim", ".lstrip()"),
        ("chatml", "message['content']", "message['content'] | trim"),
        ("llama2", " | trim + ' [/INST]'", " + ' [/INST]'"),
        ("zephyr", "message['content']", "message['content'].strip()"),
        # newlines
        ("llama3", "<|end_header_id|>\\n\\n", "<|end_header_id|>\\n"),
        ("chatml", "<|im_end|>\\n", "<|im_end|>"),
        ("chatml", "assistant\\n", "assistant"),
        ("zephyr", "eos_token }}\n{% else", "eos_token }}{% else"),
        # the end of a turn
        ("llama3", "<|eot_id|>", "<|end_of_text|>"),
        ("chatml", "message['content'] + '<|im_end|>", "message['content'] + '<|im_start|>"),
        ("llama2", " + ' ' + eos_token", " + eos_token"),
        ("zephyr", " + eos_token", ""),
        # text after the assistant's header
        ("llama3", "assistant<|end_header_id|>\\n\\n", "assistant<|end_header_id|>\\n\\nSure! "),
        ("chatml", "assistant\\n", "assistant\\n<think>\\n\\n</think>\\n\\n"),
        ("zephyr", "'<|assistant|>'", "'<|assistant|> '"),
        # what is done to texts and turns
        ("chatml", "message['content']", "message['content'].split('</think>')[-1]"),
        ("chatml", "message['content']", "message['content'] | escape"),
        ("chatml", "message['content']", "message['content'] | upper"),
        ("chatml", "in messages", "in messages[-3:]"),
        ("chatml", "in messages", "in messages | rejectattr('role', 'equalto', 'system')"),
        ("llama3", "message['role']", "message['role'] | capitalize"),
        ("llama2", "<<SYS>>\\n", "<<SYS>> "),
        # what can't be rendered
        ("chatml", "{% endfor %}", ""),
        ("chatml", "message['content']", "message['content'] + 3"),
        ("llama3", "{% for", "{{ raise_exception('no') }}{% for"),
        ("llama3", "{% for", "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for"),
    ],
)
def test_a_template_that_makes_something_else_is_refused(tmp_path, family, old, new):
    assert old in STANDARD[family]
    with pytest.raises(UserError, match=r"the chat template (is not \w+'s|is none of|can't be rendered)") as error:
        load(tmp_path, family, STANDARD[family].replace(old, new), eos_token="</s>")
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_the_texts_of_special_tokens_are_the_files_own(tmp_path):
    for texts in ({"bos_token": None}, {"bos_token": "<s>"}, {"bos_token": {"content": "x"}}, {"bos_token": 3}):
        with pytest.raises(UserError, match="the chat template is not llama3's"):
            load(tmp_path, "llama3", LLAMA3_TEMPLATE, **texts)
    load(tmp_path, "llama3", LLAMA3_TEMPLATE, bos_token={"content": LLAMA3[0], "special": True})


LLAMA3_PUBLISHED = (  # the same texts as Meta's first template for Llama 3 makes
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
)
CHATML_IN_LINES = """{%- for message in messages %}
    {%- if loop.first and message.role != "system" %}
        {{- "<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n" }}
    {%- endif %}
    {{- "<|im_start|>" ~ message.role ~ "\\n" ~ message.content ~ "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt and tools is none %}
    {{- "<|im_start|>assistant\\n" }}
{%- endif %}
"""
LLAMA2_PUBLISHED = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set turns = messages %}{% set system = false %}{% endif %}{% for message in turns %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}"
    "{% endif %}{% if loop.index0 == 0 and system != false %}{% set content = '<<SYS>>\\n' + system + "
    "'\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR_PUBLISHED = """{% for message in messages %}
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


@pytest.mark.parametrize(
    ("family", "template"),
    [("llama3", LLAMA3_PUBLISHED), ("llama2", LLAMA2_PUBLISHED), ("zephyr", ZEPHYR_PUBLISHED)],
)
def test_other_spellings_make_the_same_ids(tmp_path, family, template):
    (tmp_path / "ours").mkdir()
    ours, theirs = load(tmp_path / "ours", family, STANDARD[family]), load(tmp_path, family, template)
    for dialog in ([USER], [SYSTEM, USER], [SYSTEM, USER, {"role": "assistant", "content": " Yes. "}, USER]):
        assert ours.prompt_ids(dialog) == theirs.prompt_ids(dialog)


def test_chatml_with_a_default_in_lines(tmp_path):
    chat = load(tmp_path, "chatml", CHATML_IN_LINES)
    turn = "<|im_start|>user\n  Hi {x} \n<|im_end|>\n<|im_start|>assistant\n"
    assert shown(chat, chat.prompt_ids([USER])) == (
        f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{turn}"
    )
    assert shown(chat, chat.prompt_ids([SYSTEM, USER])) == f"<|im_start|>system\n Be brief.<|im_end|>\n{turn}"


LLAMA31 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
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


def test_llama31s_dates_are_in_the_prompt(tmp_path):
    """Of the day that the template names for where there is no clock, as in Meta's own files."""
    chat = load(tmp_path, "llama3", LLAMA31)
    for dialog, own in (([USER], ""), ([SYSTEM, USER], "Be brief.")):
        assert shown(chat, chat.prompt_ids(dialog)) == (
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
            f"Today Date: 26 Jul 2024\n\n{own}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi {{x}}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        )


def test_of_named_templates_the_default_counts(tmp_path):
    """As in transformers, without tools."""
    default, other = {"name": "default", "template": CHATML_TEMPLATE}, {"name": "tool_use", "template": "x"}
    chat = load(tmp_path, "chatml", [other, default])
    assert shown(chat, chat.prompt_ids([USER])).startswith("<|im_start|>user\n")
    for rows in ([other], [], ["x"], [{"name": "default"}], [{"name": "default", "template": 3}], [[default]], 3, {}):
        with pytest.raises(UserError, match=r"tokenizer_config\.json: no chat_template"):
            load(tmp_path, "chatml", rows)
    with pytest.raises(UserError, match="the chat template is not chatml's"):
        load(tmp_path, "chatml", [default | {"template": CHATML_TEMPLATE.replace("\\n", " ")}])


def test_a_template_file_goes_before_the_config(tmp_path):
    (tmp_path / "chat_template.jinja").write_text(CHATML_TEMPLATE)
    load(tmp_path, "chatml", "anything")
    (tmp_path / "chat_template.jinja").write_text(CHATML_TEMPLATE + " ")
    with pytest.raises(UserError, match="the chat template is not chatml's"):
        load(tmp_path, "chatml", CHATML_TEMPLATE)
