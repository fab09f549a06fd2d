"""Any judge as a benchmark's annotator: the annotations that `evaluation.alpaca`, `.arena` and `.mtbench` read.

`torchrun -m evaluation.annotate --benchmark B --answers FILE --out OUT` reads answers as `evaluation/answers.py` writes
them. The judge is `--judge DIR`, a Hugging Face folder, which scores each answer alone, as in the loop, or compares
(`--protocol`, evaluation/pairwise.py), `--N` times; or `--verdicts FILE`, verdicts of any model or of people.

- alpaca-eval: `--baseline` has the questions and the answers to compare with. OUT/annotations.json is `alpaca_eval`'s;
  output_1 is the baseline's. A preference from 1, the baseline's, to 2, the model's, is the mean over orders and
  samples, 1.5 a tie, null without a verdict. "raw" has the verdicts behind the mean.
- arena-hard: `--questions`, `--baseline`. OUT/model_judgment/JUDGE/NAME.jsonl has two games a question: the baseline's
  answer as A, then as B. Scores are "A>B", "A=B", "B>A", or null; never ">>", since no prompt of ours defines when an
  answer is much better. If each answer is scored alone, both games have the same result.
- mt-bench: `--questions`. OUT/model_judgment/JUDGE_single.jsonl has a row a turn. The score is the mean over samples
  with a score, or null. Our rubric goes from 0 to 5, MT-Bench's from 1 to 10: "scale" says which, and the two must not
  be compared. The judge of a second turn sees the dialog so far; reference answers are not shown.

A file of verdicts is JSON lines, one or two for each question:

    {"id": "a2", "verdict": "second", "judge": "three friends"}
    {"id": "b1", "verdict": "tie", "game": 2, "judge": "three friends", "text": "Both add up."}
    {"id": 81, "turn": 1, "score": 7, "scale": [1, 10], "judge": "three friends"}           in MT-Bench

An id is the benchmark's question_id or uid; in AlpacaEval the instruction, or its place in the baseline's file, from 0.
A verdict is "first" if the baseline's answer is better, whichever was shown first, "second" if the model's is, "tie", a
preference from 1 to 2, or null if unreadable. It counts for both games, or for its "game": 1 showed the baseline's
answer first, 2 the model's. "text" is optional. "raw" keeps all keys.

Each row names the judge, by `--judge-name` or by its folder and the beginning of its weights' digest; the names of the
benchmarks' own annotators are refused. The result is this judge's number, not the benchmark's.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, get_args

from evaluation.alpaca import OFFICIAL_ANNOTATOR
from evaluation.answers import dialog
from evaluation.arena import JUDGES
from evaluation.benchmarks import ALPACA_EVAL, MT_BENCH, TURNS, Match, once, read_matches, read_rows, require, value
from evaluation.mtbench import JUDGE, read_rating
from evaluation.pairwise import Decision, Duel, Record, decide, duel_items, read_duel
from judging.judge import judge_items, judge_section, read_score
from judging.scores import mean_score
from judging.verdict import MAXIMUM
from prepare.rankings import conversation_text
from sampling.worker import Worker, generation_settings
from stages.files import UserError, command, digest, read_manifest, read_shards, write_json, write_jsonl
from stages.records import group_by
from stages.settings import Protocol, Settings, load_settings
from stages.stage import Job, Output, first_rank, make_job

OFFICIAL = {OFFICIAL_ANNOTATOR, JUDGE, *(judge for judges in JUDGES.values() for judge in judges)}
"""The annotators behind the benchmarks' official numbers, whose files need no annotating."""

_SHARES: dict[Any, Fraction] = {"first": Fraction(1), "second": Fraction(0), "tie": Fraction(1, 2)}


@dataclass(frozen=True)
class Finding:
    """A judge's finding on a match, by game (the baseline's answer shown first, and second) or by turn."""

    values: Sequence[Any]
    """The baseline's share of each game, a `Fraction`; or the score of each turn. None: unreadable."""
    texts: Sequence[str]
    """The judge's texts."""
    raw: Sequence[Record]
    """The judgments or verdicts behind the values."""
    scales: Sequence[Any] = ()
    """The lowest and the highest possible score of each turn."""

    @property
    def decision(self) -> Decision:
        """The mean of the games with a verdict."""
        shares = [share for share in self.values if share is not None]
        return Decision(sum(shares, Fraction(0)) / len(shares) if shares else None)


