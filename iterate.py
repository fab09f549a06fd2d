"""Meta-Rewarding: M_t acts, judges and meta-judges, and DPO on its own preferences makes M_{t+1}.

    python iterate.py --config configs/smollm2-135m.toml [--run NAME]

    M0 = the seed after SFT on judging (prepare.eft, prepare.examples, dpo.sft)
    for t = 1 ... T, with M = M_{t-1} (`Run.iteration`):
        responses     M answers each prompt K times                              sampling.respond
        judgments     M judges each response N times                             judging.judge, judging.expected
        comparisons   M compares the judgments of one response of each prompt    judging.metajudge
        pairs         the best and worst responses, and judgments                judging.pairs
        checkpoint    DPO on the pairs makes M_t                                 dpo.train
        evaluation    M_t as judge, meta-judge and actor on held-out data        evaluation.measure

This file decides which stage comes next, on which files. Each stage is a process that reads files and writes files; it
is left out when its output is complete for the same inputs and settings. So the same command continues a stopped run.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import stages.interrupt  # noqa: F401

# isort: split
from dpo.sft import SFT
from dpo.train import DPO
from evaluation.agreement import read_comparisons, read_report
from evaluation.bias import broken_limits, write_panel
from evaluation.labelled import read_labelled
from evaluation.measure import MEASURE, ModelMeasurements
from evaluation.report import write_report
from evaluation.summary import print_summary, write_summary
from evaluation.verifiable import read_instructions
from judging.expected import SCORE
from judging.judge import JUDGE
from judging.metajudge import METAJUDGE
from judging.pairs import PAIRS, Sources
from prepare.eft import EFT
from prepare.examples import EXAMPLES
from prepare.new_prompts import NEW_PROMPTS
from prepare.pool import draw_prompts
from prepare.seed_model import prepare
from prepare.sft_delta import annotate, mean_model, merge, read_facts, shared_model, write
from sampling.respond import RESPOND
from stages import files
from stages.command import UserError, command, on_sigterm_raise
from stages.files import is_complete, stage_key, write_jsonl
from stages.launch import Launcher
from stages.lock import run_lock
from stages.rows import read_prompts
from stages.runner import Runner
from stages.settings import Settings, as_dict, earlier_sfts, load_settings

STAGES = (EFT, EXAMPLES, SFT, NEW_PROMPTS, RESPOND, SCORE, JUDGE, METAJUDGE, PAIRS, DPO, MEASURE)


def iterate(run: "Run") -> None:
    """Seed -> SFT -> T iterations -> summary."""
    settings, seed = run.settings, prepare(run.settings.model)
    check_inputs(settings, seed)
    if settings.iteration:
        for t, rows in enumerate(draw_prompts(run.pool(seed), settings), 1):
            write_jsonl(run.folder / f"iter{t}" / "prompts.jsonl", rows)
    model = initial = run.sft(seed)
    if not settings.iteration:
        run.evaluate_initial(initial)
        summary = write_summary(run.folder, settings, seed, initial, 0)
    for t in range(1, len(settings.iteration) + 1):
        model = run.iteration(t, model, initial)
        run.evaluate(model, t, initial)
        summary = write_summary(run.folder, settings, seed, initial, t)
    print_summary(summary)


class Run(Runner):
    """A run and the steps of the method."""

    def iteration(self, t: int, model: Path, initial: Path) -> Path:
        """Make M_t from M_{t-1} (`model`): act, judge, meta-judge, make pairs, train."""
        settings, folder, prompts = self.settings, self.folder / f"iter{t}", self.folder / f"iter{t}" / "prompts.jsonl"
        if t == 1 and settings.judges(t) and not list((folder / "responses").glob("shards-*/*")):
            self.start("judging.preview", ("--config", self.config, "--model", model, "--prompts", prompts), "preview")
        responses = self.run_stage(RESPOND, folder / "responses", t, model=model, prompts=prompts)
        sources = self.judged(t, model, responses)
        if settings.iteration[t - 1].judge_pairs and settings.judges(t):
            judge = chosen_model(settings.metajudge.model, "metajudge.model", model, initial)
            comparisons = self.run_stage(METAJUDGE, folder / "comparisons", t, model=judge, **sources.paths())
            sources = replace(sources, comparisons=comparisons)
        pairs = self.run_stage(PAIRS, folder / "pairs", t, model=model, **sources.paths())
        if t == 1:  # after the first pairs, since users wait to see an iteration
            self.evaluate_initial(initial)
        self.check(t, sources, pairs)
        data = [pairs / "actor.jsonl", pairs / "judge.jsonl"]
        reference = model if settings.dpo.reference == "previous" else initial
        return self.run_stage(DPO, folder / "checkpoint", t, model=model, reference=reference, data=data)

    def judged(self, t: int, model: Path, responses: Path) -> Sources:
        """The responses with what scores them: judgments, expected scores, or both, or a file of scores."""
        judge, sources, rule = self.settings.judge, Sources(responses), self.settings.iteration[t - 1]
        if rule.labels == "rules":
            return replace(sources, prompts=self.folder / f"iter{t}" / "prompts.jsonl")
        if name := judge.scores_file.replace("{run}", str(self.folder)).replace("{t}", str(t)):
            if not Path(name).is_file():
                row = "a line {id, score, text} each"
                raise UserError(f"{name}: no such file; score the responses in {responses}, {row}, and start again")
            return replace(sources, scores_file=Path(name))
        steps = [("judgments", JUDGE)]
        if judge.score_first:  # judgments are for the meta-judge alone, of the responses that scores choose
            steps = [("scores", SCORE), *steps[: rule.judge_pairs]]
        elif judge.score == "expected":
            steps.append(("scores", SCORE))
        for name, stage in steps:
            out = self.run_stage(stage, self.folder / f"iter{t}" / name, t, model=model, **sources.paths())
            sources = replace(sources, **{name: out})
        return sources

    def check(self, t: int, sources: Sources, pairs: Path) -> None:
        """Write the iteration's bias panel. Raises `UserError` if the panel breaks one of the limits."""
        path, evaluation = self.folder / f"iter{t}" / "bias.json", self.settings.evaluation
        own, initial = (ModelMeasurements.of(self.folder, model) for model in (t - 1, 0))
        metajudge = {"current": own, "initial": initial}.get(self.settings.metajudge.model)
        agreement = own.agreement if evaluation.judge_cases else None
        meta_agreement = metajudge.meta_agreement if metajudge and evaluation.comparisons else None
        panel = write_panel(path, t, self.settings, sources, pairs, agreement, meta_agreement)
        if broken := broken_limits(panel, self.settings.limits):
            raise UserError(f"{path}: {'; '.join(broken)}: look into the panel, then mend the run or change [limits]")

    def pool(self, seed: Path) -> list[Path]:
        """The files of all prompts: the user's, or new prompts written after seed prompts."""
        if self.settings.prompts.seeds:
            writer = chosen_model(self.settings.prompts.model or "current", "prompts.model", seed, seed)
            return [self.run_stage(NEW_PROMPTS, self.folder / "pool", model=writer) / "prompts.jsonl"]
        if not self.settings.respond.prompts:
            raise UserError(f"{self.config}: no prompts; set respond.prompts, or prompts.seeds to make new ones")
        return [Path(name) for name in self.settings.respond.prompts]

    def sft(self, seed: Path) -> Path:
        """M0, which can judge and meta-judge: the seed after SFT, or the seed plus the change that SFT once made."""
        sft = self.settings.sft
        return seed if not sft.enabled else self.merged_m0(seed) if sft.sft_delta else self.trained_m0(seed)

    def trained_m0(self, seed: Path) -> Path:
        """The seed after the SFTs that `sft.after` names, each before those that continue it, and after this one."""
        models: dict[str, Path] = {}
        for name, settings in earlier_sfts(self.settings.sft).items():
            run = Run(Path(name), settings, self.folder / "sft" / Path(name).stem, self.launcher)
            models[name] = run.continued_sft(seed, [models[before] for before in settings.sft.after])
        return self.continued_sft(seed, [models[before] for before in self.settings.sft.after])

    def continued_sft(self, seed: Path, earlier: Sequence[Path]) -> Path:
        """The mean of the models `earlier`, or without any the seed, fine-tuned on judging and meta-judging examples,
        if the config has some. Runs with the same inputs share it."""
        folder, labelled, start = self.folder / "sft", None, mean_model(earlier) if earlier else seed
        if earlier and not (self.settings.sft.examples or self.settings.eft.sources):
            return start
        folder.mkdir(parents=True, exist_ok=True)
        if self.settings.eft.sources:
            labelled = self.run_stage(EFT, folder / "eft", model=seed) / "examples.jsonl"
        examples = self.run_stage(EXAMPLES, folder / "examples", model=seed, labelled=labelled)
        job = SFT.job(self.settings, Path(), model=start, data=examples / "examples.jsonl")
        return self.run_shared(SFT, job, Path("models") / "sft" / job.key[:12], "checkpoint")

    def merged_m0(self, seed: Path) -> Path:
        """The seed plus the change that SFT makes, from the file `sft.sft_delta`."""
        path = Path(self.settings.sft.sft_delta)
        if read_facts(path)["recipe"] != sft_recipe(self.settings, seed):
            mend = '`make sft` makes it anew, or set sft.sft_delta to "" to train in this run'
            raise UserError(f"{path}: made by another [sft] recipe than this config's; {mend}")
        key = stage_key("sft-delta", {}, {"model": seed, "file": path})
        return shared_model("sft-delta", key, lambda out: merge(seed, path, out))

    def evaluate_initial(self, initial: Path) -> None:
        """Measure M_0 and, if SFT makes it another model, the seed."""
        if self.settings.sft.enabled:
            self.evaluate(Path(self.settings.model.path), -1, initial)
        self.evaluate(initial, 0, initial)

    def evaluate(self, model: Path, t: int, initial: Path) -> None:
        """Measure M_t, or with t = -1 the seed, on held-out data: as judge, meta-judge, actor, and against the seed."""
        evaluation, seed = self.settings.evaluation, -1 if self.settings.sft.enabled else 0
        duel: dict[str, Path] = {}
        if evaluation.prompts and t != seed:
            judge = chosen_model(evaluation.judge, "evaluation.judge", model, initial)
            duel = {"judge": judge, "against": ModelMeasurements.of(self.folder, seed).answers}
        folders, judges = ModelMeasurements.of(self.folder, t), t >= 0 or evaluation.seed_judges
        self.measure(model, folders, f"evaluation/{t}", judges, **duel)

    def measure(self, model: Path, folders: ModelMeasurements, name: str, judges: bool = True, **duel: Path) -> None:
        """Measure a model, if `judges` as a judge and meta-judge, too. Runs share measurements of the same weights."""
        evaluation = self.settings.evaluation
        inputs: dict[str, Any] = {"instructions": evaluation.instructions, "prompts": evaluation.prompts, **duel}
        if judges:
            cases = evaluation.judge_cases.replace("{run}", str(self.folder))
            inputs |= {"judge_cases": cases, "comparisons": evaluation.comparisons}
        if not any(inputs.values()):
            return
        job = MEASURE.job(self.settings, Path(), model=model, **inputs)
        if is_complete(folders.folder, job.key):
            self.forecast.done(name)
        else:
            shared = Path("models") / "measured" / job.key[:12]
            self.run_shared(MEASURE, job, shared, name=name)
            shutil.rmtree(folders.folder, ignore_errors=True)
            shutil.copytree(shared, folders.folder)


