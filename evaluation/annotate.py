"""Any judge as a benchmark's annotator: the annotations that `evaluation.winrate`, `.arena` and `.mtbench` read.

`torchrun -m evaluation.annotate --benchmark B --answers FILE --out OUT` reads answers as `evaluation/answers.py` writes
them. The judge is `--judge DIR`, a Hugging Face folder, which scores each answer alone, as in the loop, or compares
(`--protocol`, evaluation/pairwise.py), `--N` times; or `--verdicts FILE`, verdicts from elsewhere (`verdicts.py`).

- alpaca-eval: `--baseline` has the questions and the answers to compare with. OUT/annotations.json is a list of
  {dataset, instruction, output_1, generator_1, output_2, generator_2, annotator, preference, raw}; output_1 is the
  baseline's. Preference goes from 1, the baseline's, over 1.5, a tie, to 2, the model's, and is the mean over orders
  and samples; null if no verdict could be read. "raw" has the verdicts behind the mean.
- arena-hard: `--questions`, `--baseline`. OUT/model_judgment/JUDGE/NAME.jsonl has a row a question, {question_id,
  model, judge, baseline, games}, or {uid, category, ...} in the form of v2.0, and two games {judgment, score}: the
  baseline's answer as A, then as B. Scores are "A>B", "A=B", "B>A", or null. There are no strong verdicts, ">>":
  neither our pairwise prompt nor our rubric defines when an answer is much better. If each answer is scored alone,
  there is no order: both games have the same result, and are one piece of evidence, not two.
- mt-bench: `--questions`. OUT/model_judgment/JUDGE_single.jsonl has a row a turn, {question_id, model, judge, judgment,
  score, scale, turn, tstamp}. The score is the mean over the samples with a score, or null. Our rubric goes from 0
  to 5 and MT-Bench's from 1 to 10: "scale" says which, and the two must not be averaged or compared. The judge of a
  second turn sees the dialog so far; reference answers are not shown.

Each row names the judge, by `--judge-name` or by its folder and the beginning of its weights' digest; the names of the
benchmarks' own annotators are refused. The result is this judge's number, not the benchmark's.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from evaluation.answers import ALPACA_EVAL, MT_BENCH, TURNS
from evaluation.arena import V1, V2
from evaluation.findings import Finding, Score, plain, write_findings, write_scores
from evaluation.matches import Match, read_matches
from evaluation.mtbench import JUDGE
from evaluation.pairwise import Duel, decide, duel_items, read_duel
from evaluation.verdicts import found_elsewhere, judge_of, read_verdicts, scored_elsewhere
from evaluation.winrate import OFFICIAL_ANNOTATOR
from judging.judge import judge_items, judge_section, read_score
from judging.scores import mean_score
from judging.verdict import MAXIMUM
from model.chat import ChatFormat
from prepare.rankings import conversation_text
from sampling.worker import Item, Worker, generation_settings
from stages.files import UserError, command, digest, read_manifest, read_shards
from stages.records import group_by
from stages.settings import Protocol, Settings, load_settings
from stages.stage import Job, Output, first_rank, make_job

Record = dict[str, Any]

OFFICIAL = {OFFICIAL_ANNOTATOR, *V1.judges, *V2.judges, JUDGE}
"""The annotators behind the benchmarks' official numbers, whose files need no annotating."""


@dataclass(frozen=True)
class Asking:
    """How a model is asked for its judgment."""

    model_dir: Path
    settings: Settings
    protocol: Protocol
    N: int


def dialog_text(match: Match, turn: int) -> str:
    """The question that the judge of a turn (from 0) is shown: the dialog up to that turn."""
    messages: list[dict[str, str]] = []
    for question, answer in zip(match.question.turns[:turn], match.answer.texts, strict=False):
        messages += [{"role": "prompter", "text": question}, {"role": "assistant", "text": answer}]
    return conversation_text([*messages, {"role": "prompter", "text": match.question.turns[turn]}])


def duels(matches: Sequence[Match]) -> list[Duel]:
    """The matches as duels, the baseline's answer first."""
    made = []
    for match in matches:
        assert match.baseline is not None
        texts = (match.baseline.texts[0], match.answer.texts[0])
        made.append(Duel(match.question.id, match.question.turns[0], *texts))
    return made


