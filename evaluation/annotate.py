"""A model as a benchmark's annotator: the annotations that `evaluation.alpaca`, `.arena` and `.mtbench` read.

`torchrun -m evaluation.annotate --benchmark B --answers FILE --judge DIR --out OUT`: the judge, any Hugging Face
folder, scores each answer alone, as in the loop, or compares (`--protocol`, evaluation/pairwise.py), `--N` times.
`--baseline` has the answers to compare with (alpaca-eval, arena-hard), `--questions` the benchmark's own file
(arena-hard, mt-bench). A verdict that can't be read is null. Each row names the judge by folder and weights' digest.
"""

import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, get_args

from evaluation.answers import dialog
from evaluation.benchmarks import ALPACA_EVAL, MT_BENCH, TURNS, Question, read_answers, read_questions
from evaluation.pairwise import Decision, Duel, decide, duel_items, read_duel
from judging.judge import judge_items, judge_section, read_score
from judging.scores import mean_score, to_number
from judging.verdict import MAXIMUM
from sampling.worker import Worker, generation_settings
from stages.command import UserError, arguments, command
from stages.files import digest, read_shards
from stages.records import Record, group_by
from stages.rows import conversation_text
from stages.settings import Protocol, load_settings
from stages.stage import Job, Output, first_rank, make_job

SCORES = {"first": "A>B", "tie": "A=B", "second": "B>A", None: None}
"""Arena-Hard's verdicts by the better answer; never ">>", since no prompt of ours defines "much better"."""


def turn_responses(question: Question, texts: Sequence[str]) -> Iterator[Record]:
    """The response {id, prompt_id, prompt, text} to each turn; the prompt is the dialog up to that turn."""
    for turn, text in enumerate(texts):
        name = f"{question.id}/turn{turn + 1}"
        yield {"id": name, "prompt_id": name, "prompt": conversation_text(dialog(question, texts[:turn])), "text": text}


def scored_rows(questions: Sequence[Question], records: Sequence[Record], **names: str) -> tuple[list[Record], Any]:
    """MT-Bench's rows, a mean score for each turn on our rubric's "scale", and the numbers of scores."""
    by_turn, rows = group_by(records, "response_id"), list[Record]()
    for question, turn in product(questions, (1, 2)):
        own = by_turn[f"{question.id}/turn{turn}"]
        score, text = mean_score(own, 1), "\n\n".join(row["text"] for row in own)
        row = {"question_id": question.row["question_id"]} | names | {"judgment": text}
        row["score"] = None if score is None else to_number(score)
        rows.append(row | {"scale": [0, MAXIMUM], "turn": turn})
    unread = sum(row["score"] is None for row in rows)
    return rows, {"questions": len(questions), "scored": len(rows) - unread, "without_verdict": unread}


def compared_rows(
    questions: Sequence[Question], duels: Sequence[Duel], records: Sequence[Record], protocol: Protocol, **names: str
) -> tuple[list[Record], Any]:
    """AlpacaEval's or Arena-Hard's rows, one a question, and the numbers of questions by better answer.

    In AlpacaEval output_1 is the baseline's, and the preference, from 1 for it to 2, is the mean over orders and
    samples. In Arena-Hard's first game the baseline's answer is A, in the second the model's.
    """
    by_duel, rows, count = group_by(records, "duel"), list[Record](), Counter[Any]()
    for question, duel in zip(questions, duels, strict=True):
        own = by_duel.get(duel.id, [])  # of equal answers there are none
        decision = decide(duel, own, protocol)
        count[decision.preference] += 1
        if "instruction" not in question.row:
            second = "uid" in question.row  # v2.0
            copied = {key: question.row[key] for key in (("uid", "category") if second else ("question_id",))}
            rows.append(copied | names | {"games": list(_games(decision, own, second))})
            continue
        row: Record = {key: question.row[key] for key in ("dataset", "instruction") if key in question.row}
        row |= {"output_1": duel.first, "generator_1": names["baseline"]}
        row |= {"output_2": duel.second, "generator_2": names["model"], "annotator": names["judge"]}
        row["preference"] = None if decision.first is None else to_number(2 - decision.first)
        keys = ("shown", "index", "winner" if decision.orders else "score", "failure", "text")
        rows.append(row | {"raw": [{key: record[key] for key in keys} for record in own]})
    better = {"baseline_better": count["first"], "tied": count["tie"], "model_better": count["second"]}
    return rows, {"questions": len(questions)} | better | {"without_verdict": count[None]}