def sft_recipe(settings: Settings, seed: Path) -> str:
    """The identity of an SFT: its settings, the seed, the examples' sources, and the SFTs that it continues."""
    sft = {key: value for key, value in as_dict(settings.sft).items() if key not in ("sft_delta", "after")}
    stages = (EXAMPLES, EFT) if settings.eft.sources else (EXAMPLES,)
    examples, earlier = [stage.job(settings, Path(), model=seed).key for stage in stages], earlier_sfts(settings.sft)
    facts = {"sft": sft, "tokens": settings.trainer.tokens_per_microbatch, "examples": examples}
    if earlier:
        facts["after"] = [sft_recipe(earlier[name], seed) for name in settings.sft.after]
    return stage_key("sft-recipe", facts, {"model": seed})


def chosen_model(name: str, key: str, model: Path, initial: Path) -> Path:
    """The model that the setting `key` names: "current", `model`; "initial", M_0; or a directory, else `UserError`."""
    path = {"current": model, "initial": initial}.get(name)
    if path is None and not (Path(name) / "config.json").is_file():
        raise UserError(f"{name}: no model here; put a Hugging Face directory there or change {key}")
    return path or Path(name)


def check_inputs(settings: Settings, seed: Path) -> None:
    """Raise `UserError`, before any training, for a missing or unreadable file or model."""
    evaluation = settings.evaluation
    if any(iteration.judge_pairs for iteration in settings.iteration):
        chosen_model(settings.metajudge.model, "metajudge.model", seed, seed)
    if evaluation.prompts:
        chosen_model(evaluation.judge, "evaluation.judge", seed, seed)
    own_cases = "" if "{run}" in evaluation.judge_cases else evaluation.judge_cases  # which the run does not make
    paths = (own_cases, evaluation.comparisons, evaluation.instructions, evaluation.prompts)
    readers: list[Callable[[Path], Any]] = [read_labelled, read_comparisons, read_instructions, read_prompts]
    for path, read in zip(paths, readers, strict=True):
        if path:
            read(Path(path))


