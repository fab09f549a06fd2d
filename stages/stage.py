"""A stage of a run, described once: its name, its inputs, the settings that it reads, its work.

From the description follow the stage's key (what its output depends on), its command line, its manifest, which rank
writes, and how `iterate.py` starts it. docs/stages.md adds one.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from stages.files import UserError, command, digest, is_complete, stage_key, write_json, write_jsonl, write_manifest
from stages.settings import Settings, load_settings

Inputs = Mapping[str, Path | str | Sequence[Path | str] | None]
"""Files and folders by name; None: the input is not given."""


@dataclass(frozen=True)
class Job:
    """One execution of a stage: the settings, the inputs and the output folder that its work is about."""

    name: str
    settings: Settings
    iteration: int
    """Which iteration of the method, from 1; 0 outside of them."""
    inputs: dict[str, list[Path]]
    """Those that are given."""
    digests: dict[str, str]
    """The content of each input."""
    key: str
    """The identity of the work: the stage's name, the settings that it reads, the content of its inputs."""
    out: Path

    @property
    def complete(self) -> bool:
        """Whether `out` holds the finished output of exactly this work."""
        return is_complete(self.out, self.key)

    def has(self, name: str) -> bool:
        return name in self.inputs

    def path(self, name: str) -> Path:
        """A required input."""
        return self.inputs[name][0]

    def optional(self, name: str) -> Path | None:
        return self.inputs[name][0] if name in self.inputs else None

    def paths(self, name: str) -> list[Path]:
        """An input that is a list of files."""
        return self.inputs.get(name, [])

    def part(self, name: str, folder: str, key: str = "") -> "Job":
        """A part of the work with an output folder of its own, for a stage that generates more than once."""
        return replace(self, name=name, out=self.out / folder, key=key or stage_key(name, self.key, {}))

    def lineage(self) -> dict[str, dict[str, str]]:
        """Each input's path and the digest of its content, for the manifest."""
        return {
            name: {"path": " ".join(map(str, paths)), "digest": self.digests[name]}
            for name, paths in self.inputs.items()
        }


