"""A whole Llama-3 run in minutes on a CPU: `python -m tools.rehearse --config configs/llama3-8b-instruct.toml`.

Stages, launches and file formats are the config's own. Stand-ins replace what is slow or has to be fetched: a tiny
model with random weights (`prepare.scripted`), converted from Meta's layout as the real one is; the first lines of the
user's human rankings and prompts, or a few of this project's in their formats; small counts. Verdicts come from a
script. A typo, a missing file or a full disk shows now and not on day two.
"""

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from prepare.meta import convert
from prepare.scripted import write_stand_in
from stages.files import UserError, command, read_jsonl, write_atomic, write_jsonl
from stages.settings import Settings, load_settings
from tools.inputs import named_models

ROOT = Path(__file__).resolve().parents[1]
RANKS = 2
PROMPTS = 4
"""Prompts of an iteration."""
TREES = 24
SEEDS = 40
NOTE = "REHEARSAL: a random model; verdicts come from a script, so scores, winners and what follows mean nothing."


class Rehearsal:
    """A folder with the stand-ins, the derived config, and the run's models/ and runs/."""

    def __init__(self, config: Path, folder: Path):
        self.config, self.folder = config.resolve(), folder
        self.settings: Settings = load_settings(config)
        self.stand_ins: list[str] = []

    def prepare(self) -> Path:
        """Write all that the run needs; returns the derived config's path.

        Raises `UserError` for a config whose model is made by the run or does not judge, and for missing files.
        """
        if self.settings.model.prepare or self.settings.judge.scores_file:
            raise UserError(f"{self.config}: only runs of Llama-3 models that judge are rehearsed; run it as it is")
        write_stand_in(self.folder / "meta")
        convert(self.folder / "meta", self.folder / "models" / "seed")
        self._take_tokenizer(Path(self.settings.model.path))
        path = self.folder / "config.toml"
        write_atomic(path, toml({"extends": str(self.config)} | self.changes()))
        load_settings(path)
        return path

    def _take_tokenizer(self, real: Path) -> None:
        """Copy the tokenizer and chat template of the real model, where it is there already."""
        names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
        files = [real / name for name in names if (real / name).is_file()]
        for path in files:
            shutil.copyfile(path, self.folder / "models" / "seed" / path.name)
        tokenizer = f"tokenizer of {real}" if files else f"Llama-3's tokenizer, as {real} is not there yet"
        self.stand_ins.append(f"model: two layers, random, with the {tokenizer}")

    def changes(self) -> dict[str, Any]:
        """Settings of the derived config that differ from the real one's; also writes the data that they name."""
        settings = self.settings
        iterations = max(len(settings.iteration), 1)
        changes: dict[str, Any] = {
            "name": f"rehearsal-{settings.name}",
            "nproc_per_node": RANKS,
            "engine": {"threads": 1, "shard_requests": 24, "max_num_seqs": 64},
            "respond": {"prompts_per_iteration": PROMPTS, "max_new_tokens": 64},
            "judge": {"max_new_tokens": 64},
            "metajudge": {"max_new_tokens": 64},
            "dpo": {"epochs": min(settings.dpo.epochs, 2)},
        }
        if settings.respond.prompts:
            changes["respond"]["prompts"] = self._first(settings.respond.prompts, PROMPTS * iterations)
        if settings.prompts.seeds:
            changes["prompts"] = {
                "seeds": self._seeds(settings.prompts.seeds),
                "evaluation": [self._first(path, SEEDS) for path in settings.prompts.evaluation],
                "count": PROMPTS * iterations,
                "round_attempts": 12,
                "max_attempts": 240,
                "max_new_tokens": 64,
            }
        if settings.eft.sources:
            changes["eft"] = {"sources": [self._trees(path) for path in settings.eft.sources]}
        keys = ("judge_cases", "comparisons", "instructions", "prompts")
        named = {key: getattr(settings.evaluation, key) for key in keys}
        files = {key: self._first(path, 8) for key, path in named.items() if path and "{run}" not in path}
        if files:
            changes["evaluation"] = files
        for key, path in named_models(settings).items():
            section, name = key.split(".")
            changes.setdefault(section, {})[name] = "models/seed"
            if key != "model.path":
                self.stand_ins.append(f"{path}: {key}; the same tiny model")
        return changes

    def _first(self, path: str, count: int) -> str:
        """The first lines of a file that must be there."""
        if not Path(path).is_file():
            raise UserError(f"{self.config}: {path}: no such file; put it there, or change the config")
        return self._cut(Path(path), count)

    def _cut(self, path: Path, count: int) -> str:
        """The first lines of the user's file, under the same name."""
        rows = islice(read_jsonl(path), count)
        self.stand_ins.append(f"{path}: its first {count} lines")
        return self._write(path.name, rows)

    def _seeds(self, path: str) -> str:
        if Path(path).is_file():
            return self._cut(Path(path), SEEDS)
        self.stand_ins.append(f"{path}: not there yet; {SEEDS} prompts of this project")
        return self._write(Path(path).name, islice(read_jsonl(ROOT / "data/prompts/train.jsonl"), SEEDS))

    def _trees(self, path: str) -> str:
        if Path(path).is_file():
            return self._cut(Path(path), 2 * TREES)
        self.stand_ins.append(f"{path}: not there yet; {TREES} trees made of this project's data")
        return self._write(Path(path).name, map(tree, islice(read_jsonl(ROOT / "data/evaluation/groups.jsonl"), TREES)))

    def _write(self, name: str, rows: Iterable[dict[str, Any]]) -> str:
        """Write a file in the rehearsal's data/, compressed for a .gz; returns its path for the derived config."""
        path = self.folder / "data" / name
        if path.exists():  # cut from another file of this name, or with another length
            path = path.with_name(f"{len(self.stand_ins)}-{name}")
        write_jsonl(path, rows)
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(path.read_bytes()))
        return f"data/{path.name}"


