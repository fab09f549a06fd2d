"""The experiments: their runs, what is kept of them, and the page that is made of it, docs/results.md.

`python -m tools.results run CONFIG... --seeds 1,2,3` makes the run of each config with each seed, and keeps what each
model did on each held-out item in docs/results/runs.jsonl.xz. `python -m tools.results write` computes all numbers of
the page, and its picture, from this file.
"""

import argparse
import json
import lzma
import os
import re
import subprocess
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import cycle, product
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2
import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator, PercentFormatter

from evaluation.agreement import half_credit
from evaluation.labelled import read_decisions
from evaluation.measure import ModelMeasurements, labelled_by_rules
from evaluation.statistics import CROSSED_RESAMPLES, crossed, shown
from evaluation.verifiable import read_instructions
from judging.rubric import leaks_role
from judging.scores import response_scores
from prepare.ruled import UNTRAINED
from stages import files
from stages.command import UserError, command, on_sigterm_raise
from stages.config import overlaid
from stages.files import read_json, read_manifest, read_sealed, read_shards
from stages.launch import ROOT, Launcher
from stages.records import Record, group_by
from stages.settings import Assumptions, as_dict, load_settings
from tools.rehearse import toml

RECORDS, PAGE, PICTURE = Path("docs/results/runs.jsonl.xz"), Path("docs/results.md"), Path("docs/results.svg")
RULES = {"": lambda rules: True, "trained": UNTRAINED.isdisjoint, "untrained": UNTRAINED.issuperset}


def read_records() -> dict[tuple[str, str], Record]:
    """By kind and name the rows, of a "run", or of a "model", whose name is its measurement's key: runs share it."""
    return {(row["kind"], row["name"]): row for row in (files.read_jsonl(RECORDS) if RECORDS.exists() else ())}


def keep(rows: Iterable[Record]) -> None:
    """Add rows to the file, in place of those of the same names; models that no run has any more go."""
    known = read_records() | {(row["kind"], row["name"]): row for row in rows}
    used = {key for row in known.values() for key in row.get("models", {}).values()}
    lines = [json.dumps(row) + "\n" for (kind, name), row in known.items() if kind == "run" or name in used]
    files.write_atomic(RECORDS, lzma.compress("".join(lines).encode()))


def make_run(config: Path, seed: int) -> None:
    """Make a config's run with a seed, and keep its rows, unless they are there with the same settings."""
    settings = load_settings(config)
    folder, measured = Path("runs") / f"{settings.name}-s{seed}", settings.evaluation
    if measured.judge != "initial" or measured.protocol != "scores" or not (measured.instructions and measured.prompts):
        raise UserError(f'{config}: set judge = "initial", instructions and prompts in [evaluation], and no protocol')
    kept = replace(settings, seed=0, plan=Assumptions())  # runs of a config share it; [plan] only foretells the cost
    identity = files.stage_key("run", as_dict(kept))
    if read_records().get(("run", folder.name), {}).get("settings") == identity:
        return print(f"{folder.name}: recorded with these settings")
    note_commit(folder)
    path = folder / "config.toml"
    files.write_atomic(path, toml({"extends": str(config.resolve()), "name": folder.name, "seed": seed}))
    if code := Launcher(1, folder / "logs").run("iterate", ("--config", path), "iterate", distributed=False):
        raise SystemExit(code)
    facts = {"kind": "run", "name": folder.name, "config": config.stem, "file": os.path.relpath(config), "seed": seed}
    facts |= {"control": all(rule.labels == "coin" for rule in settings.iteration), "threads": settings.engine.threads}
    facts |= {"settings": identity, "commits": note_commit(folder)} | changes(config)
    name = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    facts["processor"] = name[1] if name else os.uname().machine
    facts["flags"] = [flag for flag in ("avx512_bf16", "amx_bf16") if torch.cpu.get_capabilities().get(flag)]
    keep(rows_of(folder, Path(measured.instructions), facts))