def judge_turns(matches: Sequence[Match], asking: Asking, chat: ChatFormat) -> list[Item]:
    """N requests for each turn of each match."""
    rows = []
    for match in matches:
        for turn, text in enumerate(match.answer.texts):
            name = f"{match.question.id}/turn{turn + 1}"
            rows.append({"id": name, "prompt_id": name, "prompt": dialog_text(match, turn), "text": text})
    return list(judge_items(rows, chat, asking.settings, 0, asking.N))


def ask(benchmark: str, matches: Sequence[Match], asking: Asking, job: Job) -> list[Record]:
    """The judge's records, by all ranks, in the job's folder. Raises `UserError` for expected scores (no texts)."""
    settings, worker = asking.settings, Worker(asking.settings, asking.model_dir)
    if settings.judge.score == "expected":
        raise UserError('judge.score is "expected", but annotations need the judgments\' texts; set it to "sampled"')
    if benchmark == MT_BENCH:
        worker.run(job, judge_turns(matches, asking, worker.chat), partial(read_score, judge=settings.judge))
    else:
        items = duel_items(duels(matches), asking.protocol, asking.N, worker.chat, settings)
        worker.run(job, items, partial(read_duel, protocol=asking.protocol, judge=settings.judge))
    return list(read_shards(job.out))


def found_by_judge(matches: Sequence[Match], records: Sequence[Record], protocol: Protocol) -> list[Finding]:
    """Each match's finding, from a judge's records."""
    by_duel, findings = group_by(records, "duel"), []
    for duel in duels(matches):
        rows = by_duel.get(duel.id, [])
        sides = ["\n\n".join(row["text"] for row in rows if row["shown"] == side) for side in (0, 1)]
        games = (sides[0], sides[1])
        if protocol == "scores" and rows:  # a game has both answers' judgments, A's and then B's
            games = ("\n\n".join(sides), "\n\n".join(reversed(sides)))
        verdict = "score" if protocol == "scores" else "winner"
        raw = [{key: row[key] for key in ("shown", "index", verdict, "failure", "text")} for row in rows]
        findings.append(Finding(decide(duel, rows, protocol), raw, games))
    return findings


def scored_by_judge(matches: Sequence[Match], records: Sequence[Record]) -> list[list[Score]]:
    """Each match's scores, one for each turn."""
    by_turn = group_by(records, "response_id")

    def score(name: str) -> Score:
        mean = mean_score(by_turn[name], 1)
        value = None if mean is None else plain(mean)
        return Score(value, [0, MAXIMUM], "\n\n".join(row["text"] for row in by_turn[name]))

    turns = range(1, TURNS[MT_BENCH] + 1)
    return [[score(f"{match.question.id}/turn{turn}") for turn in turns] for match in matches]


def named(name: str) -> str:
    """The judge's name. Raises `UserError` for an official annotator's name and a name that can't be a file's."""
    if name.strip().lower() in OFFICIAL:
        raise UserError(
            f"the judge's name {name!r} is that of a benchmark's own annotator, whose files need no annotating; "
            "give another one by --judge-name"
        )
    if not name.strip(" .") or "/" in name:
        raise UserError(f"the judge's name {name!r} becomes a file's; give one without a slash by --judge-name")
    return name


def count_findings(findings: Sequence[Finding]) -> dict[str, int]:
    """Numbers of questions by better answer, and of questions without a verdict."""
    count = Counter(finding.decision.preference for finding in findings)
    better = {"baseline_better": count["first"], "tied": count["tie"], "model_better": count["second"]}
    return {"questions": len(findings)} | better | {"without_verdict": count[None]}


def count_scores(scores: Sequence[Sequence[Score]]) -> dict[str, int]:
    """Numbers of turns with and without a score."""
    values = [score.value for turns in scores for score in turns]
    unread = values.count(None)
    return {"questions": len(scores), "scored": len(values) - unread, "without_verdict": unread}


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Have any judge annotate answers to a benchmark.")
    parser.add_argument("--benchmark", required=True, choices=list(TURNS))
    parser.add_argument("--answers", required=True, type=Path, help="the model's, in the benchmark's format")
    parser.add_argument("--baseline", type=Path, help="the answers to compare with (alpaca-eval, arena-hard)")
    parser.add_argument("--questions", type=Path, help="the benchmark's own file (arena-hard, mt-bench)")
    judge = parser.add_mutually_exclusive_group(required=True)
    judge.add_argument("--judge", type=Path, help="Hugging Face directory")
    judge.add_argument("--verdicts", type=Path, help="JSON lines of verdicts from elsewhere (evaluation/verdicts.py)")
    parser.add_argument("--config", type=Path, help="the settings of --judge")
    parser.add_argument(
        "--protocol", choices=get_args(Protocol), default="scores", help="how --judge is asked; default: scores"
    )
    parser.add_argument("--N", type=int, default=1, help="judgments an answer, or comparisons an order; default: 1")
    parser.add_argument("--judge-name", help="default: the folder and the digest of --judge, or who --verdicts names")
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    check_arguments(arguments)
    return arguments