def make_sft_delta(run: Run) -> None:
    """Train M0, write the change as the file `sft.sft_delta`, and measure M0 from training and from the file."""
    if not run.settings.sft.sft_delta:
        raise UserError(f"{run.config}: sft.sft_delta is empty; name the file to write")
    seed, path = prepare(run.settings.model), Path(run.settings.sft.sft_delta)
    trained = run.trained_m0(seed)
    command_line, recipe = f"make sft CONFIG={run.config}", sft_recipe(run.settings, seed)
    facts = {"command": command_line, "recipe": recipe, "seed": run.settings.seed}
    write(seed, trained, 11.9, path, **facts)  # 11.9 MB at most
    measured: dict[str, float] = {}
    for name, model in (("trained", trained), ("merged", run.merged_m0(seed))):
        folders = ModelMeasurements(run.folder / "sft" / name)
        run.measure(model, folders, name)
        reports = (("pairwise", folders.agreement, "pairwise"), ("metajudge", folders.meta_agreement, "agreement"))
        for measure, folder, key in reports:
            if folder.is_dir():
                measured[f"{name}_{measure}"] = read_report(folder)[key]["value"]
    print(json.dumps(annotate(path, **measured), indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description="Run Meta-Rewarding end to end; the same command continues a run.")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--run", help="name of the run's folder below runs/; default: the config's name")
    parser.add_argument("--make-sft-delta", action="store_true", help="only train M0 and write sft.sft_delta")
    several = parser.add_argument_group("several nodes", "start the same command on each")
    several.add_argument("--nodes", type=int, help="how many; default: one")
    several.add_argument("--node", type=int, default=0, help="which of them this is, from 0")
    several.add_argument("--head", default="", help="HOST:PORT of node 0")
    arguments = parser.parse_args()
    settings = load_settings(arguments.config)
    name = arguments.run or settings.name
    if Path(name).name != name or name in ("", "..") or not name.isprintable():
        raise UserError(f"{name!r}: no name of a folder below runs/; mend --run or the config's name")
    folder = Path("runs") / name
    if arguments.head and not arguments.nodes:
        raise UserError(f"--head {arguments.head}: --nodes is missing; say how many there are, or leave both out")
    on_sigterm_raise()
    launcher = Launcher(settings.nproc_per_node, folder / "logs", arguments.nodes or 1, arguments.node, arguments.head)
    if arguments.node:
        launcher.follow([stage.module for stage in STAGES])
    with launcher.coordinate(), run_lock(folder):
        files.write_json(folder / "settings.json", as_dict(settings))
        run = Run(arguments.config, settings, folder, launcher)
        if arguments.make_sft_delta:
            return make_sft_delta(run)
        iterate(run)
        try:
            write_report([folder], folder / "report.html")
            print(f"  report       {folder / 'report.html'}")
        except UserError as error:  # the report needs packages that the run does not
            print(f"  no report    {error}, then make report RUN={folder.name}")


if __name__ == "__main__":
    command(main)
