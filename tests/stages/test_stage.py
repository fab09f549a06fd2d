"""stages/stage.py: a description gives key, command line and manifest; the documented example works."""

import json
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import judging
from stages.command import UserError
from stages.files import digest, read_manifest, write_jsonl, write_manifest
from stages.settings import Settings, load_settings
from stages.stage import Job, Output, Stage

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "tiny.toml"


def copy(job: Job) -> Output:
    """Copy a text."""
    return Output({"copy.json": job.path("text").read_text()}, {"counts": {"notes": len(job.paths("notes"))}})


def reads(settings: Settings, iteration: int) -> list[int]:
    return [settings.respond.K, iteration]


COPY = Stage("copy", "nowhere.copy", copy, reads, inputs=("text",), optional=("notes",), lists=("notes",))
SETTINGS = load_settings(CONFIG)


@pytest.fixture
def text(tmp_path) -> Path:
    (tmp_path / "text").write_text("words")
    return tmp_path / "text"


def test_a_job_is_done_once_by_the_first_rank_and_its_manifest_names_its_inputs(tmp_path, text, monkeypatch):
    job = COPY.job(SETTINGS, tmp_path / "out", text=text, notes=[text, text])
    monkeypatch.setenv("RANK", "1")
    COPY.run(job)
    assert not job.out.exists(), "a later rank has written"
    monkeypatch.delenv("RANK")
    COPY.run(job)
    manifest = read_manifest(job.out)
    assert (manifest["stage"], manifest["key"], manifest["counts"]) == ("copy", job.key, {"notes": 2})
    assert manifest["inputs"]["text"] == {"path": str(text), "digest": digest(text)}
    assert json.loads((job.out / "copy.json").read_text()) == "words" and manifest["seconds"] >= 0
    text.unlink()
    COPY.run(job)  # a complete job does not run again: it would miss its text


def test_the_command_line_gives_the_same_job_and_hashes_nothing(tmp_path, text):
    job = COPY.job(SETTINGS, tmp_path / "out", 2, text=text, notes=[text])
    words = COPY.arguments(CONFIG, job)
    other = replace(COPY, name="other").job(SETTINGS, tmp_path / "out", 2, text=text, notes=[text])
    assert len({COPY.job(SETTINGS, tmp_path, 2, text=text, notes=[text, *more]).key for more in ([], [text])}) == 2
    text.unlink()  # an input with a given digest is not read
    assert COPY.read_arguments(words) == job and other.key != job.key


def test_mistakes_are_named(tmp_path, text):
    job = COPY.job(SETTINGS, tmp_path / "out", 1, text=text)
    words = COPY.arguments(CONFIG, job)
    (tmp_path / "other.toml").write_text(f'extends = "{CONFIG}"\n[respond]\nK = 5\n')
    with pytest.raises(UserError, match=r"other\.toml: changed since the run was started; start it again"):
        COPY.read_arguments([word.replace(str(CONFIG), str(tmp_path / "other.toml")) for word in words])
    for more, complaint in (
        ([*words, "notes=0"], "--digests notes: inputs: text; mend or leave them out"),
        ([*words, "--digests", "txt=0"], "--digests txt: inputs: text"),
        ([*words[: words.index("--key")], *words[words.index("--key") + 2 :]], "--digests text: they need --key"),
    ):
        with pytest.raises(UserError, match=complaint):
            COPY.read_arguments(more)
    with pytest.raises(UserError, match="nothing: no such file or folder"):
        COPY.job(SETTINGS, tmp_path / "out", text=tmp_path / "nothing")
    with pytest.raises(UserError, match=r"--iteration 3: .*has iterations 1 to 2"):
        COPY.read_arguments(["--config", str(CONFIG), "--text", str(text), "--out", "o", "--iteration", "3"])


def test_the_documented_stage_runs(tmp_path, monkeypatch):
    """The example of docs/stages.md has at most 25 lines of code, and its command works."""
    source = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "stages.md").read_text(), re.DOTALL)[1]
    assert len([line for line in source.splitlines() if line.strip()]) <= 25
    (tmp_path / "judging").mkdir()
    (tmp_path / "judging" / "verbosity.py").write_text(source)
    rows = [{"text": "one two", "score": 3}, {"text": "one", "score": 3}, {"text": "none", "score": None}]
    shard = tmp_path / "judgments" / "shards" / "0.jsonl"
    write_jsonl(shard, rows)
    write_manifest(tmp_path / "judgments", "judge", "key", [shard], shards=["shards/0.jsonl"])
    words = ["--config", CONFIG, "--iteration", "1", "--judgments", tmp_path / "judgments", "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["verbosity", *map(str, words)])
    monkeypatch.setattr(judging, "__path__", [*judging.__path__, str(tmp_path / "judging")])
    runpy.run_module("judging.verbosity", run_name="__main__")
    assert json.loads((tmp_path / "out" / "words.json").read_text()) == {"3": 1.5}
    assert read_manifest(tmp_path / "out")["counts"] == {"scores": 1}