def note_commit(folder: Path) -> list[str]:
    """The commits at which the run was started or ended so far. Raises `UserError` for changed files."""
    changed, head = (
        subprocess.run(["git", *words.split()], capture_output=True, text=True, check=True).stdout.split()
        for words in ("status --porcelain -- . :!docs/results*", "rev-parse HEAD")
    )
    if changed:
        raise UserError(f"{changed[1]}: not as in the commit; a run's records name one, so commit or undo all changes")
    path = folder / "commits.txt"
    commits = list(dict.fromkeys([*(path.read_text().split() if path.exists() else ()), *head]))
    files.write_atomic(path, "\n".join(commits))
    return commits


def changes(config: Path) -> Record:
    """The "base" of a config, at the end of the chain of `extends`, and what the configs on the way set otherwise."""
    table = tomllib.loads(config.read_text(encoding="utf-8"))
    if not (extended := table.pop("extends", "")):
        return {"base": os.path.relpath(config), "changes": {}}
    inherited, own = changes(config.parent / extended), {key: value for key, value in table.items() if key != "name"}
    return inherited | {"changes": overlaid(inherited["changes"], own)}


def rows_of(run: Path, instructions: Path, facts: Record) -> Iterator[Record]:
    """The rows of a finished run's models, and its own."""
    summary, keys, seconds = read_sealed(run / "summary.json"), dict[str, str](), 0.0
    models = [ModelMeasurements(run / "evaluation" / row["name"]) for row in summary["models"]]
    rules = {item.id: sorted({rule.name for rule in item.rules}) for item in read_instructions(instructions)}
    for place, (row, model) in enumerate(zip(summary["models"], models, strict=True)):
        manifest, report = read_manifest(model.folder) or {}, read_json(model.held_out / "report.json")
        followed, free, items = report["verifiable"]["followed"], report["answers"]["by_id"], dict[str, Record]()
        ordered = ordered_rightly(model, instructions) if model.rules.is_dir() else {}
        # The first model has no duel: the second's, against the first's answers, has scores of both.
        scores = response_scores(group_by(read_shards(models[max(place, 1)].duel / "verdicts"), "response_id"), 1)
        for name, answers in group_by(read_shards(model.answers), "name").items():
            items[name] = {"leakage": fmean(leaks_role(answer["text"]) for answer in answers)}
            if name in rules:
                items[name] |= {"rules": rules[name], "followed": fmean(map(all, followed[name]))}
                items[name]["ordered"] = ordered.get(name)
            else:
                score = scores.get(f"{name}/{0 if place else 1}")  # equal answers have none
                items[name] |= free[name] | {"score": None if score is None else float(score)}
        seconds += manifest["seconds"]
        keys[row["name"]] = key = manifest["key"][:12]
        yield {"kind": "model", "name": key, "items": items} | {k: row[k] for k in ("agreement", "meta_agreement")}
    minutes = (seconds + sum(sum(row["seconds"].values()) for row in summary["iterations"])) / 60
    yield facts | {"models": keys, "iterations": summary["iterations"], "minutes": minutes}


def ordered_rightly(model: ModelMeasurements, instructions: Path) -> dict[str, float]:
    """By instruction whose answers differ in following its rules: the share of such pairs that the model's scores order
    rightly, a tie counting half."""
    answers = (row for row in read_shards(model.answers) if row["kind"] == "instruction")
    labelled = labelled_by_rules(read_instructions(instructions), answers)
    preferences = read_decisions(model.rules / "decisions.jsonl", labelled).opinion(labelled).preferences
    credits = defaultdict[str, list[float]](list)
    for pair in labelled.pairs:
        if own := preferences[pair.name]:
            credits[pair.first.group].append(half_credit(own, pair.label))
    return {name: fmean(own) for name, own in credits.items()}


