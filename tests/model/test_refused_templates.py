"""Chat templates that can't be used are errors of one line; where a template comes from, and what it is given."""

import json

import pytest
from test_chat import CHATML, CHATML_TEMPLATE, SYSTEM, USER, folder, shown

from model.chat import load_chat
from stages.command import UserError


def load(path, template, **texts):
    config = folder(path, CHATML, "", 257) / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": template} | texts))
    return load_chat(path)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("{% endfor %}", "", "can't be rendered .*TemplateSyntaxError"),
        ("message['content']", "message['content'] + 3", "can't be rendered .*TypeError"),
        ("{% for", "{{ raise_exception('no') }}{% for", r"can't be rendered \(TemplateError\('no'\)\)"),
        ("{% for", "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for", "can't be rendered .*unsafe"),
        ("{% for", "{{ ['a', 'b'] | random }}{% for", "can't be rendered .*random"),
        ("{% for", "{{ lipsum() }}{% for", "can't be rendered .*lipsum"),
        # an answer without an end, without a beginning, without itself
        ("<|im_end|>", "", r"writes '' before an answer and '\\n<\|im_start\|>assistant\\n' after it"),
        ("<|im_end|>", "</s>", r"writes '' before an answer and '</s>\\n<\|im_start"),
        ("message['content'] + ", "message['content'] + ' Bye.' + ", "writes '' before an answer and ' Bye.<"),
        ("if add_generation_prompt", "if false", r"writes '<\|im_start\|>assistant\\n' before an answer"),
        (
            "in messages",
            "in messages | rejectattr('role', 'equalto', 'assistant')",
            "writes '' before an answer and '<",
        ),
        ("message['content']", "message['content'] | urlencode", "writes '' before an answer and '<"),
    ],
)
def test_a_template_that_can_t_be_used_is_one_line(tmp_path, old, new, complaint):
    assert old in CHATML_TEMPLATE
    with pytest.raises(UserError, match=f"^{tmp_path}/tokenizer_config.json: the chat template {complaint}") as error:
        load(tmp_path, CHATML_TEMPLATE.replace(old, new))
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


NESTED = "{% for i in range(1000) %}" * 4 + "{% endfor %}" * 4
MACRO = "{% macro f(n) %}{% if n < 40 %}{{ f(n + 1) }}{{ f(n + 1) }}{% endif %}{% endmacro %}{{ f(0) }}"


@pytest.mark.parametrize(
    ("endless", "complaint"),
    [
        (NESTED, "more than 30000 steps"),
        (NESTED.replace("range(1000)", "(messages[0].content * 1000)"), "more than 30000 steps"),
        (NESTED.replace("{% endfor %}", "{{ 'x'.strip() }}{% endfor %}"), "more than 30000 steps"),
        (MACRO, "more than 30000 steps"),
        ("{% for i in [[1, 2]] recursive %}{{ loop([i, i]) }}{% endfor %}", "RecursionError|steps|depth"),
        ("{{ range(10 ** 9) | list | length }}", "a number above 30000"),
        ("{{ [1] | slice(10 ** 12) | map('length') | sum }}", "a number above 30000"),
        ("{{ [1] | batch(10 ** 12, 'x') | list }}", "a number above 30000"),
        ("{{ 'x'.ljust(10 ** 12) }}", "a number above 30000"),
        ("{{ 'x' * 10 ** 10 }}", "a factor above 30000"),
        ("{{ 9 ** 9 ** 9 }}", "a factor above 30000"),
    ],
)
def test_a_template_ends(tmp_path, endless, complaint):
    with pytest.raises(UserError, match=f"the chat template can't be rendered .*({complaint})"):
        load(tmp_path, endless + CHATML_TEMPLATE)


def test_a_long_dialog_is_no_endless_template(tmp_path):
    chat = load(
        tmp_path,
        CHATML_TEMPLATE.replace("{% for", "{% for m in messages %}{{ m.role.strip() and '' }}{% endfor %}{% for"),
    )
    assert chat.prompt_ids([USER, {"role": "assistant", "content": "x"}] * 2000 + [USER]).count(256) == 4002


def test_the_clock_stands_still(tmp_path):
    """At the day that Llama 3.1's template names for where there is no clock."""
    chat = load(tmp_path, "{{ strftime_now('%d %b %Y %H:%M') }}" + CHATML_TEMPLATE)
    assert shown(chat, chat.prompt_ids([USER])).startswith("26 Jul 2024 00:00<|im_start|>user\n")


