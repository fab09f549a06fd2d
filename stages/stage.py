"""A stage of a run, described once; key, command line and manifest follow. docs/stages.md shows how to add one."""

import argparse
import os
import runpy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from stages import files
from stages.command import UserError, command
from stages.files import digest, is_complete, stage_key
from stages.settings import Settings, load_settings

Inputs = Mapping[str, Path | str | Sequence[Path | str] | None]  # by name; None: the input is not given
ROWS = ("prompts", "responses", "judgments", "scores")  # inputs that others name by id; every run has the same ids


@dataclass(frozen=True)
class Job:  # one execution of a stage
    name: str
    settings: Settings
    iteration: int  # of the method, from 1; 0 outside of the iterations
    inputs: dict[str, list[Path]]  # the paths of each given input
    digests: dict[str, str]  # the digest of each given input
    key: str  # the identity of the work: the stage's name, the settings that it reads, the content of its inputs
    out: Path

    @property
    def complete(self) -> bool:
        """Whether `out` holds the finished output of exactly this work."""
        return is_complete(self.out, self.key)

    def has(self, name: str) -> bool:
        return name in self.inputs

    def path(self, name: str) -> Path:
        return self.inputs[name][0]

    def optional(self, name: str) -> Path | None:
        return self.inputs.get(name, [None])[0]

    def paths(self, name: str) -> list[Path]:
        """The paths of an input that is a list of files, none if it is not given."""
        return self.inputs.get(name, [])

    def part(self, name: str, folder: str, key: str = "") -> "Job":
        """A part of the work with its own output folder, for a stage that generates more than once."""
        return replace(self, name=name, out=self.out / folder, key=key or stage_key(name, self.key))

    def lineage(self) -> dict[str, dict[str, str]]:
        """Path and digest of each input, for the manifest."""
        inputs = self.inputs.items()
        return {name: {"path": " ".join(map(str, paths)), "digest": self.digests[name]} for name, paths in inputs}


@dataclass(frozen=True)
class Output:
    files: Mapping[str, Any]  # by name: rows for ".jsonl", else a value
    facts: dict[str, Any] = field(default_factory=dict)  # for the manifest
    written: Sequence[Path] = ()  # further files, which the work has written itself

    def write(self, job: Job, **facts: Any) -> None:
        """Write the files, then the manifest that marks the stage complete."""
        for name, content in self.files.items():
            write = files.write_jsonl if name.endswith(".jsonl") else files.write_json
            write(job.out / name, content)
        outputs = [*(job.out / name for name in self.files), *self.written]
        files.write_manifest(job.out, job.name, job.key, outputs, inputs=job.lineage(), **self.facts, **facts)


