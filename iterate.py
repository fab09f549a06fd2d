"""Meta-Rewarding: M_t acts, judges and meta-judges, and DPO on its own preferences makes M_{t+1}.

    python iterate.py --config configs/smollm2-135m.toml [--run NAME]

This file says which stage comes next and on which files; each stage is a process of its own that reads files and
writes files, and is left out when its output is complete for the same inputs and settings. So the same command
continues a run that was stopped.
"""

import argparse
import json
import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpo.train import train_key
from evaluation.agreement import read_report
from evaluation.bias import broken_limits, write_panel
from evaluation.folders import ModelMeasurements
from evaluation.held_out import read_prompts
from evaluation.labelled import read_labelled
from evaluation.measure import measure_key
from evaluation.meta_agreement import read_comparisons
from evaluation.report import write_report
from evaluation.summary import print_summary, write_summary
from evaluation.verifiable import read_instructions
from judging.judge import judge_key, scores_key
from judging.metajudge import metajudge_key
from judging.pairs import Sources, pairs_key
from prepare.eft import eft_key
from prepare.examples import examples_key
from prepare.new_prompts import prompts_key
from prepare.seed_model import prepare
from prepare.sft_delta import annotate, merge, read_facts, write
from sampling.generate import respond_key
from stages.files import (
    UserError,
    command,
    copy_folder,
    digest,
    is_complete,
    on_sigterm_raise,
    read_jsonl,
    read_manifest,
    stage_key,
    write_json,
    write_jsonl,
    write_manifest,
)
from stages.forecast import Forecast
from stages.launch import Launcher
from stages.lock import held
from stages.settings import Evaluation, Settings, as_dict, load_settings


