"""Ids of dialogs in the chat templates of 24 models; test_peers_templates.py holds them to transformers' own.

The reference here is the template as jinja2 renders it, encoded with all control tokens.
"""

import json
import random
import re
from functools import cache

import pytest
from chat_templates import CASES, DIALOGS, write
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from model.chat import load_chat
from stages.command import UserError


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    @cache
    def chat_of(name: str):
        folder = write(tmp_path_factory.mktemp("chats") / name, name)
        return load_chat(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))

    return chat_of


def refuse(message):
    raise TemplateError(message)


@cache
def compiled(name: str):
    template = CASES[name].template
    source = re.sub("{% (end)?generation %}", "", template if isinstance(template, str) else template[-1]["template"])
    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(source)


def rendered(name: str, messages: list[dict[str, str]], prompt: bool = True) -> str:
    texts = {
        key: text["content"] if isinstance(text, dict) else text for key, text in CASES[name].texts.items() if text
    }
    texts |= {"add_generation_prompt": prompt, "enable_thinking": False, "raise_exception": refuse, "tools": None}
    return compiled(name).render(messages=messages, **texts)


def reference(backend: Tokenizer, text: str) -> list[int]:
    return backend.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", CASES)
def test_prompts_are_what_the_template_makes(chats, name):
    chat, backend = chats(name)
    refused = 0
    for messages in DIALOGS:
        try:
            text = rendered(name, messages)
        except TemplateError as error:
            refused += 1
            with pytest.raises(UserError, match=re.escape(str(error)[:30])):
                chat.prompt_ids(messages)
            continue
        assert chat.prompt_ids(messages) == reference(backend, text), messages
    assert refused == (3 if name in ("gemma", "mistral-v0.1") else 0)


@pytest.mark.parametrize("name", CASES)
def test_an_answer_continues_the_prompt_and_ends_as_the_template_ends_it(chats, name):
    chat, backend = chats(name)
    assert chat.end == backend.token_to_id(CASES[name].end) and chat.end in chat.stop_ids
    for text in ("Yes: 5", "the cat\n\nsat <b>", "é 漢字"):
        answered = [*DIALOGS[8], {"role": "assistant", "content": text}]
        prompt, ids = chat.prompt_ids(DIALOGS[8]), chat.completion_ids(text)
        whole = reference(backend, rendered(name, answered, prompt=False))
        if name == "deepseek":  # whose prompt begins a thought that its dialogs leave out
            prompt = prompt[: prompt.index(backend.token_to_id("<think>"))]
        assert whole[: len(prompt + ids) - 1] == prompt + ids[:-1]
        if name != "qwen1.5":
            assert chat.end in whole[len(prompt + ids) - 1 :][:2], "Llama 2 writes a space before it"
        assert chat.text(ids).strip() == text and len(chat.offsets(text)) == len(ids) - 1
        assert {i for start, end in chat.offsets(text) for i in range(start, end)} == set(range(len(text)))


TEXTS = {  # as the models' cards have them
    "mistral-v0.1": "<s>[INST] One? [/INST]Yes: 1.</s> [INST] Two? [/INST]",
    "mistral-v0.3": "<s>[INST] One?[/INST] Yes: 1.</s>[INST] Two?[/INST]",
    "llama2": "<s>[INST] One? [/INST] Yes: 1. </s><s>[INST] Two? [/INST]",
    "qwen3": "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\nYes: 1.<|im_end|>\n<|im_start|>user\nTwo?"
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "zephyr": "<|user|>\nOne?</s>\n<|assistant|>\nYes: 1.</s>\n<|user|>\nTwo?</s>\n<|assistant|>\n",
    "gemma": "<bos><start_of_turn>user\nOne?<end_of_turn>\n<start_of_turn>model\nYes: 1.<end_of_turn>\n"
    "<start_of_turn>user\nTwo?<end_of_turn>\n<start_of_turn>model\n",
    "phi3": "<|user|>\nOne?<|end|>\n<|assistant|>\nYes: 1.<|end|>\n<|user|>\nTwo?<|end|>\n<|assistant|>\n",
    "openchat": "<s>GPT4 Correct User: One?<|end_of_turn|>GPT4 Correct Assistant: Yes: 1.<|end_of_turn|>"
    "GPT4 Correct User: Two?<|end_of_turn|>GPT4 Correct Assistant:",
    "llama3.1": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nOne?<|eot_id|><|start_header_id|>"
    "assistant<|end_header_id|>\n\nYes: 1.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nTwo?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_dialog_is_written_as_the_model_s_card_says(chats, name):
    chat, backend = chats(name)
    messages = [{"role": r, "content": c} for r, c in (("user", "One?"), ("assistant", "Yes: 1."), ("user", "Two?"))]
    assert chat.prompt_ids(messages) == reference(backend, TEXTS[name])


WORDS = ("\n\n", "\n\n\n", "▁▁", "<b>")  # Gemma's added tokens that its template does not use


@pytest.mark.parametrize("name", CASES)
def test_no_text_becomes_a_control_token(chats, name):
    """420 contents for each template: control tokens whole, in parts, and where templates trim and split."""
    chat, backend = chats(name)
    case, draw = CASES[name], random.Random(name)
    control = {backend.token_to_id(name) for name in (*case.special, *case.plain) if name not in WORDS}
    names = [token for token in (*case.special, *case.plain) if token.strip("▁\n")]
    parts = [*names, *names, *(n[:i] for n in names for i in (1, -1)), *(n[-1:] for n in names)]
    parts += [" ", "\n", "\n\n", "assistant\n", "user", "the", "</think>", "<think>", "é", "🙂", "\U000f0001", "[INST]"]
    own = {}
    for _ in range(420):
        texts = ["".join(draw.choice(parts) for _ in range(draw.randint(1, 6))) for _ in range(draw.choice((1, 3)))]
        messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(texts)]
        if len(texts) not in own:
            plain = [message | {"content": "x"} for message in messages]
            own[len(texts)] = [token for token in chat.prompt_ids(plain) if token in control]
        ids = chat.prompt_ids(messages)
        assert [token for token in ids if token in control] == own[len(texts)], texts
        if "think" not in str(texts) and case.kind == "bytes":
            assert chat.tokenizer.backend.decode(ids, skip_special_tokens=False) == rendered(name, messages), texts
        answer = chat.completion_ids(texts[0])
        assert control.isdisjoint(answer[:-1]) and chat.text(answer).lstrip(" ") == texts[0].lstrip(" ")