@dataclass(frozen=True)
class Stage:  # one step of the method, run as a process of its own
    name: str
    module: str  # `python -m MODULE` runs it
    work: Callable[[Job], Output | None]  # None: the work has written output and manifest itself, shard by shard
    settings: Callable[[Settings, int], Any] = lambda settings, iteration: {}  # which the output depends on
    inputs: tuple[str, ...] = ()  # required files and folders
    optional: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()  # which of the inputs are lists of files
    files: Callable[[Settings], Inputs] = lambda settings: {}  # inputs that the config names
    per_iteration: bool = False  # whether the stage works for one iteration of the method
    ranks: Literal["one", "all", "group"] = "one"  # one process; all ranks, which share requests; a process group

    def job(
        self, settings: Settings, out: Path, iteration: int = 0, known: Mapping[str, str] | None = None, **given: Any
    ) -> Job:
        """The stage's work on these inputs; `known` are digests by input. Raises `UserError` for a missing input."""
        values, inputs = self.settings(settings, iteration), {**given, **self.files(settings)}
        return make_job(self.name, settings, values, out, inputs, iteration, known)

    def arguments(self, config: Path, job: Job) -> list[str]:
        """The command line for this job, with key and digests, so that no rank computes them again."""
        words = ["--config", str(config), "--out", str(job.out), "--key", job.key]
        words += ["--iteration", str(job.iteration)] if job.iteration else []
        for name in (*self.inputs, *self.optional):
            if paths := job.inputs.get(name):
                words += [f"--{name.replace('_', '-')}", *map(str, paths)]
        return [*words, "--digests", *(f"{name}={value}" for name, value in job.digests.items())]

    def run(self, job: Job) -> None:
        """Do the work, unless the job is complete."""
        if self.ranks != "group" and job.complete:  # the ranks of a group decide together
            return
        started = time.monotonic()
        if (output := self.work(job)) and first_rank():
            output.write(job, seconds=round(time.monotonic() - started, 1))

    def main(self) -> None:
        command(lambda: self.run(self.read_arguments()))

    def read_arguments(self, words: Sequence[str] | None = None) -> Job:
        """The job of a command line. Raises `UserError` for a wrong iteration or a config that has changed."""
        parser = argparse.ArgumentParser(prog=f"python -m {self.module}", description=self.work.__doc__)
        parser.add_argument("--config", required=True, type=Path)
        parser.add_argument("--iteration", type=int, help="which [[iteration]] of the config, from 1; default: none")
        for name in (*self.inputs, *self.optional):
            many: dict[str, Any] = {"nargs": "+"} if name in self.lists else {}
            parser.add_argument(f"--{name.replace('_', '-')}", type=Path, required=name in self.inputs, **many)
        parser.add_argument("--out", required=True, type=Path, help="folder for the output")
        parser.add_argument("--digests", nargs="*", default=[], help="NAME=SHA-256 of inputs, if they are known")
        parser.add_argument("--key", help="with --digests: the key that settings and digests must give")
        given = vars(parser.parse_args(words))
        config, out, iteration, key = (given.pop(name) for name in ("config", "out", "iteration", "key"))
        known = dict(entry.partition("=")[::2] for entry in given.pop("digests"))
        settings = load_settings(config)
        last = len(settings.iteration)
        if (iteration is not None or self.per_iteration) and not 1 <= (iteration or 0) <= last:
            raise UserError(f"--iteration {iteration}: {config} has iterations 1 to {last}; name one")
        job = self.job(settings, out, iteration or 0, known=known, **given)
        if key and key != job.key:
            raise UserError(f"{config}: changed since the run was started; start it again")
        for name in (name for name in known if name not in job.digests or not key):
            why = "they need --key, which checks them" if name in job.digests else f"inputs: {', '.join(job.digests)}"
            raise UserError(f"--digests {name}: {why}; mend or leave them out")
        return job


def make_job(
    name: str, settings: Any, values: Any, out: Path, given: Inputs, iteration: int = 0, known: Any = None
) -> Job:
    """A job whose output depends on the settings `values` and on the inputs `given`. Raises `UserError` for an input
    that was made from other rows than those given with it."""
    lists = {key: [value] if isinstance(value, str | Path) else value for key, value in given.items() if value}
    inputs = {key: [Path(path) for path in paths] for key, paths in lists.items()}
    digests: dict[str, str] = {}
    for key, paths in inputs.items():
        first, *others = [known[key]] if key in (known or {}) else map(digest, paths)
        digests[key] = stage_key("list", [first, *others]) if others else first
    for folder in (paths[0] for paths in inputs.values()):
        made = (files.read_manifest(folder) or {}).get("inputs", {})
        for other in ROWS:
            if other in digests and other in made and made[other]["digest"] != digests[other]:
                mend = "name folders of one run, or repeat the stage that wrote it"
                raise UserError(f"{folder}: made from other {other} than {inputs[other][0]}; {mend}")
    key = stage_key(name, {"settings": values, "inputs": digests})
    return Job(name, settings, iteration, inputs, digests, key, out)


def weights_of(folder: Path) -> str:
    """The digest of the model that wrote a stage's output; empty if the stage has no manifest."""
    return (files.read_manifest(folder) or {"inputs": {"model": {"digest": ""}}})["inputs"]["model"]["digest"]


def first_rank() -> bool:
    """Whether this rank is the one that writes the common output."""
    return os.environ.get("RANK", "0") == "0"


if __name__ == "__main__":  # `python -m stages.stage MODULE ...`: Ctrl-C while MODULE imports PyTorch is one line, too
    command(lambda: runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True))
