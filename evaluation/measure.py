"""All measurements of one of a run's models, in one process: `torchrun -m evaluation.measure`.

As a judge and a meta-judge: `agreement.py`. As an actor: its answers to the config's held-out `instructions`, with
rules that code can check, and open `prompts`, and wins against the seed model's answers to these. Answers are drawn as
the actor samples, with the same noise for all models. As both: do its scores of its own answers agree with the code?
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from evaluation.agreement import measure_judge, measure_metajudge
from evaluation.labelled import Case, Labelled, Pair, read_labelled
from evaluation.pairwise import Duel, compare, decide
from evaluation.statistics import by_group, each, share
from evaluation.verifiable import Instruction, read_instructions, verifiable_report
from judging.judge import judge_section, score_rows, scoring_section
from judging.rubric import leaks_role
from judging.rules import obeys
from judging.scores import mean_score
from model.chat import ChatFormat
from prepare.novelty import repetition, words
from sampling.worker import Item, Worker, generation_settings, sampling_of
from stages.command import UserError
from stages.config import changed
from stages.files import read_shards
from stages.records import Prompt, Record, group_by
from stages.rows import conversation_text, messages_of, read_prompts
from stages.seeds import request_seed
from stages.settings import Settings
from stages.stage import Job, Output, Stage, first_rank


def held_out_items(
    instructions: Iterable[Instruction], prompts: Mapping[str, Prompt], chat: ChatFormat, settings: Settings
) -> Iterator[Item]:
    """`evaluation.samples` requests for each instruction, and one for each prompt."""
    sampling, samples = sampling_of(settings.respond, chat), range(settings.evaluation.samples)
    asked: list[Any] = [("prompt", *item, "") for item in prompts.items()]
    repeated = [("instruction", item.id, item.prompt, f"/{k}" if k else "") for item in instructions for k in samples]
    for kind, name, prompt, sample in repeated + asked:
        record = {"id": f"{kind}/{name}{sample}", "kind": kind, "name": name, "prompt": prompt}
        seed = request_seed(settings.seed, 0, "held-out", record["id"])
        yield Item(record["id"], partial(messages_of, prompt), sampling, seed, name, record)


def answers_report(instructions: Sequence[Instruction], rows: Sequence[Record]) -> Record:
    """How instructions are followed; and of the answers to open prompts, means and, in "by_id", each answer's own:
    characters, whether it was cut off, the share of three-word sequences that repeat earlier ones. Of all these answers
    together distinct-n (arXiv 1510.03055): the share of different sequences among all n-word sequences. Of all answers
    the "role_leakage", the share with words of the judge or meta-judge.
    """
    instructed = [row for row in rows if row["kind"] == "instruction"]
    texts = {name: [row["text"] for row in own] for name, own in group_by(instructed, "name").items()}
    by_id, spoken = Record(), list[list[str]]()
    for row in (row for row in rows if row["kind"] == "prompt"):
        text, cut_off = row["text"], float(row["finish_reason"] == "length")
        own = {"characters": float(len(text)), "cut_off": cut_off, "repetition": float(repetition(text))}
        by_id[row["name"]] = own
        spoken.append(words(text))
    answers: Record = {key: each(own[key] for own in by_id.values()) for key in ("characters", "cut_off", "repetition")}
    for n in (1, 2):
        sequences = [tuple(own[i : i + n]) for own in spoken for i in range(len(own) - n + 1)]
        answers[f"distinct_{n}"] = share(len(set(sequences)), len(sequences))
    return {
        "verifiable": verifiable_report(instructions, texts) if instructions else None,
        "answers": answers | {"by_id": by_id} if by_id else None,
        "role_leakage": each(leaks_role(row["text"]) for row in rows),
    }


def measure_answers(worker: Worker, job: Job) -> None:
    """Write a model's answers/ and the report."""
    instructions = read_instructions(job.path("instructions")) if job.has("instructions") else []
    prompts = {row["id"]: row["prompt"] for row in read_prompts(job.path("prompts"))} if job.has("prompts") else {}
    answers = job.part("held-out", "answers")
    worker.run(answers, held_out_items(instructions, prompts, worker.chat, job.settings))
    if first_rank():
        rows = list(read_shards(answers.out))
        Output({"report.json": answers_report(instructions, rows)}, {"counts": {"answers": len(rows)}}).write(job)


