"""Does the judge prefer what people prefer, and the meta-judge the judgment that fits the response?

`torchrun -m evaluation.agreement --cases FILE` has a judge decide labelled pairs and ranked groups: a --model, with
--config, --out and --protocol: "scores" judges each response alone, --N times, "pairwise" compares two, --N times in
each order. `--decisions FILE` takes any judge's verdicts. docs/evaluation.md describes the files and the measures.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, get_args

import numpy as np

from evaluation.labelled import Decisions, Labelled, Opinion, Pair, by_value, read_decisions, read_labelled
from evaluation.pairwise import Preference, compare
from evaluation.statistics import SHARE, by_group, cohen_kappa, each, mean, share, shown, spearman
from judging.judge import judge_section, score_rows, scoring_section
from judging.metajudge import read_winner
from judging.rubric import judgment_text, meta_prompt, shown_judgment
from judging.scores import exact, shortest
from model.chat import ChatFormat
from sampling.worker import Item, Worker, generation_settings, sampling_of
from stages.command import UserError, arguments, command
from stages.files import read_json, read_shards, write_json, write_jsonl
from stages.records import Record, group_by
from stages.rows import COMPARED, read_rows
from stages.seeds import request_seed
from stages.settings import Protocol, Settings, load_settings
from stages.stage import Job, Output, first_rank, make_job


def half_credit(a: Preference, b: Preference) -> float:
    """1 for equal preferences, 1/2 if one of them is a tie, 0 for opposite ones."""
    return float(a == b) if "tie" not in (a, b) or a == b else 0.5


CREDITS: dict[str, Callable[[Preference, Preference], float | None]] = {
    "pairwise": half_credit,
    "with_ties": lambda a, b: float(a == b),
    "without_ties": lambda a, b: None if "tie" in (a, b) else float(a == b),
}
_SHARE, _NUMBER = f"{SHARE} of {{}}", "{:.2f} [{:.2f}, {:.2f}] of {}"
LINES = {
    "pairwise": ("agreement, a tie counting half", _SHARE),
    "with_ties": ("with ties", _SHARE),
    "without_ties": ("without ties", _SHARE),
    "kappa": ("kappa with the label", _NUMBER),
    "spearman": ("Spearman within a group", _NUMBER),
    "exact_order": ("groups in exact order", _SHARE),
    "consistency": ("both orders agree", _SHARE),
    "first_position": ("the first one shown wins", _SHARE),
}  # the measures of a table, with their names for people and their formats


def agreement(pairs: Iterable[Pair], opinion: Opinion, credit: str = "pairwise") -> Record:
    """The mean credit over the pairs with a verdict."""
    preferences = ((pair, opinion.preferences[pair.name]) for pair in pairs)
    return by_group((pair.first.group, CREDITS[credit](own, pair.label)) for pair, own in preferences if own)


def measures(labelled: Labelled, opinion: Opinion) -> Record:
    """The measures of an opinion, the judge's or the baseline's."""
    ranks, exact = [], []
    for members in labelled.rankings:
        valued = [(case.quality, value) for case in members if (value := opinion.values[case.name]) is not None]
        if len({quality for quality, _ in valued}) > 1:
            ranks.append(spearman(*np.array(valued, dtype=float).T) or 0.0)  # equal values for all count as 0
        if len(valued) == len(members):
            exact.append(all(a > b for (better, a), (worse, b) in permutations(valued, 2) if better > worse))
    credits = {name: agreement(labelled.pairs, opinion, name) for name in CREDITS}
    labels = [(opinion.preferences[pair.name], pair.label) for pair in labelled.pairs if pair.labels]
    kappa = cohen_kappa([(own, label) for own, label in labels if own])
    return credits | {"kappa": kappa, "spearman": each(ranks), "exact_order": each(exact)}


def all_measures(labelled: Labelled, decisions: Decisions) -> Record:
    """The measures of the judge and of the baseline "longer", on all cases or a subset."""
    consistent, first = [], []
    for pair in labelled.pairs if decisions.form == "comparisons" else ():
        group, orders = pair.first.group, decisions.verdicts[pair.name]
        consistent.append((group, decisions.of(pair).consistent))
        first += [(group, won == "first") for own in orders for won in own if won in ("first", "second")]
    return measures(labelled, decisions.opinion(labelled)) | {
        "pairs": len(labelled.pairs),
        "consistency": by_group(consistent),
        "first_position": by_group(first),
        "longer": measures(labelled, by_value(labelled, {case.name: len(case.text) for case in labelled.cases})),
    }


def report(labelled: Labelled, decisions: Decisions) -> Record:
    """All measures, also by N, gap, flaw, subset and annotator; parse rate and calibration."""
    opinion, pairs, measured = decisions.opinion(labelled), labelled.pairs, all_measures(labelled, decisions)
    orders = [own for orders in decisions.verdicts.values() for own in orders]
    verdicts, most = [verdict for own in orders for verdict in own], max([1, *map(len, orders)])
    parsed = [verdict for verdict in verdicts if verdict is not None]
    by_gap, by_flaw, by_quality = defaultdict(list), defaultdict(list), defaultdict[float, list[float]](list)
    for pair in pairs:
        by_gap[abs(exact(pair.first.quality) - exact(pair.second.quality))].append(pair)
        if len(flaws := {pair.first.flaw, pair.second.flaw} - {"none"}) == 1:
            by_flaw[flaws.pop()].append(pair)
    for case in labelled.cases if decisions.form == "scores" else ():
        if (score := opinion.values[case.name]) is not None:
            by_quality[case.quality].append(float(score))
    histogram = Counter(round(2 * score) / 2 for score in parsed) if decisions.form == "scores" else Counter()
    subsets = sorted({case.subset for case in labelled.cases} - {""})
    return measured | {
        "form": decisions.form,
        "judgments": len(verdicts),
        "parse_rate": share(len(parsed), len(verdicts)),
        "score_histogram": {shortest(score): histogram[score] for score in sorted(histogram)},
        "pairwise_by_N": {
            f"{n}": agreement(pairs, decisions.first(n).opinion(labelled)) for n in (1, 2, 4, 8, 16) if n <= most
        },
        "longer_wins": measured["longer"]["pairwise"],
        "by_gap": {shortest(gap): agreement(by_gap[gap], opinion) for gap in sorted(by_gap)},
        "by_flaw": {flaw: agreement(by_flaw[flaw], opinion) for flaw in sorted(by_flaw) if flaw},
        "subsets": {name: all_measures(labelled.subset(name), decisions) for name in subsets},
        "annotators": annotators([pair for pair in pairs if pair.labels], opinion),
        "mean_score_by_quality": {shortest(q): round(float(np.mean(by_quality[q])), 3) for q in sorted(by_quality)},
        "left_out": dict(labelled.left_out),
    }


def annotators(pairs: Sequence[Pair], opinion: Opinion) -> Record | None:
    """The votes of a file's annotators against the judge, and their mean kappa; None without annotators."""
    names = sorted({name for pair in pairs for name in pair.labels})
    votes = [(pair.name, opinion.preferences[pair.name], label) for pair in pairs for label in pair.labels.values()]
    both = ([(p.labels[a], p.labels[b]) for p in pairs if {a, b} <= p.labels.keys()] for a, b in combinations(names, 2))
    kappas = [kappa for labels in both if (kappa := cohen_kappa(labels)["value"]) is not None]
    found: Record = {"annotators": len(names), "labels": len(votes), "kappa": mean(kappas)}
    for credit in ("with_ties", "without_ties"):
        found[credit] = by_group((name, CREDITS[credit](own, label)) for name, own, label in votes if own)
    return found if names else None