def duel_of(match: Match) -> Duel:
    """The match as a duel, the baseline's answer first."""
    assert match.baseline is not None
    return Duel(match.question.id, match.question.turns[0], match.baseline.texts[0], match.answer.texts[0])


def dialog_text(match: Match, turn: int) -> str:
    """The question that the judge of a turn (from 0) is shown: the dialog up to that turn."""
    roles = {"user": "prompter", "assistant": "assistant"}
    messages = dialog(match.question, match.answer.texts[:turn])
    return conversation_text([{"role": roles[message["role"]], "text": message["content"]} for message in messages])


def ask(given: argparse.Namespace, settings: Settings, matches: Sequence[Match], job: Job) -> list[Record]:
    """The judge's records, by all ranks, in the job's folder. Raises `UserError` for expected scores (no texts)."""
    judge, worker = settings.judge, Worker(settings, given.judge)
    if judge.score == "expected":
        raise UserError('judge.score is "expected", but annotations need the judgments\' texts; set it to "sampled"')
    if given.benchmark == MT_BENCH:
        names = [(match, turn, f"{match.question.id}/turn{turn + 1}") for match in matches for turn in (0, 1)]
        answers = [
            {"id": name, "prompt_id": name, "prompt": dialog_text(match, turn), "text": match.answer.texts[turn]}
            for match, turn, name in names
        ]
        worker.run(job, judge_items(answers, worker.chat, settings, 0, given.N), partial(read_score, judge=judge))
    else:
        items = duel_items(map(duel_of, matches), given.protocol, given.N, worker.chat, settings)
        worker.run(job, items, partial(read_duel, protocol=given.protocol, judge=judge))
    return list(read_shards(job.out))


def compared(match: Match, records: Sequence[Record], protocol: Protocol) -> Finding:
    """The finding of a judge with these records of the match's duel; of equal answers there are none."""
    decision = decide(duel_of(match), records, protocol)
    texts = ["\n\n".join(row["text"] for row in records if row["shown"] == side) for side in (0, 1)]
    if protocol == "scores" and records:  # a game has both answers' judgments, A's and then B's
        texts = ["\n\n".join(texts), "\n\n".join(reversed(texts))]
    keys = ("shown", "index", "score" if protocol == "scores" else "winner", "failure", "text")
    raw = [{key: row[key] for key in keys} for row in records]
    return Finding(decision.orders or (decision.first, decision.first), texts, raw)


def scored(turns: Sequence[Sequence[Record]]) -> Finding:
    """The finding of a judge with these records of each turn."""
    texts = ["\n\n".join(row["text"] for row in rows) for rows in turns]
    return Finding([plain(mean_score(rows, 1)) for rows in turns], texts, (), [[0, MAXIMUM]] * 2)


def findings_of(given: argparse.Namespace, matches: Sequence[Match], records: Sequence[Record]) -> list[Finding]:
    """The findings from a judge's records."""
    if given.benchmark == MT_BENCH:
        by_turn = group_by(records, "response_id")
        return [scored([by_turn[f"{match.question.id}/turn{turn}"] for turn in (1, 2)]) for match in matches]
    by_duel = group_by(records, "duel")
    return [compared(match, by_duel.get(match.question.id, []), given.protocol) for match in matches]


def read_findings(benchmark: str, matches: Sequence[Match], path: Path) -> list[Finding]:
    """The findings of a file of verdicts.

    Raises `UserError` naming file and line for an invalid verdict, an unknown question and a repeated one; and naming
    the questions without a verdict.
    """
    questions = [match.question for match in matches]
    ids = {name: question.id for question in questions for name in (question.id, question.key)}
    part, whole = ("turn", [{1, 2}]) if benchmark == MT_BENCH else ("game", [{0}, {1, 2}])
    verdicts: dict[str, dict[int, tuple[Any, Record]]] = {question.id: {} for question in questions}
    places: dict[Any, str] = {}
    for where, row in read_rows(path):
        given, which = value(row, where, "id"), row.get(part, 0)
        name = ids.get(f"{given:04}" if benchmark == ALPACA_EVAL and type(given) is int else str(given))
        if name is None or which not in (0, 1, 2):
            raise UserError(f"{where}: no question has the id {str(given)[:60]!r} and {part} {which!r}; mend the row")
        once(places, (name, which), str(given), where)
        value(row, where, *(["scale"] if part == "turn" else []))
        verdicts[name][which] = (read_rating if part == "turn" else _share)(row, where), row
    complete = [question.key for question in questions if set(verdicts[question.id]) in whole]
    lack = f"{path}: not {'' if part == 'turn' else 'one row, or '}a row for each {part}, 1 and 2, of"
    require([question.key for question in questions], complete, lack)
    findings = []
    for own in verdicts.values():
        values, rows = zip(*(own.get(which) or own[0] for which in (1, 2)), strict=True)
        texts = [str(row.get("text", "")) for row in rows]
        findings.append(Finding(values, texts, [row for _, row in own.values()], [row.get("scale") for row in rows]))
    return findings