class Run:
    """A run's folder and settings; the methods are the method's steps."""

    def __init__(self, config: Path, settings: Settings, folder: Path, launcher: Launcher):
        self.config, self.settings, self.folder, self.launcher = config, settings, folder, launcher
        self.forecast = Forecast(settings)

    def stage(
        self,
        module: str,
        key: str,
        out: Path,
        *arguments: str | Path,
        distributed: bool = True,
        also: tuple[Path, str] | None = None,
        name: str = "",
    ) -> Path:
        """Have `module` fill the folder `out`, unless it is complete; on all ranks if it is `distributed`.
        `also`: a second folder that the module fills, and its key. `name`: the forecast's, if it is not the folder's.
        """
        name = name or "/".join(out.parts[-2:])
        if is_complete(out, key) and (also is None or is_complete(*also)):
            self.forecast.done(name)
            return out
        with self.forecast.stage(name) as told:
            print(f"[{time.strftime('%H:%M:%S')}] {module} -> {out}" + (f"  ({told})" if told else ""), flush=True)
            words = ("--config", self.config, *arguments, "--out", out)
            if code := self.launcher.run(module, words, "-".join(out.parts[-2:]), distributed):
                raise SystemExit(code)
        return out

    def sft(self, seed: Path) -> Path:
        """M0: the seed that has learnt to judge and to meta-judge, by training or from the file that keeps its outcome.

        Runs with the same inputs share it.
        """
        sft = self.settings.sft
        if not sft.enabled:
            return seed
        return self.merged_judge(seed) if sft.sft_delta else self.trained_judge(seed)

    def trained_judge(self, seed: Path) -> Path:
        """The seed, fine-tuned on judging and meta-judging examples."""
        examples, labelled = self.folder / "sft" / "examples", self.eft(seed)
        key = examples_key(self.settings, seed, labelled)
        self.stage("prepare.examples", key, examples, "--model", seed, "--labelled", *labelled, distributed=False)
        data = examples / "examples.jsonl"
        key = train_key("sft", self.settings, 0, seed, seed, [data])
        shared = Path("models") / "sft" / key[:12]
        arguments = ("--stage", "sft", "--model", seed, "--data", data, "--work", shared / "work")
        shared.mkdir(parents=True, exist_ok=True)
        with held(shared):  # another run may want the same
            return self.stage("dpo.train", key, shared / "checkpoint", *arguments)

    def eft(self, seed: Path) -> list[Path]:
        """Judging examples from human rankings, where the config names any."""
        if not self.settings.eft.sources:
            return []
        out = self.stage("prepare.eft", eft_key(self.settings, seed), self.folder / "sft" / "eft", "--model", seed)
        return [out / "examples.jsonl"]

    def merged_judge(self, seed: Path) -> Path:
        """The seed with the difference that such training has made, from the file `sft.sft_delta`."""
        path = Path(self.settings.sft.sft_delta)
        if read_facts(path)["recipe"] != sft_recipe(self.settings, seed):
            raise UserError(
                f"{path}: made by another [sft] recipe than this config's; `make sft` makes it anew, or set "
                'sft.sft_delta to "" to train in this run'
            )
        key = stage_key("sft-delta", {}, {"model": seed, "file": path})
        out = Path("models") / "sft" / key[:12] / "checkpoint"
        if not is_complete(out, key):
            merge(seed, path, out)
            write_manifest(out, "sft-delta", key, [file for file in out.iterdir() if file.is_file()])
        return out

    def evaluate(self, model: Path, t: int, initial: Path) -> None:
        """Measure M_t, or with t = -1 the seed, on held-out data: as judge, meta-judge, actor, and against the seed."""
        evaluation, place, seed = self.settings.evaluation, ModelMeasurements.of(self.folder, t), self.seed_place
        judge = None
        if evaluation.prompts and place != seed:
            judge = chosen_model(evaluation.judge, "evaluation.judge", model, initial)
        self.measure(model, place, f"evaluation/{t}", judges=t >= 0 or evaluation.seed_judges, judge=judge)

    def measure(
        self, model: Path, place: ModelMeasurements, name: str, judges: bool = True, judge: Path | None = None
    ) -> None:
        """Have a model measured; runs share what they measure of the same weights.

        `judges`: whether as a judge and meta-judge, too. `judge`: who compares its answers with the seed's, if anyone.
        """
        evaluation = self.settings.evaluation
        cases = Path(evaluation.judge_cases.replace("{run}", str(self.folder))) if evaluation.judge_cases else None
        if not (evaluation.instructions or evaluation.prompts or (judges and (cases or evaluation.comparisons))):
            return
        against = self.seed_place.answers if judge else None
        key = measure_key(self.settings, model, judges, cases, judge, against)
        if is_complete(place.folder, key):
            self.forecast.done(name)
            return
        arguments: list[str | Path] = ["--model", model, *([] if judges else ["--answers-only"])]
        for option, value in {"--cases": cases, "--judge": judge, "--against": against}.items():
            arguments += [option, value] if value else []
        shared = Path("models") / "measured" / key[:12]
        shared.mkdir(parents=True, exist_ok=True)
        with held(shared):  # another run may want the same
            self.stage("evaluation.measure", key, shared, *arguments, name=name)
        copy_folder(shared, place.folder)

    def evaluate_initial(self, initial: Path) -> None:
        """Measure the seed, where SFT makes M_0 another model, and M_0."""
        if self.settings.sft.enabled:
            self.evaluate(Path(self.settings.model.path), -1, initial)
        self.evaluate(initial, 0, initial)

    @property
    def seed_place(self) -> ModelMeasurements:
        """What was measured of the seed."""
        return ModelMeasurements.of(self.folder, -1 if self.settings.sft.enabled else 0)

    def pool(self, seed: Path) -> Path:
        """The file of all prompts: the user's, or new ones after the example of seed prompts."""
        options = self.settings.prompts
        if not options.seeds:
            if not self.settings.respond.prompts:
                raise UserError(
                    f"{self.config}: no prompts; set respond.prompts, or prompts.seeds to have new ones made"
                )
            return Path(self.settings.respond.prompts)
        writer = other_model(options.model, "prompts.model") if options.model else seed
        key = prompts_key(self.settings, writer)
        return self.stage("prepare.new_prompts", key, self.folder / "pool", "--model", writer) / "prompts.jsonl"

    def draw_prompts(self, path: Path) -> None:
        """Each iteration's share of the pool, in an order that the seed decides; no two iterations share a prompt."""
        pool = list(read_jsonl(path, ("id", "prompt")))
        for row in pool:
            if not isinstance(row["id"], str) or not isinstance(row["prompt"], str):
                raise UserError(f"{path}: id {row['id']!r}: id and prompt must be texts; put quotes around them")
        repeated = [name for name, count in Counter(row["id"] for row in pool).items() if count > 1]
        if repeated:
            raise UserError(f"{path}: id {repeated[0]!r} comes twice; give each prompt its own")
        random.Random(self.settings.seed).shuffle(pool)
        size, iterations = self.settings.respond.prompts_per_iteration, len(self.settings.iteration)
        if len(pool) < iterations * size:
            wanted = iterations * size
            raise UserError(f"{path}: {len(pool)} prompts, but the iterations need {wanted}; add prompts")
        for t in range(iterations):
            write_jsonl(self.folder / f"iter{t + 1}" / "prompts.jsonl", pool[t * size : (t + 1) * size])

    def iteration(self, t: int, model: Path, initial: Path) -> Path:
        """M_t from M_{t-1} (`model`): act, judge, meta-judge, make pairs, train."""
        settings, folder = self.settings, self.folder / f"iter{t}"
        arguments: tuple[str | Path, ...]
        at: tuple[str | Path, ...] = ("--iteration", str(t), "--model", model)
        prompts = folder / "prompts.jsonl"
        key = respond_key(settings, model, prompts, t)
        if t == 1 and not (settings.judge.scores_file or list((folder / "responses").glob("units-*/*"))):
            words = ("--config", self.config, "--model", model, "--prompts", prompts)
            if code := self.launcher.run("judging.preview", words, "preview", distributed=False):
                raise SystemExit(code)
        responses = self.stage("sampling.generate", key, folder / "responses", *at, "--prompts", prompts)

        sources = Sources(responses, scores_file=self.external_scores(t, responses))
        if not settings.judge.scores_file:
            sources = self.judged(t, model, responses)
            if settings.iteration[t - 1].judge_pairs:
                meta_model = self.metajudge(model, initial)
                key = metajudge_key(settings, meta_model, sources, t)
                arguments = ("--iteration", str(t), "--model", meta_model, *sources.arguments())
                comparisons = self.stage("judging.metajudge", key, folder / "comparisons", *arguments)
                sources = replace(sources, comparisons=comparisons)

        key = pairs_key(settings, t, model, sources)
        pairs = self.stage("judging.pairs", key, folder / "pairs", *at, *sources.arguments(), distributed=False)
        if t == 1:  # measured after the first pairs, because users wait to see an iteration
            self.evaluate_initial(initial)
        self.check(t, sources, pairs)

        data = (pairs / "actor.jsonl", pairs / "judge.jsonl")
        reference = model if settings.dpo.reference == "previous" else initial
        key = train_key("dpo", settings, t, model, reference, list(data))
        arguments = ("--stage", "dpo", "--reference", reference, "--data", *data, "--work", folder / "train")
        return self.stage("dpo.train", key, folder / "checkpoint", *at, *arguments)

    def judged(self, t: int, model: Path, responses: Path) -> Sources:
        """What the judge says of the responses: judgments, expected scores, or both."""
        settings, folder = self.settings, self.folder / f"iter{t}"
        arguments: tuple[str | Path, ...] = ("--iteration", str(t), "--model", model, "--responses", responses)
        key, judgments = judge_key(settings, model, responses, t), folder / "judgments"
        if settings.judge.score == "sampled":
            return Sources(responses, self.stage("judging.judge", key, judgments, *arguments))
        own, scores = scores_key(settings, model, responses, t), folder / "scores"
        if settings.judge.verdict_position == "first" and not settings.iteration[t - 1].judge_pairs:
            return Sources(responses, scores=self.stage("judging.judge", own, scores, *arguments))
        arguments += ("--judgments", judgments)
        self.stage("judging.judge", own, scores, *arguments, also=(judgments, key))
        return Sources(responses, judgments, scores)

    def metajudge(self, model: Path, initial: Path) -> Path:
        """Who compares judgments."""
        return chosen_model(self.settings.metajudge.model, "metajudge.model", model, initial)

    def check(self, t: int, sources: Sources, pairs: Path) -> None:
        """Write the iteration's bias panel; raises `UserError` where it breaks one of the limits, before training."""
        path, evaluation = self.folder / f"iter{t}" / "bias.json", self.settings.evaluation
        own, initial = ModelMeasurements.of(self.folder, t - 1), ModelMeasurements.of(self.folder, 0)
        measured = {"current": own, "initial": initial}.get(self.settings.metajudge.model)
        panel = write_panel(
            path,
            t,
            self.settings,
            sources,
            pairs,
            agreement=own.agreement if evaluation.judge_cases else None,
            meta_agreement=measured.meta_agreement if measured and evaluation.comparisons else None,
        )
        if broken := broken_limits(panel, self.settings.limits):
            raise UserError(f"{path}: {'; '.join(broken)}: look into the panel, then mend the run or change [limits]")

    def external_scores(self, t: int, responses: Path) -> Path | None:
        """The file of scores that takes the judge's place, where the config names one.

        Raises `UserError` where it is not there yet: whoever makes it needs the responses first.
        """
        if not self.settings.judge.scores_file:
            return None
        name = self.settings.judge.scores_file.replace("{run}", str(self.folder)).replace("{t}", str(t))
        if not Path(name).is_file():
            raise UserError(
                f"{name}: no such file; score the responses in {responses}, a line {{id, score, text}} each, and run "
                "this command again"
            )
        return Path(name)


