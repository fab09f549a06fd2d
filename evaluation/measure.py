"""All measurements of one of a run's models, in one process: `torchrun -m evaluation.measure`.

The model is measured as a judge (`agreement.py`), as a meta-judge (`meta_agreement.py`), as an actor (`held_out.py`),
and against the seed model (`duel.py`), each if its file is given.
"""

from typing import Any

from evaluation.agreement import measure_judge
from evaluation.duel import measure_wins
from evaluation.folders import ModelMeasurements
from evaluation.held_out import measure_answers
from evaluation.meta_agreement import measure_metajudge
from judging.judge import judge_section, scoring_section
from sampling.worker import Worker, generation_settings
from stages.settings import Settings, as_dict
from stages.stage import Job, Output, Stage


def measure(job: Job) -> Output:
    """Measure a model as a judge, as a meta-judge and as an actor; finished measurements stay."""
    evaluation, folders = job.settings.evaluation, ModelMeasurements(job.out)
    worker, parts = Worker(job.settings, job.path("model")), []
    if job.has("instructions") or job.has("prompts"):
        parts.append(job.part("held-out", folders.held_out.name))
        measure_answers(worker, parts[-1])
    if job.has("judge_cases"):
        parts.append(job.part("agreement", folders.agreement.name))
        measure_judge(worker, "scores", evaluation.N, parts[-1])
    if job.has("comparisons"):
        parts.append(job.part("meta-agreement", folders.meta_agreement.name))
        measure_metajudge(worker, parts[-1])
    if judge := job.optional("judge"):
        judge_worker = worker if judge == job.path("model") else Worker(job.settings, judge)
        parts.append(job.part("duel", folders.duel.name))
        measure_wins(judge_worker, folders.answers, parts[-1])
    return Output({}, written=[part.out / "manifest.json" for part in parts])


def _settings(settings: Settings, iteration: int) -> Any:
    evaluation, meta = settings.evaluation, as_dict(settings.metajudge)
    section = {
        "answers": [settings.respond.temperature, settings.respond.top_p, settings.respond.max_new_tokens],
        "judge": [judge_section(settings), scoring_section(settings, evaluation.N)],
        "metajudge": [
            meta[name] for name in ("temperature", "top_p", "max_new_tokens", "prompt_style", "verdict_position")
        ],
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
