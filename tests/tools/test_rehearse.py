"""tools/rehearse.py: a stand-in speaks by its script; the derived config is the real one, small."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from chat_templates import write
from families import BASE, VARIANTS

from judging.verdict import parse_score, parse_winner
from model.chat import load_chat
from model.config import LlamaConfig
from model.weights import load_model
from prepare.meta import convert
from prepare.new_prompts import read_prompt
from prepare.rankings import ranked_groups
from prepare.scripted import write_speaker, write_stand_in
from sampling.engine import Engine
from sampling.request import Request, Sampling
from stages.command import UserError
from stages.files import read_jsonl, write_json, write_jsonl
from stages.rows import read_rows
from stages.settings import Eft, load_settings
from tools import rehearse
from tools.rehearse import Rehearsal, toml

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "configs" / "llama3-8b-instruct.toml"


@pytest.mark.parametrize("name", ["", "mistral-v0.1", "mistral-v0.3", "qwen2.5", "qwen3", "deepseek", "openchat"])
def test_what_the_stand_in_says_holds_a_verdict_and_a_task(tmp_path, name):
    """The stand-in in Meta's layout, and those with the tokenizer and the template of other models."""
    folder, family = tmp_path / "model", "mistral" if "mistral" in name else "qwen3" if name == "qwen3" else "qwen2"
    if name:
        write_speaker(folder, write(tmp_path / name, name), LlamaConfig.from_dict(BASE | VARIANTS[family]))
    else:
        write_stand_in(tmp_path / "meta")
        convert(tmp_path / "meta", folder)
    chat, model = load_chat(folder), load_model(folder, torch.float32)
    engine = Engine(model, num_kv_blocks=256, block_size=16, max_num_batched_tokens=512, max_num_seqs=32)
    sampling, ids = Sampling(0.8, 0.95, 96, chat.stop_ids), chat.prompt_ids([{"role": "user", "content": "Review."}])
    done = engine.run([Request(str(i), ids, sampling, i) for i in range(20)])
    texts = [chat.text(completion.ids) for completion in done if completion.finish_reason == "stop"]
    assert len(set(texts)) > 14
    scored = [parse_score(text, "stop") in range(6) for text in texts]
    assert [parse_winner(text, "stop") in ("first", "second") for text in texts] == [not there for there in scored]
    assert 0.5 < sum(scored) / len(texts) < 1
    tasks = [read_prompt(text, "stop") for text in texts]
    assert all("\nScore:" in task or "\nWinner:" in task for task in tasks)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder to work in, with the project's own data and none of a user's; no model is made."""
    monkeypatch.setattr(rehearse, "write_stand_in", lambda folder: None)
    monkeypatch.setattr(rehearse, "convert", lambda source, folder: folder.mkdir(parents=True))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("evaluation", "prompts"):
        (tmp_path / "data" / name).symlink_to(ROOT / "data" / name)
    return tmp_path


def test_stand_ins_for_files_are_of_the_real_formats(place):
    rehearsal = Rehearsal(PAPER, place / "r")
    settings, real = load_settings(rehearsal.prepare()), load_settings(PAPER)
    assert sum("not there yet" in line for line in rehearsal.stand_ins) == 3
    assert (settings.respond.K, settings.judge.N, settings.iteration) == (real.respond.K, real.judge.N, real.iteration)
    assert settings.nproc_per_node == 2 and settings.prompts.count == 16 and settings.model.path == "models/seed"
    [source] = settings.eft.sources
    groups, reasons = ranked_groups(read_rows(place / "r" / source), Eft())
    assert len(groups) == rehearse.TREES and not reasons and all(len(group.replies) == 3 for group in groups)
    assert len(list(read_jsonl(place / "r" / settings.prompts.seeds, ("id", "prompt")))) == rehearse.SEEDS
    held_out = settings.prompts.evaluation[0]
    for count, name in ((rehearse.SEEDS, held_out), (8, settings.evaluation.instructions)):  # cut from the same file
        assert len(list(read_jsonl(place / "r" / name))) == count


def test_your_own_files_are_taken_where_they_are(place):
    """Also a pool and a held-out set that share a name; a meta-judge and a comparing judge of their own."""
    tree, group = next(rehearse.trees()), next(read_jsonl(ROOT / "data" / "evaluation" / "groups.jsonl"))
    best = max(group["responses"], key=lambda response: response["score"])
    assert tree["prompt"]["replies"][0].items() >= {"text": best["text"], "rank": 0}.items()
    packed = gzip.compress((json.dumps(tree) + "\n").encode())
    (place / "data" / "2023-04-12_oasst_ready.trees.jsonl.gz").write_bytes(packed)
    (place / "models").mkdir()
    model = write(place / "models" / "Meta-Llama-3-8B-Instruct", "qwen3")
    write_json(model / "config.json", BASE | VARIANTS["qwen3-tied"])
    for name in ("pool", "held-out"):
        write_jsonl(place / name / "p.jsonl", [{"id": f"{name}{i}", "prompt": name} for i in range(60)])
    own = {"extends": str(PAPER), "prompts": {"seeds": ""}, "respond": {"prompts": ["pool/p.jsonl"]}}
    own |= {"metajudge": {"model": "models/large"}}
    own["evaluation"] = {"judge": "models/large", "instructions": "", "prompts": "held-out/p.jsonl"}
    (place / "own.toml").write_text(toml(own))
    settings = load_settings(Rehearsal(place / "own.toml", place / "r").prepare())
    assert list(read_jsonl(place / "r" / settings.eft.sources[0])) == [tree]
    seed = place / "r" / settings.model.path
    assert LlamaConfig.load(seed).model_type == "qwen3"
    assert (seed / "tokenizer_config.json").read_text() == (model / "tokenizer_config.json").read_text()
    files = (*settings.respond.prompts, settings.evaluation.prompts)
    pool, held_out = (list(read_jsonl(place / "r" / file)) for file in files)
    assert len(pool) == 4 * rehearse.PROMPTS and {row["prompt"] for row in pool} == {"pool"}
    assert len(held_out) == 8 and {row["prompt"] for row in held_out} == {"held-out"}
    assert {settings.model.path, settings.metajudge.model, settings.evaluation.judge} == {"models/seed"}


def test_what_is_not_rehearsed(place):
    with pytest.raises(UserError, match="run it as it is"):
        Rehearsal(ROOT / "configs" / "smollm2-135m.toml", place / "r").prepare()
    (place / "data" / "evaluation").unlink()
    with pytest.raises(UserError, match="no such file; put it there"):
        Rehearsal(PAPER, place / "r").prepare()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama3-8b-instruct", "qwen3-8b-one-gpu"])
def test_a_whole_run_is_rehearsed(tmp_path, name):
    """Every stage of four iterations, two of them with judge pairs, on two ranks: minutes. Qwen3's tokenizer, template
    and config.json are there, as after step 4 of docs/your-model.md; of Llama-3 there is nothing."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    if name == "qwen3-8b-one-gpu":
        model = Path(shutil.copytree(ROOT / "configs" / "architectures" / "qwen3-8b", tmp_path / "models" / "Qwen3-8B"))
        write(model, "qwen3")
    words = [sys.executable, "-m", "tools.rehearse", "--config", str(ROOT / "configs" / f"{name}.toml")]
    done = subprocess.run(words, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("verdicts come from a script") == 2
    runs = tmp_path / "runs" / f"rehearsal-{name}" / "runs" / name
    summary = json.loads((runs / "summary.json").read_text())
    pairs = [(row["pairs"]["actor"] > 0, row["pairs"]["judge"] > 0) for row in summary["iterations"]]
    assert pairs == [(True, True)] * 2 + [(True, False)] * 2
    assert [row["name"] for row in summary["models"]] == ["seed", "M0", "M1", "M2", "M3", "M4"]
    assert (runs / "report.html").is_file()