def other_model(path: str, key: str) -> Path:
    """A model besides the seed, which the user brings. Raises `UserError`, naming the setting, where it is missing."""
    if not (Path(path) / "config.json").is_file():
        raise UserError(f"{path}: no model here; put a Hugging Face directory there or change {key}")
    return Path(path)


def chosen_model(name: str, key: str, model: Path, initial: Path) -> Path:
    """Who a setting says is to judge: "current", the model at hand; "initial", M_0; or one that the user brings."""
    return {"current": model, "initial": initial}.get(name) or other_model(name, key)


def check_evaluation(evaluation: Evaluation, seed: Path) -> None:
    """Raise `UserError` for a file or model of [evaluation] that is missing or can't be read: now, not after SFT."""
    if evaluation.judge_cases and "{run}" not in evaluation.judge_cases:
        read_labelled(Path(evaluation.judge_cases))
    if evaluation.comparisons:
        read_comparisons(Path(evaluation.comparisons))
    if evaluation.instructions:
        read_instructions(Path(evaluation.instructions))
    if evaluation.prompts:
        read_prompts(evaluation.prompts)
        chosen_model(evaluation.judge, "evaluation.judge", seed, seed)


def sft_recipe(settings: Settings, seed: Path) -> str:
    """The identity of an SFT: its settings, and the content of its seed and of its examples' sources."""
    section = {key: value for key, value in as_dict(settings.sft).items() if not key.startswith("sft_delta")}
    facts = {
        "sft": section,
        "tokens_per_microbatch": settings.trainer.tokens_per_microbatch,
        "examples": examples_key(settings, seed),
    }
    if settings.eft.sources:
        facts["eft"] = eft_key(settings, seed)
    return stage_key("sft-recipe", facts, {"model": seed})