def _games(decision: Decision, records: Sequence[Record], as_answer: bool) -> Iterator[Record]:
    texts = ["\n\n".join(row["text"] for row in records if row["shown"] == side) for side in (0, 1)]
    if records and decision.orders is None:  # a game has the judgments of both answers, A's and then B's
        texts = ["\n\n".join(texts), "\n\n".join(reversed(texts))]
    one, two = decision.orders or (decision.first, decision.first)
    for text, share in zip(texts, (one, None if two is None else 1 - two), strict=True):  # A's
        yield {"judgment": {"answer": text} if as_answer else text, "score": SCORES[Decision(share).preference]}


def read_arguments() -> Namespace:
    """The command line. Raises `UserError` for options that the benchmark lacks, or does not use."""
    file: Any = {"type": Path}
    given = arguments(
        __doc__, "config", "answers", "judge", "out", benchmark={"required": True, "choices": list(TURNS)},
        baseline=file, questions=file, protocol={"choices": get_args(Protocol), "default": "scores"},
        N={"type": int, "default": 1, "help": "judgments an answer, or comparisons an order; default: 1"},
    )  # fmt: skip
    if (given.benchmark != MT_BENCH, given.benchmark != ALPACA_EVAL) != (bool(given.baseline), bool(given.questions)):
        raise UserError("--baseline is for alpaca-eval and arena-hard alone, --questions for arena-hard and mt-bench")
    if given.N < 1 or (given.benchmark == MT_BENCH and given.protocol != "scores"):
        raise UserError("--N must be at least 1; --protocol scores for mt-bench, whose answers are scored one by one")
    return given


def main() -> None:
    given, started = read_arguments(), time.monotonic()
    benchmark, out, judge = given.benchmark, given.out, f"{given.judge.resolve().name}-{digest(given.judge)[:8]}"
    settings, questions = load_settings(given.config), read_questions(benchmark, given.questions or given.baseline)
    if settings.judge.score == "expected":
        raise UserError('judge.score is "expected", but annotations need the judgments\' texts; set it to "sampled"')

    def job(what: str, out: Path) -> Job:
        section: Any = {"benchmark": benchmark, "what": what, "protocol": given.protocol, "N": given.N}
        values = generation_settings(settings, 0, section | judge_section(settings))
        inputs = {name: getattr(given, name) for name in ("answers", "baseline", "questions", "judge")}
        return make_job("annotate", settings, values, out, inputs)

    whole, work = job(f"file of {given.answers.stem}", out), job("judgments", out / "judgments")
    if whole.complete:
        return
    model, answers = read_answers(benchmark, given.answers, questions)
    worker, names = Worker(settings, given.judge), {"model": model, "judge": judge}
    if benchmark == MT_BENCH:
        responses = [row for question in questions for row in turn_responses(question, answers[question.key])]
        items = judge_items(responses, worker.chat, settings, 0, given.N)
        worker.run(work, items, partial(read_score, judge=settings.judge))
        records, file = list(read_shards(work.out)), f"model_judgment/{judge}_single.jsonl"
        rows, counts = scored_rows(questions, records, **names)
    else:
        names["baseline"], base = read_answers(benchmark, given.baseline, questions)
        duels = [Duel(q.id, q.turns[0], base[q.key][0], answers[q.key][0]) for q in questions]
        items = duel_items(duels, given.protocol, given.N, worker.chat, settings)
        worker.run(work, items, partial(read_duel, protocol=given.protocol, judge=settings.judge))
        file = f"model_judgment/{judge}/{given.answers.stem}.jsonl"
        records, file = list(read_shards(work.out)), "annotations.json" if benchmark == ALPACA_EVAL else file
        rows, counts = compared_rows(questions, duels, records, given.protocol, **names)
    if not first_rank():
        return  # every rank has the same rows; one writes the file
    facts = {"file": file, "judge": judge, "protocol": given.protocol, "N": given.N, "counts": counts}
    Output({file: rows}, facts).write(whole, seconds=round(time.monotonic() - started, 1))
    words = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
    unread = f"{sum(row['failure'] is not None for row in records)} of {len(records)} judgments could not be read"
    print(f"{out / file}: by {judge}, not the benchmark's own annotator: {words}; {unread}", file=sys.stderr)


if __name__ == "__main__":
    command(main)