def duels_of(answers: Mapping[str, Record], against: Mapping[str, Record]) -> list[Duel]:
    """A duel for each prompt, the model's answer first. Raises `UserError` for a prompt with a single answer."""
    for name in answers.keys() ^ against.keys():
        raise UserError(f"prompt {name!r}: answered by only one of the two models; answer the same prompts again")
    return [Duel(name, row["prompt"], row["text"], against[name]["text"]) for name, row in answers.items()]


def wins_report(duels: Sequence[Duel], rows: Sequence[Record], settings: Settings) -> Record:
    """Win rate over prompts with a verdict, a tie counting half; how often both orders agree; shares of wins by id.
    Where scores decide, also the mean score of the model's own answers, and their scores by id.
    """
    protocol, by_duel = settings.evaluation.protocol, group_by(rows, "duel")
    decisions = {duel.id: decide(duel, by_duel.get(duel.id, []), protocol) for duel in duels}
    shares = {name: None if own.first is None else float(own.first) for name, own in decisions.items()}
    named = [row for row in rows if row.get("winner") in ("first", "second")]
    report: Record = {"protocol": protocol, "duels": len(duels), "win_rate": each(shares.values())}
    report["ties"] = each(None if own is None else own == 0.5 for own in shares.values())
    report["parse_rate"] = by_group((row["duel"], row["failure"] is None) for row in rows)
    report["consistency"] = each(own.consistent for own in decisions.values())
    report["first_position"] = by_group((row["duel"], row["winner"] == "first") for row in named)
    if protocol == "scores":
        own = {name: mean_score([row for row in rows if row["shown"] == 0], 1) for name, rows in by_duel.items()}
        scores = {name: None if score is None else round(float(score), 4) for name, score in own.items()}
        report |= {"score": each(scores.values()), "scores": scores}
    return report | {"by_id": shares}


def decisive_rows(judge: Worker, duels: Sequence[Duel], job: Job) -> list[Record]:
    """The judge's rows: scores of each answer, or comparisons in both orders, with the duel and what was shown."""
    N = judge.settings.evaluation.duel_samples
    if judge.settings.evaluation.protocol == "pairwise":
        return compare(judge, duels, N, job)
    answers, shown = list[Record](), {}
    for duel in (duel for duel in duels if duel.first != duel.second):  # equal answers tie
        for side, text in enumerate((duel.first, duel.second)):
            name = f"{duel.id}/{side}"
            answers.append({"id": name, "prompt_id": duel.id, "prompt": duel.prompt, "text": text})
            shown[name] = side
    rows = score_rows(judge, answers, N, job)
    return [row | {"duel": row["prompt_id"], "shown": shown[row["response_id"]]} for row in rows]


def labelled_by_rules(instructions: Iterable[Instruction], answers: Iterable[Record]) -> Labelled:
    """The different answers to each instruction, of quality 1 if they follow all its rules and else 0; the names of the
    rules are the subset."""
    texts, cases, pairs = group_by(answers, "name"), list[Case](), list[Pair]()
    for item in instructions:
        rules, prompt = " and ".join(rule.name for rule in item.rules), conversation_text(item.prompt)
        different = enumerate(dict.fromkeys(row["text"] for row in texts[item.id]))
        own = [Case(item.id, f"{item.id}/{i}", prompt, t, int(obeys(item.rules, t)), "", rules) for i, t in different]
        both = ((a, b) for a, b in combinations(own, 2) if a.quality != b.quality)
        cases, pairs = cases + own, pairs + [Pair(f"{a.name}-{b.name}", a, b) for a, b in both]
    return Labelled(cases, pairs)


