"""Does the judge prefer what people prefer?

`torchrun -m evaluation.agreement --cases FILE` lets a judge decide labelled pairs and ranked groups (`labelled.py`);
`--decisions FILE` takes any judge's decisions (`decisions.py`). The protocol "scores" judges each response alone, N
times, as the method does, and prefers the higher mean; "pairwise" compares two responses, N times in each order. Any
two members of a group with different quality are a pair. The report has, over the pairs with a verdict:

- pairwise: 1 where judge and label prefer the same, 1/2 where one of the two is a tie, 0 where they are opposed. Chance
  is 0.5.
- with_ties: the share where judge and label are equal, among first, second and tie; without_ties: the same share where
  neither is a tie. These are MT-Bench's S1 and S2: a pair whose orders disagree is a tie. The label is the annotators'
  majority, and a tie between labels is a tie; "annotators" counts their votes one by one, as MT-Bench does.
- kappa: Cohen's, of the judge and the label (`annotators.py`); for pairs that people labelled, not for groups.
- spearman: of quality and the judge's mean score, or share of wins, within a group, averaged over groups. Responses
  without a value are left out; a judge with all values equal counts as 0. exact_order: the share of groups in which any
  two members of different quality are in order; groups that lack a value are left out.
- consistency: how often both orders name the same response, or both neither; first_position: how often the response
  shown first wins, of comparisons with a winner.

The report has the same for the baseline "longer", which prefers the longer response, and for the file's subsets.
Intervals are bootstrap percentiles over groups. The judge's verdicts are written to decisions.jsonl.
"""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

from evaluation.decisions import Form, collect, read_decisions
from evaluation.labelled import Labelled, read_labelled
from evaluation.measures import report
from evaluation.pairwise import duel_items, read_duel
from judging.judge import judge_section, score_rows, scoring_section
from judging.scores import Row
from sampling.worker import Worker, generation_settings
from stages.files import UserError, command, read_json, read_shards, stage_key, write_json, write_manifest
from stages.settings import Protocol, Settings, load_settings
from stages.stage import Job, Output, first_rank, make_job

FORMS: dict[Protocol, Form] = {"scores": "scores", "pairwise": "comparisons"}
"""The form of each protocol's decisions."""


def read_report(folder: Path) -> dict[str, Any]:
    """The finished measurement in `folder`, of a judge or of a meta-judge."""
    return read_json(folder / "agreement.json")


def judged(worker: Worker, labelled: Labelled, protocol: Protocol, N: int, job: Job) -> list[dict[str, Any]]:
    """A model's decisions on the cases, by all ranks, as rows of decisions.jsonl; the records stay in the job."""
    if protocol == "scores":
        rows = score_rows(worker, [case.response for case in labelled.cases], N, job)
        return [{"id": row["response_id"]} | _kept(row, "index", "score", "failure") for row in rows]
    items = duel_items((pair.duel for pair in labelled.pairs), protocol, N, worker.chat, worker.settings)
    worker.run(job, items, partial(read_duel, protocol=protocol, judge=worker.settings.judge))
    rows = list(read_shards(job.out))
    return [{"id": row["duel"], "order": row["shown"]} | _kept(row, "index", "winner", "failure") for row in rows]


def _kept(row: Row, *keys: str) -> dict[str, Any]:
    return {key: row[key] for key in keys}


def measure_judge(worker: Worker, protocol: Protocol, N: int, job: Job) -> dict[str, Any]:
    """The measurement of a model on the input `judge_cases`, made and written unless the job is complete."""
    if job.complete:
        return read_report(job.out)
    labelled = read_labelled(job.path("judge_cases"))
    work = job.part("agreement", "judgments" if protocol == "scores" else "comparisons")
    rows = judged(worker, labelled, protocol, N, work)
    decisions = collect(FORMS[protocol], ((str(work.out), row) for row in rows), labelled, str(work.out))
    measured = {"judge": str(worker.model_dir)} | report(labelled, decisions)
    if first_rank():
        files = {"agreement.json": measured, "decisions.jsonl": rows}
        Output(files, {"counts": {"cases": len(labelled.cases)}}).write(job)
    return measured


def measure_stored(arguments: argparse.Namespace) -> dict[str, Any]:
    """The measurement of a file of decisions, written if a folder is named."""
    labelled = read_labelled(arguments.cases)
    measured = {"judge": str(arguments.decisions)} | report(labelled, read_decisions(arguments.decisions, labelled))
    if out := arguments.out:
        key = stage_key("agreement-decisions", {}, {"cases": arguments.cases, "decisions": arguments.decisions})
        write_json(out / "agreement.json", measured)
        write_manifest(out, "agreement", key, [out / "agreement.json"], counts={"cases": len(labelled.cases)})
    return measured