def _share(row: Record, where: str) -> Fraction | None:
    """The baseline's share of a row's verdict, in [0, 1]; None for null."""
    verdict = value(row, where, "verdict")
    if verdict is None or str(verdict) in _SHARES:
        return _SHARES.get(verdict)
    if type(verdict) in (int, float) and 1 <= verdict <= 2:
        return 2 - Fraction(str(verdict))
    raise UserError(f"{where}: verdict is {verdict!r}; it must be first, second, tie, null or a number from 1 to 2")


def judge_name(given: argparse.Namespace, findings: Sequence[Finding]) -> str:
    """The judge's name. Raises `UserError` for an official annotator's name and a name that can't be a file's."""
    name, others = given.judge_name, list[Any]()
    if not name and given.judge:
        name = f"{given.judge.resolve().name}-{digest(given.judge)[:8]}"
    elif not name:
        name, *others = {str(row.get("judge") or "") for finding in findings for row in finding.raw}
    if others or not name.strip(" .") or "/" in name:
        raise UserError(f"the judge's name {name!r} must be one text without a slash in all rows; give --judge-name")
    if name.strip().lower() in OFFICIAL:
        raise UserError(f"the judge's name {name!r} is a benchmark's own annotator's; give another by --judge-name")
    return name


def plain(number: Fraction | None) -> int | float | None:
    """A fraction as a number for JSON."""
    return number if number is None else int(number) if number.denominator == 1 else float(number)


def annotation_rows(benchmark: str, match: Match, finding: Finding, judge: str, tstamp: float) -> list[Record]:
    """One question's rows in the benchmark's format; `tstamp` is in seconds since 1970."""
    row, model, baseline = match.question.row, match.answer, match.baseline
    if baseline is None:
        names = {"question_id": row["question_id"], "model": model.model, "judge": judge}
        return [
            names | {"judgment": text, "score": score, "scale": scale, "turn": turn, "tstamp": tstamp}
            for text, score, scale, turn in zip(finding.texts, finding.values, finding.scales, (1, 2), strict=True)
        ]
    if benchmark == ALPACA_EVAL:
        first = finding.decision.first
        known: Record = {key: row[key] for key in ("dataset", "instruction") if key in row}
        one = {"output_1": baseline.texts[0], "generator_1": baseline.model}
        two = {"output_2": model.texts[0], "generator_2": model.model, "annotator": judge}
        return [known | one | two | {"preference": plain(None if first is None else 2 - first), "raw": finding.raw}]
    games = []
    for judgment, share, a, b in zip(finding.texts, finding.values, "AB", "BA", strict=True):
        score = None if share is None else "A=B" if 2 * share == 1 else f"{a}>{b}" if 2 * share > 1 else f"{b}>{a}"
        games.append({"judgment": {"answer": judgment} if "uid" in row else judgment, "score": score})
    copied = {key: row[key] for key in (("uid", "category") if "uid" in row else ("question_id",))}
    return [copied | {"model": model.model, "judge": judge, "baseline": baseline.model, "games": games}]


def count_findings(benchmark: str, findings: Sequence[Finding]) -> dict[str, int]:
    """Numbers of questions by better answer, or of turns with a score; and without a verdict."""
    if benchmark == MT_BENCH:
        unread = [score for finding in findings for score in finding.values].count(None)
        return {"questions": len(findings), "scored": 2 * len(findings) - unread, "without_verdict": unread}
    count = Counter(finding.decision.preference for finding in findings)
    better = {"baseline_better": count["first"], "tied": count["tie"], "model_better": count["second"]}
    return {"questions": len(findings)} | better | {"without_verdict": count[None]}


