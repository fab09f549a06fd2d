"""What a run measures of one of its models, in one process: `torchrun -m evaluation.measure`.

As a judge (`agreement.py`), as a meta-judge (`meta_agreement.py`), as an actor (`held_out.py`), and against the seed
(`duel.py`), as far as the config's [evaluation] names data for it.
"""

import argparse
from pathlib import Path

from evaluation.agreement import agreement_key, measure_judge
from evaluation.duel import duel_key, measure_wins
from evaluation.folders import ModelMeasurements
from evaluation.held_out import held_out_key, measure_answers
from evaluation.meta_agreement import measure_metajudge, meta_agreement_key
from sampling.generate import Worker, first_rank
from stages.files import command, is_complete, stage_key, write_manifest
from stages.settings import Settings, load_settings


def measure_key(
    settings: Settings, model: Path, judges: bool, cases: Path | None, judge: Path | None, against: Path | None
) -> str:
    """The identity of all measurements of a model: it counts by its weights, so that runs can share them.

    `judges`: whether it is measured as a judge, on the labelled `cases` if there are any, and as a meta-judge.
    `against`: the answers of the model that `judge` compares its own with; both or neither.
    """
    evaluation, keys = settings.evaluation, []
    if judges and cases:
        keys.append(agreement_key(settings, model, cases, evaluation.N))
    if judges and evaluation.comparisons:
        keys.append(meta_agreement_key(settings, model, Path(evaluation.comparisons)))
    if evaluation.instructions or evaluation.prompts:
        keys.append(held_out_key(settings, model))
    if judge and against:  # its answers are not there yet, but they follow from the key above
        keys.append(duel_key(settings, judge, model, against))
    return stage_key("measure", keys, {})


def measure(arguments: argparse.Namespace, settings: Settings) -> None:
    """The command's work; each measurement that is there already stays."""
    place, evaluation = ModelMeasurements(arguments.out), settings.evaluation
    judge, against = arguments.judge, arguments.against
    key = measure_key(settings, arguments.model, not arguments.answers_only, arguments.cases, judge, against)
    if is_complete(place.folder, key):
        return
    worker, folders = Worker(settings, arguments.model), []
    if evaluation.instructions or evaluation.prompts:
        measure_answers(worker, place.held_out)
        folders.append(place.held_out)
    if arguments.cases and not arguments.answers_only:
        measure_judge(worker, arguments.cases, evaluation.N, "scores", place.agreement)
        folders.append(place.agreement)
    if evaluation.comparisons and not arguments.answers_only:
        measure_metajudge(worker, Path(evaluation.comparisons), place.meta_agreement)
        folders.append(place.meta_agreement)
    if against:
        other = worker if judge == arguments.model else Worker(settings, judge)
        measure_wins(other, place.answers, against, place.duel)
        folders.append(place.duel)
    if first_rank():
        write_manifest(place.folder, "measure", key, [folder / "manifest.json" for folder in folders])


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a model as a judge, as a meta-judge and as an actor.")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--model", required=True, type=Path, help="Hugging Face directory")
    parser.add_argument("--answers-only", action="store_true", help="a model that has not learnt to judge")
    parser.add_argument("--cases", type=Path, help="JSON lines of labelled responses")
    parser.add_argument("--judge", type=Path, help="Hugging Face directory of who compares its answers")
    parser.add_argument("--against", type=Path, help="with the answers in this folder")
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    measure(arguments, load_settings(arguments.config))


if __name__ == "__main__":
    command(main)
