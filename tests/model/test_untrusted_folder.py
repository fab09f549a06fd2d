"""What a model's folder from a stranger can not do: have files outside it read or copied, or take the machine."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_chat import CHATML, CHATML_TEMPLATE
from test_chat import folder as chat_folder

from model.chat import load_chat
from model.config import LlamaConfig
from model.weights import INDEX, SINGLE, load_model, save_pretrained
from stages.command import UserError

FIXTURE = Path(__file__).parents[1] / "fixtures" / "llama32"


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "model"))


@pytest.mark.parametrize(
    "name", ["tokenizer.model", "vocab.json", "tokenizer_notes.txt", SINGLE, "config.json", "other"]
)
@pytest.mark.parametrize("target", ["../secret", "absolute", "chain"])
def test_a_link_out_of_the_folder_is_refused(folder, tmp_path, name, target):
    """Before anything is computed; and again where files are copied into a checkpoint."""
    model = load_model(folder, torch.float32)
    secret = tmp_path / "secret"
    (folder / name).rename(secret) if (folder / name).exists() else secret.write_text("secret")
    (tmp_path / "link").symlink_to(secret)
    (folder / name).symlink_to({"absolute": secret, "chain": tmp_path / "link"}.get(target, target))
    for use in (
        lambda: LlamaConfig.load(folder),
        lambda: load_model(folder, torch.float32),
        lambda: save_pretrained(model.named_parameters(), model.config, folder, tmp_path / "out"),
    ):
        with pytest.raises(UserError, match=rf"model/{name}: a link out of the model's folder"):
            use()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_link_is_refused_before_it_is_read(tmp_path, name):
    (tmp_path / "model").mkdir()
    place = chat_folder(tmp_path / "model", CHATML, CHATML_TEMPLATE, 257)
    (tmp_path / "secret").write_text("no JSON")
    (place / name).unlink()
    (place / name).symlink_to("../secret")
    with pytest.raises(UserError, match=rf"model/{name}: a link out of the model's folder"):
        load_chat(place)


def test_links_within_the_folder_and_to_the_cache_are_files(folder, tmp_path):
    """Hugging Face's cache: models--NAME/snapshots/REVISION/FILE is a link to models--NAME/blobs/DIGEST."""
    (folder / SINGLE).rename(folder / "weights")
    (folder / SINGLE).symlink_to("weights")
    (tmp_path / "linked").symlink_to(folder)
    expected = list(load_model(tmp_path / "linked", torch.float32).parameters())
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, name in enumerate((SINGLE, "config.json")):
        shutil.copy(folder / name, blobs / f"{number}")
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    assert all(map(torch.equal, load_model(snapshot, torch.float32).parameters(), expected))
    (snapshot / "vocab.json").symlink_to("../../../secret")
    with pytest.raises(UserError, match=r"vocab\.json: a link out"):
        load_model(snapshot, torch.float32)
    (tmp_path / "other" / "blobs").mkdir(parents=True)
    shutil.copy(folder / "config.json", tmp_path / "other" / "blobs" / "2")
    (snapshot / "vocab.json").unlink()
    (snapshot / "vocab.json").symlink_to(tmp_path / "other" / "blobs" / "2")  # another cache's
    with pytest.raises(UserError, match=r"vocab\.json: a link out"):
        load_model(snapshot, torch.float32)


def test_a_link_to_itself_is_refused(folder):
    (folder / "vocab.json").symlink_to("vocab.json")
    assert load_model(folder, torch.float32) is not None, "it is no file, and inside the folder"


@pytest.mark.parametrize(
    "place", ["../secret.safetensors", "/secret", "a/b.safetensors", "..", ".", "", "a\nb", "\0", 3.5, []]
)
def test_the_index_names_files_of_the_folder_alone(folder, tmp_path, place):
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    save_file(tensors, tmp_path / "secret.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, place)}))
    with pytest.raises(UserError, match=r"index\.json: its weight_map is no table|3\.5: no such file"):
        load_model(folder, torch.float32)


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_hidden_layers": 10**7},
        {"num_hidden_layers": 256},
        {"vocab_size": 2**24, "hidden_size": 2**20},
        {"intermediate_size": 2**24},
        {"head_dim": 2**24},
        {"vocab_size": 10**12},
    ],
    ids=str,
)
def test_sizes_beyond_the_weights_are_refused_before_they_take_memory(folder, sizes):
    """The weights of some would take terabytes."""
    table = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(table | sizes))
    started = time.monotonic()
    with pytest.raises(UserError, match=r"config\.json"):
        load_model(folder, torch.float32)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch owned') }}",
        "{% include '/etc/passwd' %}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ messages.append(1) }}",
    ],
)
def test_a_template_has_no_python(tmp_path, monkeypatch, attack):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="the chat template can't be rendered"):
        load_chat(chat_folder(tmp_path, CHATML, attack + CHATML_TEMPLATE, []))
    assert not (tmp_path / "owned").exists()