class Experiments:
    """The recorded runs by config, and measures of their models, means over prompts: "followed", the share of answers
    that follow all rules of their prompt, and "ordered", of pairs of which one does, the share that the model's scores
    order rightly, both also of prompts with trained or with untrained rules alone, as in "followed trained"; "leakage"
    of all answers; "score", "characters" and others of the answers to open prompts."""

    def __init__(self) -> None:
        records = read_records()
        self.models = {name: row for (kind, name), row in records.items() if kind == "model"}
        recorded = group_by((row for (kind, _), row in records.items() if kind == "run"), "config").values()
        runs = [sorted(own, key=lambda run: run["seed"]) for own in recorded]
        self.configs, self.runs = [own[0] | {"runs": own} for own in runs], [run for own in runs for run in own]
        self.control: Any = next((config for config in self.configs if config["control"]), None)
        if not runs:
            raise UserError(f"{RECORDS}: no runs; `python -m tools.results run` makes and records them")
        if mixed := [config["config"] for config in self.configs if len({r["settings"] for r in config["runs"]}) > 1]:
            raise UserError(f"{RECORDS}: the runs of {mixed[0]} differ in settings; make those of all its seeds again")

    def values(self, config: Record, model: str, measure: str, base: str = "") -> dict[int, Any]:
        """By seed [item], NaN where an answer has no value; with a `base`, less that model's value in the same run."""
        key, _, which = measure.partition(" ")
        items = {run["seed"]: self.models[run["models"][model]]["items"] for run in config["runs"]}
        names = sorted(
            k for k, own in items[config["seed"]].items() if key in own and RULES[which](own.get("rules", ()))
        )
        less = self.values(config, base, measure) if base else {}
        return {s: np.array([own[name][key] for name in names], float) - less.get(s, 0) for s, own in items.items()}

    def mean(self, config: Record, model: str, measure: str, base: str = "") -> Record:
        return crossed(np.array([*self.values(config, model, measure, base).values()]))

    def over_control(self, config: Record, model: str, measure: str) -> Record:
        """The change from M0 less the control's, of the seeds of both."""
        own, control = (self.values(one, model, measure, "M0") for one in (config, self.control))
        return crossed(np.array([row - control[seed] for seed, row in own.items() if seed in control]))


@matplotlib.rc_context(fname=ROOT / "evaluation" / "report" / "templates" / "report.mplstyle")
def draw(experiments: Experiments) -> None:
    """Draw the changes of the rules followed, by iteration."""
    figure = Figure(figsize=(6.5, 3.6), layout="constrained", facecolor="none")
    axes = figure.subplots()
    for place, (config, marker) in enumerate(zip(experiments.configs, cycle("osD^vPX*"), strict=False)):
        changes = [experiments.mean(config, name, "followed", "M0") for name in config["models"] if name != "seed"]
        value, low, high = (np.array([change[key] for change in changes]) for key in ("value", "low", "high"))
        x = np.arange(len(changes)) + 0.04 * (place - (len(experiments.configs) - 1) / 2)
        axes.errorbar(x, value, (value - low, high - value), marker=marker, capsize=2, label=config["config"])
    axes.set(xlabel="iteration", ylabel="rules followed, change from M0")
    axes.xaxis.set_major_locator(MultipleLocator(1))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(PICTURE, metadata={"Date": None})


def page(experiments: Experiments) -> str:
    text = (ROOT / "docs" / "results" / "results.md.j2").read_text(encoding="utf-8")
    template = jinja2.Template(text, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return template.render(own=experiments, shown=shown, resamples=CROSSED_RESAMPLES, untrained=UNTRAINED) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "write"))
    parser.add_argument("configs", nargs="*", type=Path)
    parser.add_argument("--seeds", default="1,2,3")
    given = parser.parse_args()
    if given.command == "write":
        files.write_atomic(PAGE, page(Experiments()))
        return draw(Experiments())
    on_sigterm_raise()
    for seed, config in product(map(int, given.seeds.split(",")), given.configs):
        make_run(config, seed)


if __name__ == "__main__":
    command(main)