def agreement_job(settings: Settings, model: Path, cases: Path, protocol: Protocol, N: int, out: Path) -> Job:
    """The measurement as a job."""
    section = scoring_section(settings, N) if protocol == "scores" else judge_section(settings) | {"N": N}
    values = [protocol, generation_settings(settings, 0, section)]
    return make_job("agreement", settings, values, out, {"model": model, "judge_cases": cases})


LINES = {
    "pairwise": "agreement, a tie counting half",
    "with_ties": "with ties",
    "without_ties": "without ties",
    "kappa": "kappa with the label",
    "spearman": "Spearman within a group",
    "exact_order": "groups in exact order",
    "consistency": "both orders agree",
    "first_position": "the first one shown wins",
}
"""The measures of a table, with their names for people."""


def table(measured: Mapping[str, Any]) -> str:
    """A report for people: each measure with its interval and count, beside it the baseline's."""
    parsed = "-" if measured["parse_rate"] is None else f"{measured['parse_rate']:.1%}"
    lines = [f"{measured['judge']}: {measured['judgments']} {measured['form']}, {parsed} of them read"]
    lines += _part_lines("all", measured)
    if means := measured["mean_score_by_quality"]:
        lines.append("  mean score by quality   " + ", ".join(f"{name}: {mean:.2f}" for name, mean in means.items()))
    for name, part in measured["subsets"].items():
        lines += _part_lines(name, part)
    if (people := measured["annotators"]) and people["annotators"] > 1:
        among = people["among"]
        lines.append(f"{people['annotators']} annotators, {people['labels']} labels")
        lines += [
            f"  {'with ' + name:32}{_cell('kappa', row['kappa'])}" for name, row in people["by_annotator"].items()
        ]
        lines.append(f"  {'among them, mean':32}{among['reason'] or format(among['kappa'], '.2f')}")
    return "\n".join(lines)


def _part_lines(name: str, part: Mapping[str, Any]) -> list[str]:
    """The lines of all pairs, or of a subset, without measures of no pairs."""
    title = f"{name}, {part['pairs']} pairs"
    lines = [f"{title:34}{'judge':32}longer wins"]
    for key, text in LINES.items():
        if part[key]["count"]:
            lines.append(f"  {text:32}{_cell(key, part[key]):32}{_cell(key, part['longer'].get(key))}".rstrip())
    return lines


def _cell(key: str, measure: Mapping[str, Any] | None) -> str:
    """A value with its interval and count, a share in per cent."""
    if measure is None or measure["value"] is None:
        return (measure or {}).get("reason", "")
    value, low, high = (measure[name] for name in ("value", "low", "high"))
    if key in ("spearman", "kappa"):
        return f"{value:.2f} [{low:.2f}, {high:.2f}] of {measure['count']}"
    return f"{value:.1%} [{100 * low:.1f}, {100 * high:.1f}] of {measure['count']}"


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure how well a judge agrees with labelled pairs and groups.")
    parser.add_argument("--cases", required=True, type=Path, help="JSON lines of labelled pairs or groups")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--model", type=Path, help="Hugging Face directory of the judge")
    parser.add_argument("--protocol", choices=get_args(Protocol), help="how the model judges; default: scores")
    parser.add_argument("--N", type=int, help="judgments a response, or comparisons in each order; default: 1")
    parser.add_argument("--decisions", type=Path, help="JSON lines of verdicts, instead of a model")
    parser.add_argument("--out", type=Path, help="a folder; with --decisions it may be left out")
    arguments = parser.parse_args()
    of_a_model = {"--config": arguments.config, "--model": arguments.model, "--out": arguments.out}
    if arguments.decisions:
        of_a_model |= {"--protocol": arguments.protocol, "--N": arguments.N, "--out": None}
        if given := [name for name, value in of_a_model.items() if value is not None]:
            raise UserError(f"{given[0]} is for a model, and --decisions replaces the model; leave one of the two out")
    elif missing := [name for name, value in of_a_model.items() if value is None]:
        raise UserError(f"{missing[0]} is missing; name a model, its config and a folder, or a file of --decisions")
    if arguments.N is not None and arguments.N < 1:
        raise UserError(f"--N is {arguments.N}; it must be at least 1")
    return arguments


def main() -> None:
    arguments = read_arguments()
    if arguments.decisions:
        measured = measure_stored(arguments)
    else:
        settings, N = load_settings(arguments.config), arguments.N or 1
        protocol: Protocol = arguments.protocol or "scores"
        if N > 1 and protocol == "scores" and settings.judge.score_first:
            raise UserError(
                '--N: judge.score = "expected" with the verdict first has one score a response; leave it out'
            )
        job = agreement_job(settings, arguments.model, arguments.cases, protocol, N, arguments.out)
        measured = measure_judge(Worker(settings, arguments.model), protocol, N, job)
    if first_rank():
        print(table(measured))


if __name__ == "__main__":
    command(main)