def read_report(folder: Path) -> Record:
    """The finished measurement in `folder`."""
    return read_json(folder / "agreement.json")


def measure_judge(worker: Worker, labelled: Labelled, protocol: Protocol, N: int, job: Job) -> None:
    """Let a model judge labelled responses; write the verdicts to decisions.jsonl, and the report."""
    if protocol == "scores":
        responses = [{"id": c.name, "prompt_id": c.group, "prompt": c.prompt, "text": c.text} for c in labelled.cases]
        records = score_rows(worker, responses, N, job.part("agreement", "judgments"))
        keys = {"id": "response_id", "index": "index", "score": "score", "failure": "failure"}
    else:
        records = compare(worker, [pair.duel for pair in labelled.pairs], N, job.part("agreement", "comparisons"))
        keys = {"id": "duel", "order": "shown", "index": "index", "winner": "winner", "failure": "failure"}
    if first_rank():
        path = job.out / "decisions.jsonl"
        write_jsonl(path, ({name: record[key] for name, key in keys.items()} for record in records))
        measured = {"judge": str(worker.model_dir)} | report(labelled, read_decisions(path, labelled))
        Output({"agreement.json": measured}, {"counts": {"cases": len(labelled.cases)}}, [path]).write(job)


def read_comparisons(path: Path) -> list[Record]:
    """Rows {prompt, response, judgments: [{score, justification} x 2], winner}. Raises `UserError` without any."""
    if rows := [row.checked(**COMPARED) for row in read_rows(path)]:
        return rows
    raise UserError(f"{path}: no pairs of judgments; name a file of rows with {', '.join(COMPARED)}")


def comparison_items(rows: Iterable[Record], chat: ChatFormat, settings: Settings) -> Iterator[Item]:
    """Both orders of each row. The judgments differ in their scores or, with equal scores, in the evidence alone."""
    meta, sampling = settings.metajudge, sampling_of(settings.metajudge, chat)
    for number, row in enumerate(rows):
        a, b = row["judgments"]
        texts = [judgment_text(j["score"], j["justification"], settings.judge.verdict_position) for j in (a, b)]
        texts = [shown_judgment(text, settings) for text in texts]
        for first in (0, 1):
            name, right = f"c{number:04}/m{first}-{1 - first}", first if row["winner"] == "first" else 1 - first
            record = {"id": name, "case": number, "first": first, "right": ("first", "second")[right]}
            record["differ_in"] = "evidence" if a["score"] == b["score"] else "score"
            shown = (row["prompt"], row["response"], texts[first], texts[1 - first])
            messages = partial(meta_prompt, *shown, meta.prompt_style, meta.verdict_position)
            seed = request_seed(settings.seed, 0, "meta-agreement", name)
            yield Item(name, messages, sampling, seed, str(number), record)