def measure_rules(worker: Worker, answers: Path, job: Job) -> None:
    """Let a model judge its own answers to instructions, whose rules code has checked."""
    rows = [row for row in read_shards(answers) if row["kind"] == "instruction"]
    labelled = labelled_by_rules(read_instructions(job.path("instructions")), rows)
    measure_judge(worker, labelled, "scores", job.settings.evaluation.N, job)


def measure_wins(judge: Worker, answers: Path, job: Job) -> None:
    """Let a judge compare a model's answers with the input `against`, and write the report."""
    folders = (answers, job.path("against"))
    duels = duels_of(*({row["name"]: row for row in read_shards(f) if row["kind"] == "prompt"} for f in folders))
    rows = decisive_rows(judge, duels, job.part("duel", "verdicts"))
    if first_rank():
        report = wins_report(duels, rows, judge.settings)
        Output({"report.json": report}, {"counts": {"duels": len(duels)}}).write(job)


class ModelMeasurements:
    """The folder of one model's measurements, and the folders in it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.agreement, self.meta_agreement, self.rules = folder / "judge", folder / "metajudge", folder / "rules"
        self.held_out, self.answers, self.duel = folder / "actor", folder / "actor" / "answers", folder / "wins"

    @classmethod
    def of(cls, run: Path, t: int) -> "ModelMeasurements":
        """The folder of M_t; t = -1 is the seed, where SFT makes M_0 another model."""
        return cls(run / "evaluation" / ("seed" if t < 0 else f"M{t}"))


def measure(job: Job) -> Output:
    """Measure a model as an actor, a judge and a meta-judge, each if its file is given; finished measurements stay."""
    folders, model = ModelMeasurements(job.out), job.path("model")
    worker, judge = Worker(job.settings, model), job.optional("judge") or model
    judge_worker = worker if judge == model else Worker(job.settings, judge)

    def judging(part: Job) -> None:
        measure_judge(worker, read_labelled(job.path("judge_cases")), "scores", job.settings.evaluation.N, part)

    answers, judges = job.has("instructions") or job.has("prompts"), job.has("judge_cases")
    on_rules = judges and job.settings.evaluation.on_rules
    measurements = (
        ("held-out", folders.held_out, answers, partial(measure_answers, worker)),
        ("agreement", folders.agreement, judges, judging),
        ("rules", folders.rules, on_rules, partial(measure_rules, worker, folders.answers)),
        ("meta-agreement", folders.meta_agreement, job.has("comparisons"), partial(measure_metajudge, worker)),
        ("duel", folders.duel, job.has("judge"), partial(measure_wins, judge_worker, folders.answers)),
    )
    written = []
    for name, folder, asked, work in measurements:
        if asked:
            part = job.part(name, folder.name)
            written.append(part.out / "manifest.json")
            if not part.complete:
                work(part)
    return Output({}, written=written)


def _settings(settings: Settings, iteration: int) -> Any:
    evaluation, respond, meta = settings.evaluation, settings.respond, settings.metajudge
    section = {
        "answers": [respond.temperature, respond.top_p, respond.max_new_tokens, evaluation.samples],
        "judge": [judge_section(settings), scoring_section(settings, evaluation.N)],
        "metajudge": [meta.temperature, meta.top_p, meta.max_new_tokens, meta.prompt_style, meta.verdict_position],
        "wins": [evaluation.protocol, evaluation.duel_samples],
    }
    return generation_settings(settings, 0, section | changed(settings.guards, "hide_scores"))


OPTIONAL = ("judge_cases", "comparisons", "instructions", "prompts", "judge", "against")
MEASURE = Stage("measure", "evaluation.measure", measure, _settings, ("model",), OPTIONAL, ranks="all")

if __name__ == "__main__":
    MEASURE.main()