def test_a_template_is_given_what_transformers_gives_it(tmp_path):
    """The special tokens that the config has; no tools, no documents, no thinking; filters of its own."""
    given = (
        "{{ [bos_token, unk_token is defined, tools, documents, enable_thinking, add_bos_token is defined] | tojson }}"
    )
    chat = load(
        tmp_path, given + CHATML_TEMPLATE, bos_token={"content": "<|im_end|>"}, unk_token=None, add_bos_token=True
    )
    start = '["<|im_end|>", false, null, null, false, false]<|im_start|>user\n'
    assert shown(chat, chat.prompt_ids([USER])).startswith(start)
    for wrong in (3, ["x"], {"content": None}, {}):
        with pytest.raises(UserError, match=r"tokenizer_config\.json: the special tokens are .*; they must be texts"):
            load(tmp_path, CHATML_TEMPLATE, bos_token=wrong)


def test_blocks_for_other_programs_write_their_text(tmp_path):
    template = CHATML_TEMPLATE.replace("{{ '<|im_start|>' +", "{% generation %}{{ '<|im_start|>' +")
    chat = load(
        tmp_path,
        template.replace("{% endfor %}", "{% endgeneration %}{% if loop.last %}{% break %}{% endif %}{% endfor %}"),
    )
    assert chat.prompt_ids([SYSTEM, USER]) == load(tmp_path, CHATML_TEMPLATE).prompt_ids([SYSTEM, USER])


def test_of_named_templates_the_default_counts(tmp_path):
    """As in transformers, without tools."""
    default, other = {"name": "default", "template": CHATML_TEMPLATE}, {"name": "tool_use", "template": "x"}
    chat = load(tmp_path, [other, default])
    assert shown(chat, chat.prompt_ids([USER])).startswith("<|im_start|>user\n")
    for rows in ([other], [], ["x"], [{"name": "default"}], [{"name": "default", "template": 3}], [[default]], 3, {}):
        with pytest.raises(UserError, match=r"tokenizer_config\.json: no chat_template"):
            load(tmp_path, rows)


def test_a_template_file_goes_before_the_config(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("#" + CHATML_TEMPLATE)
    chat = load(tmp_path, "anything")
    assert shown(chat, chat.prompt_ids([USER])).startswith("#<|im_start|>user\n")
    (tmp_path / "chat_template.jinja").write_text("{% for")
    with pytest.raises(UserError, match=r"chat_template\.jinja: the chat template can't be rendered"):
        load(tmp_path, CHATML_TEMPLATE)


def test_special_tokens_of_other_places_are_given_to_the_template(tmp_path):
    """As transformers does: an older file's, a LlamaTokenizer's own, those that the config names in addition."""
    template = "{{ bos_token }}{{ turn_token }}" + CHATML_TEMPLATE
    for beside, config, start in (
        ({"bos_token": {"content": "<|im_end|>"}}, {}, "<|im_end|><|im_start|>user"),
        ({"bos_token": "<|im_end|>"}, {"bos_token": None}, "<|im_start|>user"),
        ({"bos_token": "<|im_end|>"}, {"added_tokens_decoder": {}}, "<|im_start|>user"),
        ({}, {"extra_special_tokens": {"turn_token": "<|im_end|>"}}, "<|im_end|><|im_start|>user"),
    ):
        place = folder(tmp_path, CHATML, "", 257)
        (place / "tokenizer_config.json").write_text(json.dumps({"chat_template": template} | config))
        (place / "special_tokens_map.json").write_text(json.dumps(beside))
        chat = load_chat(place)
        assert shown(chat, chat.prompt_ids([USER])).startswith(start)
    config = {"chat_template": template, "tokenizer_class": "LlamaTokenizer"}
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    (place / "special_tokens_map.json").unlink()
    with pytest.raises(UserError, match=r"token '<s>', which the chat template writes, .* gives it none"):
        load_chat(place)


@pytest.mark.parametrize(
    "config",
    [
        {"added_tokens_decoder": {"258": {"content": "<|r|>", "special": True}}},
        {"additional_special_tokens": ["<|r|>"]},
        {"bos_token": "<|r|>"},
        {"added_tokens_decoder": {"7": {"content": "<|im_end|>"}}},
        {"added_tokens_decoder": {"x": {"content": "<|im_end|>"}}},
        {"legacy": "false"},
    ],
)
def test_tokens_that_a_file_declares_otherwise_are_named(tmp_path, config):
    """Those that the template writes; others are never in a dialog."""
    with pytest.raises(
        UserError, match=r"token '<\|(r|im_end)\|>', which the|tokenizer_config\.json: (its tokens|legacy)"
    ):
        load(tmp_path, "{{ '<|r|>' }}" + CHATML_TEMPLATE, **config)
    load(tmp_path, CHATML_TEMPLATE, added_tokens_decoder={"300": {"content": "<|r|>"}}, pad_token="[PAD]")


@pytest.mark.parametrize(
    "rows", [[{"name": [], "template": "x"}], [{"name": {"a": 1}, "template": "x"}], [["default", "x"]]]
)
def test_templates_with_names_of_another_kind_are_none(tmp_path, rows):
    with pytest.raises(UserError, match=r"config\.json: no chat_template"):
        load(tmp_path, rows)