def meta_report(comparisons: Sequence[Record]) -> Record:
    """How often the right judgment wins (no winner counts half); and of decided comparisons, how often the first one
    shown does, and both orders name the same. Intervals are over pairs of judgments.
    """
    decided = [row for row in comparisons if row["winner"] in ("first", "second")]
    cases = group_by(decided, "case").values()

    def right(*kinds: str) -> Record:
        rows = (row for row in comparisons if row["differ_in"] in kinds)
        return by_group((row["case"], half_credit(row["winner"] or "tie", row["right"])) for row in rows)

    return {
        "comparisons": len(comparisons),
        "parse_rate": share(sum(row["winner"] is not None for row in comparisons), len(comparisons)),
        "agreement": right("score", "evidence"),
        "by_kind": {kind: right(kind) for kind in ("score", "evidence")},
        "first_position": by_group((row["case"], row["winner"] == "first") for row in decided),
        "consistency": each(rows[0]["winner"] != rows[1]["winner"] for rows in cases if len(rows) == 2),
    }


def measure_metajudge(worker: Worker, job: Job) -> None:
    """Let a model compare the pairs of judgments in the input `comparisons`, and write the measurement."""
    comparisons = job.part("meta-agreement", "comparisons")
    items = comparison_items(read_comparisons(job.path("comparisons")), worker.chat, job.settings)
    worker.run(comparisons, items, partial(read_winner, meta=job.settings.metajudge))
    if first_rank():
        Output({"agreement.json": meta_report(list(read_shards(comparisons.out)))}).write(job)


def table(measured: Mapping[str, Any]) -> str:
    """A report for people: each measure with interval and count, or why there is none; the baseline's beside it."""

    def cell(key: str, measure: Record) -> str:
        return measure.get("reason", "") if measure["value"] is None else shown(measure, LINES[key][1])

    parsed = shown(measured["parse_rate"], "{:.1%}")
    lines = [f"{measured['judge']}: {measured['judgments']} {measured['form']}, {parsed} of them read"]
    parts = {f"{name}, {part['pairs']} pairs": part for name, part in {"all": measured, **measured["subsets"]}.items()}
    width = max(34, *(len(title) + 2 for title in parts))
    for title, part in parts.items():
        lines.append(f"{title:{width}}{'judge':32}longer wins")
        for key in (key for key in LINES if part[key]["count"]):
            baseline = cell(key, part["longer"][key]) if key in part["longer"] else ""
            lines.append(f"  {LINES[key][0]:{width - 2}}{cell(key, part[key]):32}{baseline}".rstrip())
    if means := measured["mean_score_by_quality"]:
        lines.append("mean score by quality: " + ", ".join(f"{name}: {mean:.2f}" for name, mean in means.items()))
    if (people := measured["annotators"]) and people["annotators"] > 1:
        kappa = shown(people["kappa"], "{:.2f}")
        lines.append(f"{people['annotators']} annotators, {people['labels']} labels; their mean kappa {kappa}")
        lines += [f"  votes {LINES[key][0]:26}{cell(key, people[key])}" for key in ("with_ties", "without_ties")]
    return "\n".join(lines)


def main() -> None:
    file: Any = {"type": Path}
    given = arguments(
        __doc__, "cases", model=file, decisions=file, config=file, out=file, N={"type": int, "default": 1},
        protocol={"choices": get_args(Protocol), "default": "scores"},
    )  # fmt: skip
    if bool(given.model) == bool(given.decisions):
        raise UserError("name either --model, a Hugging Face directory, or --decisions, a file of verdicts")
    if given.decisions:
        if given.config or given.protocol != "scores" or given.N != 1:
            raise UserError("--config, --protocol, --N: they say how to ask a --model; --decisions has no use for them")
        labelled = read_labelled(given.cases)
        measured = {"judge": str(given.decisions)} | report(labelled, read_decisions(given.decisions, labelled))
        if given.out:
            write_json(given.out / "agreement.json", measured)
    else:
        if not (given.config and given.out and given.N > 0):
            raise UserError("--config, --out, --N: a --model needs a config, a folder and N from 1; add them")
        settings, scores = load_settings(given.config), given.protocol == "scores"
        if given.N > 1 and scores and settings.judge.score_first:
            raise UserError('--N: judge.score = "expected" with the verdict first has one score a response; omit it')
        section = scoring_section(settings, given.N) if scores else judge_section(settings) | {"N": given.N}
        values = [given.protocol, generation_settings(settings, 0, section)]
        inputs = {"model": given.model, "judge_cases": given.cases}
        job = make_job("agreement", settings, values, given.out, inputs)
        if not job.complete:
            measure_judge(Worker(settings, given.model), read_labelled(given.cases), given.protocol, given.N, job)
        measured = read_report(given.out) if first_rank() else {}
    if first_rank():
        print(table(measured))


if __name__ == "__main__":
    command(main)