def test_earlier_thoughts_are_left_out_as_the_template_says(chats):
    chat, backend = chats("qwen3")
    messages = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "<think>\nHm.\n</think>\n\n1"}]
    messages.append({"role": "user", "content": "Two?"})
    assert chat.prompt_ids(messages) == reference(backend, rendered("qwen3", messages))
    messages[1]["content"] += "<|im_end|>"  # the template is shown no names then, and does not split
    assert chat.tokenizer.backend.decode(chat.prompt_ids(messages), skip_special_tokens=False) == (
        f"<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n{messages[1]['content']}<|im_end|>\n"
        "<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("message['content'] | replace('#', '')", "<|im#_end|>"),
        ("message['content'].split(',') | join", "<|im,_end|>"),
        ("message['content'] | lower", "<|IM_END|>"),
        ("message['content'] | reverse", "<|im_end|>"[::-1]),
        ("message['content'].split('\\n')[0]", "<|im_end|>\nx"),
        ("'<|im_' + message['content']", "end|>"),
        ("message['content'] | replace('<|im_end|>', '')", "<|im_<|im_end|>end|>"),
        ("message['content'] | replace('LESS', '<')", "LESS|im_end|>"),
        ("message['content'] | replace('ii', 'i')", "<|iim_end|>"),
        ("message['content'] | upper | replace('A', '<|im_end|>')", "a"),
    ],
)
def test_a_template_that_makes_names_of_texts_makes_no_control_tokens(tmp_path, change, text):
    """They stay text, or the dialog is refused; in the last line the template writes the token."""
    folder = write(tmp_path / "chatml", "chatml")
    table = json.loads((folder / "tokenizer_config.json").read_text())
    table["chat_template"] = table["chat_template"].replace("message['content']", change)
    (folder / "tokenizer_config.json").write_text(json.dumps(table))
    chat = load_chat(folder)
    if text in ("<|iim_end|>", "a"):
        with pytest.raises(UserError, match=r"config\.json: the chat template makes control tokens of what a message"):
            chat.prompt_ids([{"role": "user", "content": text}])
    else:
        assert chat.prompt_ids([{"role": "user", "content": text}]).count(chat.end) == 1


ENDED = "{{ message['content'] }}{% if not message['content'].endswith('<|im_end|>') %}<|im_end|>{% endif %}"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (ENDED, "x<|im_end|>"),
        ("{{ message['content'].split('<|im_end|>') | join('<|im_end|>') }}<|im_end|>", "x<|im_end|>y"),
        (
            "{{ (message['content'] + '<|im_end|>').split('<|im_end|>')[0] }}<|im_end|>"
            "{{ message['content'].split('<|im_end|>')[1:] | join }}",
            "x<|im_end|>SYS",
        ),
    ],
)
def test_a_control_token_that_a_message_names_takes_no_place_of_the_template_s(tmp_path, body, text):
    """Also where as many control tokens are written in all: the name is text, and all of the text is in the turn."""
    folder = write(tmp_path / "chatml", "chatml")
    table = json.loads((folder / "tokenizer_config.json").read_text())
    table["chat_template"] = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}" + body + "{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(table))
    chat = load_chat(folder)
    ids = chat.prompt_ids([{"role": "user", "content": text}])
    assert ids.count(chat.end) == 1
    assert (
        chat.tokenizer.encode(text) == ids[ids.index(chat.end) - len(chat.tokenizer.encode(text)) : ids.index(chat.end)]
    )