@dataclass(frozen=True)
class Output:
    """What a stage's work gives: files by name, ".jsonl" of rows or ".json", and facts for the manifest."""

    files: Mapping[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    written: Sequence[Path] = ()
    """Files that the work has written itself."""

    def write(self, job: Job, **facts: Any) -> None:
        """Write the files, then the manifest that marks the stage complete."""
        for name, content in self.files.items():
            (write_jsonl if name.endswith(".jsonl") else write_json)(job.out / name, content)
        outputs = [*(job.out / name for name in self.files), *self.written]
        write_manifest(job.out, job.name, job.key, outputs, inputs=job.lineage(), **self.facts, **facts)


@dataclass(frozen=True)
class Stage:
    """One step of the method, as a process."""

    name: str
    module: str
    """`python -m MODULE` runs it."""
    work: Callable[[Job], Output | None]
    """Does the work. None: the work has written its output and its manifest itself, shard by shard."""
    settings: Callable[[Settings, int], Any] = lambda settings, iteration: {}
    """(settings, iteration) -> the values that the output depends on, besides the inputs."""
    inputs: tuple[str, ...] = ()
    """Files and folders that it must be given."""
    optional: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    """Those of the inputs that are lists of files."""
    files: Callable[[Settings], Inputs] = lambda settings: {}
    """Inputs that the config names."""
    per_iteration: bool = False
    """Whether it works for one iteration of the method."""
    ranks: Literal["one", "all", "group"] = "one"
    """A single process; or all ranks, each for itself, sharing the requests; or all ranks as one process group."""

    def job(self, settings: Settings, out: Path, iteration: int = 0, digest_of: Any = digest, **given: Any) -> Job:
        """The stage's work on these inputs. `digest_of` gives an input's digest, or is a mapping of names to digests.

        Raises `UserError` for an input that is missing.
        """
        values = self.settings(settings, iteration)
        return make_job(self.name, settings, values, out, {**given, **self.files(settings)}, iteration, digest_of)

    def arguments(self, config: Path, job: Job) -> list[str]:
        """The command line that gives `main` this job. Digests and key are handed over: no rank computes them anew."""
        words = ["--config", str(config), "--out", str(job.out), "--key", job.key]
        words += ["--iteration", str(job.iteration)] if job.iteration else []
        for name in (*self.inputs, *self.optional):
            if paths := job.inputs.get(name):
                words += [_option(name), *map(str, paths)]
        return [*words, "--digests", *(f"{name}={value}" for name, value in job.digests.items())]

    def run(self, job: Job) -> None:
        """Do the work, unless it is done."""
        if self.ranks != "group" and job.complete:  # a process group decides together
            return
        started = time.monotonic()
        output = self.work(job)
        if output is not None and first_rank():
            output.write(job, seconds=round(time.monotonic() - started, 1))

    def main(self) -> None:
        """The command `python -m MODULE`."""
        command(lambda: self.run(self.read_arguments()))

    def read_arguments(self, words: Sequence[str] | None = None) -> Job:
        """The job that a command line asks for. Raises `UserError`."""
        parser = argparse.ArgumentParser(prog=f"python -m {self.module}", description=self.work.__doc__)
        parser.add_argument("--config", required=True, type=Path)
        parser.add_argument("--iteration", type=int, help="which [[iteration]] of the config, from 1; default: none")
        for name in (*self.inputs, *self.optional):
            many: dict[str, Any] = {"nargs": "+"} if name in self.lists else {}
            parser.add_argument(_option(name), type=Path, required=name in self.inputs, **many)
        parser.add_argument("--out", required=True, type=Path, help="folder for the output")
        parser.add_argument("--digests", nargs="*", default=[], help="NAME=SHA-256 of inputs, by whoever knows them")
        parser.add_argument("--key", help="with --digests: the key that must follow from them")
        given = vars(parser.parse_args(words))
        settings = load_settings(given["config"])
        last, iteration = len(settings.iteration), given["iteration"]
        if iteration is None and self.per_iteration:
            raise UserError(f"--iteration is missing: {self.module} works for one of the iterations 1 to {last}")
        if iteration is not None and not 1 <= iteration <= last:
            raise UserError(f"--iteration {iteration}: {given['config']} has iterations 1 to {last}")
        known = dict(entry.split("=", 1) for entry in given["digests"])
        inputs = {name: given[name] for name in (*self.inputs, *self.optional)}
        job = self.job(settings, given["out"], iteration or 0, known or digest, **inputs)
        if given["key"] and given["key"] != job.key:
            raise UserError(f"{given['config']}: changed since the run was started; start it again")
        return job


def make_job(
    name: str,
    settings: Any,
    values: Any,
    out: Path,
    given: Inputs,
    iteration: int = 0,
    digest_of: Callable[[Path], str] | Mapping[str, str] = digest,
) -> Job:
    """Work whose output depends on `values`, those of the settings that it reads, and on the inputs `given`."""
    inputs = {}
    for input_name, value in given.items():
        if value:
            paths = [value] if isinstance(value, str | Path) else list(value)
            inputs[input_name] = [Path(path) for path in paths]
    digests = {
        input_name: _digest(paths, digest_of) if callable(digest_of) else digest_of[input_name]
        for input_name, paths in inputs.items()
    }
    key = stage_key(name, {"settings": values, "inputs": digests}, {})
    return Job(name, settings, iteration, inputs, digests, key, out)


def first_rank() -> bool:
    """Whether this rank writes what all of them know."""
    return os.environ.get("RANK", "0") == "0"


def _digest(paths: Iterable[Path], digest_of: Callable[[Path], str]) -> str:
    """The content of an input: of one file or folder, or of a list."""
    digests = [digest_of(path) for path in paths]
    return digests[0] if len(digests) == 1 else stage_key("list", digests, {})


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
