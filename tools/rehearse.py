"""A whole run in minutes on a CPU: `python -m tools.rehearse --config configs/llama3-8b-instruct.toml`.

Stages and file formats are the config's own. Stand-ins replace what is slow or has to be fetched: a tiny random model,
whose verdicts come from a script (`prepare.scripted`); the first lines of the user's files, or a few of this project's.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from model.config import LlamaConfig
from prepare.meta import convert
from prepare.scripted import write_speaker, write_stand_in
from stages.command import UserError, arguments, command
from stages.files import read_jsonl, write_atomic, write_jsonl
from stages.settings import load_settings
from tools.doctor import named_files, named_models

ROOT = Path(__file__).resolve().parents[1]
RANKS = 2
PROMPTS = 4  # of an iteration
TREES = 24
SEEDS = 40
NOTE = "REHEARSAL: a random model; verdicts come from a script, so scores, winners and what follows mean nothing."


class Rehearsal:
    """A folder with the stand-ins, the derived config, and the run's models/ and runs/."""

    def __init__(self, config: Path, folder: Path):
        self.config, self.folder, self.settings = config.resolve(), folder, load_settings(config)
        self.stand_ins: list[str] = []

    def prepare(self) -> Path:
        """Write all that the run needs; returns the derived config's path. `UserError` for a config whose model is made
        by the run or does not judge, and for missing files."""
        if self.settings.model.prepare or self.settings.judge.scores_file:
            raise UserError(f"{self.config}: only runs of your own model that judge are rehearsed; run it as it is")
        seed, real, path = self.folder / "models" / "seed", Path(self.settings.model.path), self.folder / "config.toml"
        if (real / "tokenizer.json").is_file():
            write_speaker(seed, real, LlamaConfig.load(self.settings.model.shape))
            self.stand_ins.append(f"model: two layers, random, with the tokenizer and the template of {real}")
        else:
            write_stand_in(self.folder / "meta")
            convert(self.folder / "meta", seed)
            self.stand_ins.append(f"model: a Llama-3 of two layers, random, as {real}/tokenizer.json is not there yet")
        write_atomic(path, toml({"extends": str(self.config)} | self.changes()))
        load_settings(path)
        return path

    def changes(self) -> dict[str, Any]:
        """The derived config's own settings; also writes the data that they name."""
        settings, short = self.settings, {"max_new_tokens": 64}
        prompts = PROMPTS * max(len(settings.iteration), 1)
        changes: dict[str, Any] = {"name": f"rehearsal-{settings.name}", "nproc_per_node": RANKS}
        changes |= {"engine": {"threads": 1, "shard_requests": 24, "max_num_seqs": 64}}
        changes |= {"judge": dict(short), "metajudge": dict(short), "dpo": {"epochs": min(settings.dpo.epochs, 2)}}
        changes["respond"] = short | {"prompts_per_iteration": PROMPTS}
        if settings.prompts.seeds:
            changes["prompts"] = short | {"count": prompts, "round_attempts": 12, "max_attempts": 240}
        own = islice(read_jsonl(ROOT / "data/prompts/train.jsonl"), SEEDS)
        kinds: dict[str, tuple[Any, ...]] = {
            "respond.prompts": (prompts,),
            "prompts.seeds": (SEEDS, own, f"not there yet; {SEEDS} prompts of this project"),
            "prompts.evaluation": (SEEDS,),
            "eft.sources": (2 * TREES, trees(), f"not there yet; {TREES} trees made of this project's data"),
        }
        for key, path in ((key, path) for key, path in named_files(settings) if key != "sft.sft_delta"):
            section, name = key.split(".")
            table, cut = changes.setdefault(section, {}), self._cut(path, *kinds.get(key, (8,)))
            several = isinstance(getattr(getattr(settings, section), name), list)
            table[name] = [*table.get(name, []), cut] if several else cut
        for key, path in named_models(settings).items():
            section, name = key.split(".")
            changes.setdefault(section, {})[name] = "models/seed"
            self.stand_ins += [f"{path}: {key}; the same tiny model"] * (key != "model.path")
        return changes

    def _cut(self, path: str, count: int, instead: Iterable[dict[str, Any]] = (), made: str = "") -> str:
        """Write the first lines of a user's file, or what stands in for a missing one, to the rehearsal's data/;
        returns the path for the derived config."""
        source = Path(path)
        if source.is_file():
            instead, made = islice(read_jsonl(source), count), f"its first {count} lines"
        elif not made:
            raise UserError(f"{self.config}: {path}: no such file; put it there, or change the config")
        self.stand_ins.append(f"{path}: {made}")
        target = self.folder / "data" / source.name
        if target.exists():  # cut from another file of this name, or with another length
            target = target.with_name(f"{len(self.stand_ins)}-{source.name}")
        write_jsonl(target, instead)
        if target.suffix == ".gz":
            target.write_bytes(gzip.compress(target.read_bytes()))
        return f"data/{target.name}"


def trees() -> Iterator[dict[str, Any]]:
    """The project's groups of responses of known quality, as message trees of OpenAssistant's export."""
    usual = {"lang": "en", "review_result": True, "deleted": False, "synthetic": False, "replies": []}
    for group in islice(read_jsonl(ROOT / "data/evaluation/groups.jsonl"), TREES):
        root: dict[str, Any] = usual | {"message_id": group["id"], "text": group["prompt"], "role": "prompter"}
        root["replies"] = [
            usual | {"message_id": f"{group['id']}-{rank}", "text": reply["text"], "role": "assistant", "rank": rank}
            for rank, reply in enumerate(sorted(group["responses"], key=lambda reply: -reply["score"])[::2])
        ]
        yield {"message_tree_id": group["id"], "tree_state": "ready_for_export", "prompt": root}


def toml(table: dict[str, Any]) -> str:
    """A table as TOML, keys before sections. JSON writes strings, numbers, booleans and lists of them as TOML does."""
    keys = [f"{key} = {json.dumps(value)}\n" for key, value in table.items() if not isinstance(value, dict)]
    sections = [f"\n[{key}]\n{toml(value)}" for key, value in table.items() if isinstance(value, dict)]
    return "".join(keys + sections)


def main() -> None:
    path, started = arguments(__doc__, "config").config, time.monotonic()
    folder = Path("runs") / f"rehearsal-{load_settings(path).name}"
    shutil.rmtree(folder, ignore_errors=True)
    rehearsal = Rehearsal(path, folder)
    config = rehearsal.prepare()
    print(NOTE, *(f"  {line}" for line in rehearsal.stand_ins), sep="\n", flush=True)
    words = [sys.executable, str(ROOT / "iterate.py"), "--config", config.name, "--run", rehearsal.settings.name]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    if code := subprocess.run(words, cwd=folder, env=environment, check=False).returncode:
        print(f"the rehearsal stopped with exit code {code}; what it left is in {folder}", file=sys.stderr)
        raise SystemExit(code)
    manifests = [path for path in (folder / "runs").rglob("manifest.json") if "reference" not in path.parts]
    stages, minutes = len(manifests), (time.monotonic() - started) / 60
    print(f"\n{NOTE}\nRehearsed: {stages} stages on {RANKS} ranks, {minutes:.1f} minutes; all is in {folder}")


if __name__ == "__main__":
    command(main)
