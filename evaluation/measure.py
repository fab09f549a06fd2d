"""All measurements of one of a run's models, in one process: `torchrun -m evaluation.measure`."""

from functools import partial
from pathlib import Path
from typing import Any

from evaluation.agreement import measure_judge, measure_metajudge
from evaluation.held_out import measure_answers, measure_wins
from judging.judge import judge_section, scoring_section
from sampling.worker import Worker, generation_settings
from stages.settings import Settings
from stages.stage import Job, Output, Stage


class ModelMeasurements:
    """The folder of one model's measurements, and the folders in it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.agreement, self.meta_agreement = folder / "judge", folder / "metajudge"  # on labelled data
        self.held_out, self.answers = folder / "actor", folder / "actor" / "answers"
        self.duel = folder / "wins"  # the answers compared with the seed's

    @classmethod
    def of(cls, run: Path, t: int) -> "ModelMeasurements":
        """The folder of M_t; t = -1 is the seed, where SFT makes M_0 another model."""
        return cls(run / "evaluation" / ("seed" if t < 0 else f"M{t}"))


def measure(job: Job) -> Output:
    """Measure a model as a judge, as a meta-judge, as an actor and against the seed, each if its file is given.

    Finished measurements stay.
    """
    folders, model = ModelMeasurements(job.out), job.path("model")
    worker, judge = Worker(job.settings, model), job.optional("judge") or model
    judge_worker = worker if judge == model else Worker(job.settings, judge)
    judging = partial(measure_judge, worker, "scores", job.settings.evaluation.N)
    measurements = (
        ("held-out", folders.held_out, ("instructions", "prompts"), partial(measure_answers, worker)),
        ("agreement", folders.agreement, ("judge_cases",), judging),
        ("meta-agreement", folders.meta_agreement, ("comparisons",), partial(measure_metajudge, worker)),
        ("duel", folders.duel, ("judge",), partial(measure_wins, judge_worker, folders.answers)),
    )
    written = []
    for name, folder, inputs, work in measurements:
        if any(map(job.has, inputs)):
            part = job.part(name, folder.name)
            written.append(part.out / "manifest.json")
            if not part.complete:
                work(part)
    return Output({}, written=written)


def _settings(settings: Settings, iteration: int) -> Any:
    evaluation, respond, meta = settings.evaluation, settings.respond, settings.metajudge
    section = {
        "answers": [respond.temperature, respond.top_p, respond.max_new_tokens],
        "judge": [judge_section(settings), scoring_section(settings, evaluation.N)],
        "metajudge": [meta.temperature, meta.top_p, meta.max_new_tokens, meta.prompt_style, meta.verdict_position],
        "wins": [evaluation.protocol, evaluation.duel_samples],
    }
    return generation_settings(settings, 0, section)


MEASURE = Stage(
    "measure",
    "evaluation.measure",
    measure,
    settings=_settings,
    inputs=("model",),
    optional=("judge_cases", "comparisons", "instructions", "prompts", "judge", "against"),
    ranks="all",
)

if __name__ == "__main__":
    MEASURE.main()