def make_sft_delta(run: Run) -> None:
    """Train M0 from nothing, and keep what that changed as the file `sft.sft_delta`, with what the file loses."""
    sft = run.settings.sft
    if not sft.sft_delta:
        raise UserError(f"{run.config}: sft.sft_delta is empty; name the file to write")
    seed, path = prepare(run.settings.model), Path(sft.sft_delta)
    trained = run.trained_judge(seed)
    facts: dict[str, Any] = {
        "command": f"make sft CONFIG={run.config}",
        "recipe": sft_recipe(run.settings, seed),
        "seed": run.settings.seed,
        "examples": digest(run.folder / "sft" / "examples"),
    }
    facts |= {key: value for key, value in (read_manifest(trained) or {}).items() if key in ("steps", "seconds")}
    write(seed, trained, sft.sft_delta_megabytes, path, **facts)
    measured: dict[str, float] = {}
    for name, model in (("trained", trained), ("merged", run.merged_judge(seed))):
        place = ModelMeasurements(run.folder / "sft" / name)
        run.measure(model, place, name)
        if place.agreement.is_dir():
            measured[f"{name}_pairwise"] = read_report(place.agreement)["pairwise"]["value"]
        if place.meta_agreement.is_dir():
            measured[f"{name}_metajudge"] = read_report(place.meta_agreement)["agreement"]["value"]
    print(json.dumps(annotate(path, **measured), indent=2))