def check_arguments(given: argparse.Namespace) -> None:
    """Raise `UserError` for options that the benchmark or the judge lacks, or does not use."""
    benchmark = given.benchmark
    needed = {"--baseline": benchmark != MT_BENCH, "--questions": benchmark != ALPACA_EVAL}
    for option, value in (("--baseline", given.baseline), ("--questions", given.questions)):
        if needed[option] != (value is not None):
            raise UserError(
                f"{option}: {benchmark} {'needs it' if needed[option] else 'has no use for it; leave it out'}"
            )
    if given.judge and not given.config:
        raise UserError("--config: --judge needs one; its [judge], [engine] and [model] say how to ask")
    if given.verdicts and (given.config or given.protocol != "scores" or given.N != 1):
        raise UserError("--config, --protocol, --N: they say how to ask a --judge; --verdicts has no use for them")
    if benchmark == MT_BENCH and given.protocol != "scores":
        raise UserError(f"--protocol {given.protocol}: the answers of {benchmark} are scored, one by one; leave it out")
    if given.N < 1:
        raise UserError(f"--N is {given.N}; it must be at least 1")


def annotation_job(given: argparse.Namespace, settings: Settings | None, what: str, out: Path) -> Job:
    """The job of the judge, or of the benchmark's file; `what` tells the two apart."""
    names = ("answers", "baseline", "questions", "judge", "verdicts")
    values: Any = {"benchmark": given.benchmark, "what": what}
    if settings:
        asked = {"protocol": given.protocol, "N": given.N}
        values = generation_settings(settings, 0, judge_section(settings) | asked | values)
    return make_job("annotate", settings, values, out, {name: getattr(given, name) for name in names})


def main() -> None:
    given, started = read_arguments(), time.monotonic()
    benchmark, out = given.benchmark, given.out
    matches = read_matches(benchmark, given.answers, given.baseline, given.questions)
    settings, records, verdicts = None, [], {}
    if given.judge:
        settings = load_settings(given.config)
        judge = given.judge_name or f"{given.judge.resolve().name}-{digest(given.judge)[:8]}"
    else:
        verdicts = read_verdicts(benchmark, [match.question for match in matches], given.verdicts)
        judge = given.judge_name or judge_of(verdicts, given.verdicts)
    job = annotation_job(given, settings, f"{named(judge)} of {given.answers.stem}", out)
    if job.complete:
        return
    work = annotation_job(given, settings, "judgments", out / "judgments")
    if settings:
        asking = Asking(given.judge, settings, given.protocol, given.N)
        records = ask(benchmark, matches, asking, work)
    if not first_rank():
        return  # every rank has the same records; one writes the file
    if benchmark == MT_BENCH:
        scores = scored_by_judge(matches, records) if settings else scored_elsewhere(matches, verdicts)
        path, counts = write_scores(matches, scores, judge, out), count_scores(scores)
    else:
        if settings:
            findings = found_by_judge(matches, records, given.protocol)
        else:
            findings = found_elsewhere(matches, verdicts, given.verdicts)
        path = write_findings(benchmark, matches, findings, judge, given.answers.stem, out)
        counts = count_findings(findings)
    facts = {"file": str(path.relative_to(out)), "judge": judge, "counts": counts}
    outputs = [path]
    if manifest := read_manifest(work.out) if settings else None:
        facts |= {"protocol": given.protocol, "N": given.N, "judgments": manifest["counts"]}
        if benchmark == MT_BENCH:  # its file contains the time of writing
            outputs = [work.out / shard for shard in manifest["shards"]]
    Output({}, facts, outputs).write(job, seconds=round(time.monotonic() - started, 1))
    print(f"{path}: by {judge}, not the benchmark's own annotator: {counts_text(counts, records)}", file=sys.stderr)


def counts_text(counts: dict[str, int], records: Sequence[Record]) -> str:
    """Counts in words, and the number of a model's judgments that could not be read."""
    unread = sum(row["failure"] is not None for row in records)
    words = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
    return words + (f"; {unread} of {len(records)} judgments could not be read" if records else "")


if __name__ == "__main__":
    command(main)
