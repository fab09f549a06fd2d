"""Each file of a model, damaged in each way: one line that names the file, or its folder, and no hang."""

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from meta_layout import tiktoken_file
from safetensors.torch import load_file, save_file
from test_chat import CHATML, CHATML_TEMPLATE, ZEPHYR_TEMPLATE, folder, pieces
from training import make_model

import model.weights
from model.chat import load_chat
from model.weights import INDEX, SINGLE, load_model
from prepare.meta import LLAMA3_TEMPLATE
from stages.command import UserError

JSON = ["config.json", "generation_config.json", "tokenizer_config.json", INDEX, "tokenizer.json"]
FILES = [*JSON, SINGLE, "model-00002-of-00003.safetensors", "chat_template.jinja", "pieces/tokenizer.model"]
FILES += ["ranks/tokenizer.model"]

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda content: b"",
    "cut to 7 bytes": lambda content: content[:7],
    "cut in half": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "bytes that are no text": lambda content: b"\xff\xfe" + content,
    "turned round": lambda content: content[::-1],
}
TEXTS = {
    "a list": "[]",
    "a text": '"x"',
    "null": "null",
    "5,000 digits": '{"vocab_size": 1' + "0" * 5000 + "}",
    "a float of 5,000 digits": '{"vocab_size": N, "eos_token_id": N, "chat_template": N}'.replace(
        "N", "9" * 5000 + ".0"
    ),
    "deep lists": "[" * 100_000,
    "deep tables": '{"a":' * 100_000,
    "half a surrogate pair": '{"chat_template": "\\ud800"}',
    "nan": '{"vocab_size": NaN}',
    "two documents": "{}{}",
}
ODD = [None, True, -1, 0, 1.5, 10**9, 10**30, "", "x", "a\nb", [], {}, [1], {"a": 1}, [[[]]], -(10**12)]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Whole folders: with one file of weights, with shards, with sentencepiece's tokenizer, with Meta's."""
    base = tmp_path_factory.mktemp("whole")
    made = {"": folder(make_model(base / "single"), CHATML, CHATML_TEMPLATE, [])}
    table = json.loads((made[""] / "config.json").read_text()) | {"vocab_size": 640}
    (made[""] / "config.json").write_text(json.dumps(table))
    weights = load_file(made[""] / SINGLE)
    weights["model.embed_tokens.weight"] = torch.zeros(640, 32)
    save_file(weights, made[""] / SINGLE)
    (made[""] / "chat_template.jinja").write_text(CHATML_TEMPLATE)
    for name, template in (("pieces", ZEPHYR_TEMPLATE), ("ranks", LLAMA3_TEMPLATE)):
        made[name] = Path(shutil.copytree(made[""], base / name))
        (made[name] / "tokenizer.json").unlink()
        (made[name] / "chat_template.jinja").unlink()
        pieces(made[name], template)
    tiktoken_file(made["ranks"] / "tokenizer.model")
    config = {"chat_template": LLAMA3_TEMPLATE, "bos_token": "<|begin_of_text|>"}
    (made["ranks"] / "tokenizer_config.json").write_text(json.dumps(config))
    made["shards"] = Path(shutil.copytree(made[""], base / "shards"))
    (made["shards"] / SINGLE).unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.weights, "SHARD_BYTES", 50_000)
        model.weights.write_tensors(weights.items(), made["shards"])
    for place in made.values():
        use(place)
    return made


def use(place: Path) -> None:
    """What a stage does with a model's folder before it computes."""
    chat = load_chat(place)
    chat.prompt_ids([{"role": "user", "content": "Hello é 漢字 <|im_end|>\n"}])
    chat.text(chat.completion_ids("Score: 5\n"))
    load_model(place, torch.float32)


def damaged(models: dict[str, Path], tmp_path: Path, file: str) -> Path:
    """The damaged file, in a copy of the folder that has it."""
    kind, _, name = file.rpartition("/")
    kind = kind or ("shards" if name == INDEX or name.startswith("model-") else "")
    path = Path(shutil.copytree(models[kind], tmp_path / "model")) / name
    if name == "tokenizer_config.json":  # then the template is read from there
        (path.parent / "chat_template.jinja").unlink()
    return path


def check(path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        use(path.parent)
    assert str(path.parent) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 2000
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_one_line(models, tmp_path, file, damage):
    path = damaged(models, tmp_path, file)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    check(path)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("file", JSON)
def test_json_that_is_no_table_of_what_is_needed_is_one_line(models, tmp_path, file, text):
    path = damaged(models, tmp_path, file)
    path.write_text(TEXTS[text])
    check(path)


@pytest.mark.parametrize("file", [*JSON, "chat_template.jinja"])
def test_a_byte_order_mark_is_no_damage(models, tmp_path, file):
    path = damaged(models, tmp_path, file)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    use(path.parent)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("gone", ["missing", "a folder"])
def test_a_file_that_is_no_file_is_one_line(models, tmp_path, file, gone):
    path = damaged(models, tmp_path, file)
    path.unlink()
    if gone == "a folder":
        path.mkdir()
    if path.name in ("generation_config.json", "chat_template.jinja"):  # which models may lack
        use(path.parent)
    else:
        check(path)


def places(value, path=()) -> list[tuple]:
    """The places of all values in a JSON value, of long lists the first."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


@pytest.mark.parametrize("file", FILES)
def test_a_file_with_changes_is_used_or_one_line(models, tmp_path, file):
    """Seeded changes of bytes, and in JSON of values; what is read then is a whole model."""
    path, draw = damaged(models, tmp_path, file), random.Random(file)
    whole = path.read_bytes()
    table = json.loads(whole) if path.suffix == ".json" else None
    for _ in range(40):
        content = bytearray(whole)
        if table is not None and draw.random() < 0.6:
            changed = json.loads(whole)
            (*way, last), inner = draw.choice(places(table)[1:]), changed
            for key in way:
                inner = inner[key]
            inner[last] = draw.choice(ODD)
            content = bytearray(json.dumps(changed).encode())
        else:
            for _ in range(draw.randint(1, 3)):
                at = draw.randrange(min(len(content), draw.choice((100, 1000, len(content)))))
                content[at : at + draw.randint(0, 8)] = draw.randbytes(draw.randint(0, 8))
        path.write_bytes(content)
        started = time.monotonic()
        try:
            use(path.parent)
        except UserError as error:
            assert str(path.parent) in str(error) and "\n" not in str(error)
        assert time.monotonic() - started < 10