def read_arguments() -> argparse.Namespace:
    """The command line. Raises `UserError` for options that the benchmark or the judge lacks, or does not use."""
    parser = argparse.ArgumentParser(description="Have any judge annotate answers to a benchmark.")
    parser.add_argument("--benchmark", required=True, choices=list(TURNS))
    parser.add_argument("--answers", required=True, type=Path, help="the model's, in the benchmark's format")
    parser.add_argument("--baseline", type=Path, help="the answers to compare with (alpaca-eval, arena-hard)")
    parser.add_argument("--questions", type=Path, help="the benchmark's own file (arena-hard, mt-bench)")
    judge = parser.add_mutually_exclusive_group(required=True)
    judge.add_argument("--judge", type=Path, help="Hugging Face directory")
    judge.add_argument("--verdicts", type=Path, help="JSON lines of verdicts from elsewhere")
    parser.add_argument("--config", type=Path, help="the settings of --judge")
    protocols = get_args(Protocol)
    parser.add_argument("--protocol", choices=protocols, default="scores", help="how --judge is asked; default: scores")
    parser.add_argument("--N", type=int, default=1, help="judgments an answer, or comparisons an order; default: 1")
    parser.add_argument("--judge-name", help="default: the folder and the digest of --judge, or who --verdicts names")
    parser.add_argument("--out", required=True, type=Path)
    given = parser.parse_args()
    needs = (given.benchmark != MT_BENCH, given.benchmark != ALPACA_EVAL)
    if needs != (bool(given.baseline), bool(given.questions)):
        raise UserError("--baseline is for alpaca-eval and arena-hard alone, --questions for arena-hard and mt-bench")
    if bool(given.judge) != bool(given.config) or (given.verdicts and (given.protocol, given.N) != ("scores", 1)):
        raise UserError("--config: a --judge needs one; --verdicts has no use for --config, --protocol, --N")
    if given.N < 1 or (given.benchmark == MT_BENCH and given.protocol != "scores"):
        raise UserError("--N must be at least 1; --protocol scores for mt-bench, whose answers are scored one by one")
    return given


def annotation_job(given: argparse.Namespace, settings: Settings | None, what: str, out: Path) -> Job:
    """The job of the judge, or of the benchmark's file; `what` tells the two apart."""
    values: Any = {"benchmark": given.benchmark, "what": what}
    if settings:
        values |= judge_section(settings) | {"protocol": given.protocol, "N": given.N}
        values = generation_settings(settings, 0, values)
    inputs = {name: getattr(given, name) for name in ("answers", "baseline", "questions", "judge", "verdicts")}
    return make_job("annotate", settings, values, out, inputs)


def main() -> None:
    given, started = read_arguments(), time.monotonic()
    benchmark, out, records = given.benchmark, given.out, list[Record]()
    matches = read_matches(benchmark, given.answers, given.baseline, given.questions)
    settings = load_settings(given.config) if given.judge else None
    findings = [] if settings else read_findings(benchmark, matches, given.verdicts)
    judge = judge_name(given, findings)
    job = annotation_job(given, settings, f"{judge} of {given.answers.stem}", out)
    if job.complete:
        return
    work = annotation_job(given, settings, "judgments", out / "judgments")
    if settings:
        records = ask(given, settings, matches, work)
        findings = findings_of(given, matches, records)
    if not first_rank():
        return  # every rank has the same findings; one writes the file
    stem = f"{judge}_single" if benchmark == MT_BENCH else f"{judge}/{given.answers.stem}"
    path = out / ("annotations.json" if benchmark == ALPACA_EVAL else f"model_judgment/{stem}.jsonl")
    pairs, now = zip(matches, findings, strict=True), time.time()
    rows = [row for match, finding in pairs for row in annotation_rows(benchmark, match, finding, judge, now)]
    write_json(path, rows) if benchmark == ALPACA_EVAL else write_jsonl(path, rows)
    counts, outputs = count_findings(benchmark, findings), [path]
    facts = {"file": str(path.relative_to(out)), "judge": judge, "counts": counts}
    words = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
    if settings and (manifest := read_manifest(work.out)):
        facts |= {"protocol": given.protocol, "N": given.N, "judgments": manifest["counts"]}
        if benchmark == MT_BENCH:  # its file contains the time of writing
            outputs = [work.out / shard for shard in manifest["shards"]]
        unread = sum(row["failure"] is not None for row in records)
        words += f"; {unread} of {len(records)} judgments could not be read"
    Output({}, facts, outputs).write(job, seconds=round(time.monotonic() - started, 1))
    print(f"{path}: by {judge}, not the benchmark's own annotator: {words}", file=sys.stderr)


if __name__ == "__main__":
    command(main)