def iterate(run: Run) -> None:
    """Seed -> SFT -> T iterations -> summary."""
    seed = prepare(run.settings.model)
    if any(iteration.judge_pairs for iteration in run.settings.iteration):
        run.metajudge(seed, seed)  # is it there?
    check_evaluation(run.settings.evaluation, seed)
    if run.settings.iteration:
        run.draw_prompts(run.pool(seed))
    model = initial = run.sft(seed)
    if not run.settings.iteration:
        run.evaluate_initial(initial)
        summary = write_summary(run.folder, run.settings, seed, initial, 0)
    for t in range(1, len(run.settings.iteration) + 1):
        model = run.iteration(t, model, initial)
        run.evaluate(model, t, initial)
        summary = write_summary(run.folder, run.settings, seed, initial, t)
    print_summary(summary)


def print_report(folder: Path) -> None:
    """Write the run's report and say where it is, or why there is none: it alone needs more than the run itself."""
    out = folder / "report.html"
    try:
        write_report([folder], out)
        print(f"  report       {out}")
    except UserError as error:
        print(f"  no report    {error}, then make report RUN={folder.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Run Meta-Rewarding end to end; the same command continues a run.")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--run", help="name of the run's folder below runs/; default: the config's name")
    parser.add_argument(
        "--make-sft-delta", action="store_true", help="only train M0, from nothing, and write sft.sft_delta"
    )
    several = parser.add_argument_group("several nodes", "start the same command on each")
    several.add_argument("--nodes", type=int, default=1)
    several.add_argument("--node", type=int, default=0, help="which of them this is, from 0")
    several.add_argument("--head", default="", help="HOST:PORT of node 0")
    arguments = parser.parse_args()
    settings = load_settings(arguments.config)
    folder = Path("runs") / (arguments.run or settings.name)
    on_sigterm_raise()
    launcher = Launcher(
        settings.nproc_per_node, folder / "logs", nodes=arguments.nodes, node=arguments.node, head=arguments.head
    )
    if arguments.node:
        raise SystemExit(launcher.follow())
    folder.mkdir(parents=True, exist_ok=True)
    with launcher.told_the_end(), held(folder):
        write_json(folder / "settings.json", as_dict(settings))
        run = Run(arguments.config, settings, folder, launcher)
        if arguments.make_sft_delta:
            make_sft_delta(run)
        else:
            iterate(run)
            print_report(folder)


if __name__ == "__main__":
    command(main)
