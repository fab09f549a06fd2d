"""Text of any file that is damaged: one line that names the file, from each of the functions through which files are
read; a byte order mark is no damage."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from judging.trace import find
from prepare.sft_delta import read_facts
from stages.command import UserError, command
from stages.files import read_json, read_jsonl, read_manifest
from stages.settings import load_settings

CONFIG = 'name = "n"\niteration = []\n[model]\npath = "m"\n[respond]\nprompts_per_iteration = 1\n'
DEEP, LONG = "[" * 100_000, "9" * 5000
JSON = {
    "empty": b"",
    "truncated": b'{"id": "a", "text',
    "a list": b'["id", "text"]',
    "a number": b"7",
    "not UTF-8": b'{"id": "caf\xe9"}',
    "UTF-16": '{"id": "a"}'.encode("utf-16"),
    "binary": bytes(range(256)),
    "deep": f'{{"id": {DEEP}'.encode(),
    "long number": f'{{"id": {LONG}}}'.encode(),
    "half a pair": rb'{"id": "\ud83d"}',
    "half a pair in capitals": rb'{"id": [{"a": "\uDE00 b"}]}',
    "half a pair as a key": rb'{"\ud83d": 1}',
}
TOML = {
    "empty": b"",
    "truncated": CONFIG.encode()[:-20],
    "a list for a table": CONFIG.replace("[respond]", "[[respond]]").encode(),
    "a text for a table": f'respond = "K"\n{CONFIG[: CONFIG.index("[respond]")]}'.encode(),
    "a table for a text": CONFIG.replace('path = "m"', "path = {}").encode(),
    "not UTF-8": CONFIG.replace('"n"', '"é"').encode("latin-1"),
    "UTF-16": CONFIG.encode("utf-16"),
    "binary": bytes(range(256)),
    "deep": f"seed = {DEEP}\n{CONFIG}".encode(),
    "long number": f"seed = {LONG}\n{CONFIG}".encode(),
    "half a pair": CONFIG.replace('"n"', r'"\ud83d"').encode(),
    "nothing finite": CONFIG.replace("[model]", "[sft]\nlearning_rate = nan\n[model]").encode(),
}


def in_run(path: Path) -> Any:
    """The row "a" of a run's prompts, as the trace looks for it."""
    folder = path.parent / "run" / "iter1"
    folder.mkdir(parents=True, exist_ok=True)
    return find(folder.parent, "a", str(path))


def facts_beside(path: Path) -> Any:
    path.with_suffix(".safetensors").touch()
    return read_facts(path.with_suffix(".safetensors"))


READERS: dict[str, Callable[[Path], Any]] = {
    "file.json": read_json,
    "facts.json": facts_beside,
    "manifest.json": lambda path: read_manifest(path.parent),
    "file.jsonl": lambda path: list(read_jsonl(path, ("id",))) or read_json(path),  # an empty file has no rows
    "file.jsonl.gz": lambda path: list(read_jsonl(path, ("id",))) or read_json(path),
    "list.json": lambda path: list(read_jsonl(path)),
}


def complaint(read: Callable[[Path], Any], path: Path, content: bytes, capsys) -> str:
    """The only line that a command prints which reads this content."""
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" and content else content)
    with pytest.raises(SystemExit) as ended:
        command(lambda: read(path))
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and out == "" and err.count("\n") == 1
    return err


@pytest.mark.parametrize("damage", JSON)
@pytest.mark.parametrize("name", READERS)
def test_damaged_json_is_one_line_that_names_the_file(tmp_path, capsys, name, damage):
    assert complaint(READERS[name], tmp_path / name, JSON[damage], capsys).startswith(f"error: {tmp_path / name}")


@pytest.mark.parametrize("damage", TOML)
def test_a_damaged_config_is_one_line_that_names_the_file(tmp_path, capsys, damage):
    path = tmp_path / "config.toml"
    assert complaint(load_settings, path, TOML[damage], capsys).startswith(f"error: {path}: ")


@pytest.mark.parametrize("cut", [9, 30, -1])
def test_a_damaged_archive_is_one_line_that_names_the_file(tmp_path, cut):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"id": 1}\n' * 9)[:cut])
    with pytest.raises(UserError, match=f"{path}.*damaged"):
        list(read_jsonl(path))


def test_the_line_of_a_damaged_row_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "a"}\n{"id": "\\ud83d"}\n')
    with pytest.raises(UserError, match=f"^{path}, line 2: not JSON .*; mend or remove the line$"):
        list(read_jsonl(path))
    path.write_bytes(b'{"text": "a"}\n')
    with pytest.raises(UserError, match=f"^{path}, line 1: key 'id' is missing"):
        in_run(path)


def test_a_byte_order_mark_and_whole_pairs_are_read(tmp_path):
    (tmp_path / "c.toml").write_bytes(CONFIG.encode("utf-8-sig"))
    assert load_settings(tmp_path / "c.toml").name == "n"
    for name, read in (("a.json", read_json), ("a.jsonl", lambda path: next(read_jsonl(path)))):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + rb'{"id": "\ud83d\uDE00 \\ud83d"}')
        assert read(tmp_path / name) == {"id": "😀 \\ud83d"}
