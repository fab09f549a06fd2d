"""Ids of dialogs against transformers' `apply_chat_template`: `make test-peers`."""

import json
from datetime import date

import pytest
from chat_templates import CASES, DIALOGS, write
from meta_layout import sentencepiece_file

from model.chat import load_chat
from stages.command import UserError

pytestmark = pytest.mark.peers


def compare(folder, **given) -> int:
    """Compare dialogs' ids; returns how many dialogs the template refuses."""
    transformers = pytest.importorskip("transformers")
    tokenizer, chat, refused = transformers.AutoTokenizer.from_pretrained(folder), load_chat(folder), 0
    for messages in DIALOGS:
        try:
            ids = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, enable_thinking=False, return_dict=False, **given
            )
        except Exception as error:
            with pytest.raises(UserError, match=str(error)[:20]):
                chat.prompt_ids(messages)
            refused += 1
        else:
            assert chat.prompt_ids(messages) == ids, messages
    return refused


@pytest.mark.parametrize("name", CASES)
def test_prompts_equal_transformers(tmp_path, name):
    refused = compare(write(tmp_path / name, name), date_string=date(2024, 7, 26).strftime("%d %b %Y"))
    assert refused == (3 if name in ("gemma", "mistral-v0.1") else 0)


@pytest.mark.parametrize("legacy", [True, False, None])
@pytest.mark.parametrize(
    "name", ["llama2", "llama2-first", "zephyr", "mistral-v0.2", "chatml-all", "vicuna", "openchat"]
)
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer.model"])
def test_llamas_tokenizer_begins_texts_with_spaces_as_its_config_says(tmp_path, name, legacy, file):
    """After a control token only with "legacy", whatever the file has."""
    folder = write(tmp_path / name, name)
    if file == "tokenizer.model":
        (folder / "tokenizer.json").unlink()
        texts = ["the cat sat on the mat", "Hello INST user assistant Score: be brief"] * 20
        symbols = [token for token in CASES[name].special if token not in ("<unk>", "<s>", "</s>")]
        sentencepiece_file(folder / file, texts, 310, control_symbols=symbols)
    table = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": "LlamaTokenizer"}
    table |= {} if legacy is None else {"legacy": legacy}
    (folder / "tokenizer_config.json").write_text(json.dumps(table))
    assert compare(folder) == 0