def tree(group: dict[str, Any]) -> dict[str, Any]:
    """A group of responses of known quality as a message tree of OpenAssistant's export."""

    def message(name: str, text: str, role: str, **fields: Any) -> dict[str, Any]:
        usual = {"lang": "en", "review_result": True, "deleted": False, "synthetic": False, "replies": []}
        return {"message_id": name, "text": text, "role": role} | usual | fields

    best_first = sorted(group["responses"], key=lambda response: -response["score"])
    replies = [
        message(f"{group['id']}-{rank}", response["text"], "assistant", rank=rank)
        for rank, response in enumerate(best_first[::2])
    ]
    root = message(group["id"], group["prompt"], "prompter", replies=replies)
    return {"message_tree_id": group["id"], "tree_state": "ready_for_export", "prompt": root}


def toml(table: dict[str, Any]) -> str:
    """A table as TOML, keys before sections. JSON writes strings, numbers, booleans and lists of them as TOML does."""
    keys = [f"{key} = {json.dumps(value)}\n" for key, value in table.items() if not isinstance(value, dict)]
    sections = [f"\n[{key}]\n{toml(value)}" for key, value in table.items() if isinstance(value, dict)]
    return "".join(keys + sections)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a Llama-3 config with a tiny model and a handful of prompts.")
    parser.add_argument("--config", required=True, type=Path)
    arguments = parser.parse_args()
    started = time.monotonic()
    folder = Path("runs") / f"rehearsal-{load_settings(arguments.config).name}"
    shutil.rmtree(folder, ignore_errors=True)
    rehearsal = Rehearsal(arguments.config, folder)
    config = rehearsal.prepare()
    print(NOTE, *(f"  {line}" for line in rehearsal.stand_ins), sep="\n", flush=True)
    words = [sys.executable, str(ROOT / "iterate.py"), "--config", config.name, "--run", rehearsal.settings.name]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    code = subprocess.run(words, cwd=folder, env=environment, check=False).returncode
    if code:
        print(f"the rehearsal stopped with exit code {code}; what it left is in {folder}", file=sys.stderr)
        raise SystemExit(code)
    stages = len(list((folder / "runs").rglob("manifest.json")))
    minutes = (time.monotonic() - started) / 60
    print(f"\n{NOTE}\nRehearsed: {stages} stages on {RANKS} ranks, {minutes:.1f} minutes; all is in {folder}")


if __name__ == "__main__":
    command(main)
