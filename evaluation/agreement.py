"""Does the judge rank responses as their known quality does?

`torchrun -m evaluation.agreement` judges the responses of labelled groups and compares, within each group, the order of
mean scores with the known order. A tie of the judge counts half; chance is 0.5. Intervals are bootstrap percentiles
over groups. Next to it stands the baseline that says the longer response is better.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.statistics import bootstrap, spearman
from files import UserError, command, is_complete, read_numbered_jsonl, write_json, write_manifest
from judging.judge import judge_section, judgment_record
from judging.rankings import conversation_text
from judging.rubric import judge_prompt
from judging.scores import mean_score
from model.chat import ChatFormat, load_chat
from sampling.generate import Item, generation_key, read_units, request_seed, run_units
from sampling.request import Sampling
from settings import Settings, load_settings


@dataclass(frozen=True)
class Case:
    """A response of known quality."""

    group: str
    name: str
    prompt: str
    text: str
    quality: float
    """Higher is better; compared within a group only."""
    flaw: str = ""


def read_cases(path: Path) -> Iterator[Case]:
    """Cases of a file of groups: {id, prompt, responses: [{text, score, flaw}]}, or OpenAssistant's ranked replies
    {message_id, context: [{role, text}], replies: [{rank, text}]}, rank 0 the best.

    Raises `UserError` for a row of neither form.
    """
    for number, row in read_numbered_jsonl(path):
        if "responses" in row and "prompt" in row:
            for i, response in enumerate(row["responses"]):
                name = f"{row['id']}/{i}"
                flaw = response.get("flaw", "")
                yield Case(row["id"], name, row["prompt"], response["text"], response["score"], flaw)
        elif "replies" in row and "context" in row:
            prompt = conversation_text(row["context"])
            for i, reply in enumerate(row["replies"]):
                yield Case(row["message_id"], f"{row['message_id']}/{i}", prompt, reply["text"], -reply["rank"])
        else:
            raise UserError(f"{path}, line {number}: neither a group of responses nor ranked replies; see the README")


def agreement_items(cases: Iterable[Case], chat: ChatFormat, settings: Settings, N: int) -> Iterator[Item]:
    """N judge requests for each case."""
    judge = settings.judge
    sampling = Sampling(judge.temperature, judge.top_p, judge.max_new_tokens, chat.stop_ids)
    for case in cases:
        messages = partial(judge_prompt, case.prompt, case.text, judge.form, judge.verdict)
        for index in range(N):
            name = f"{case.name}/j{index}"
            known = {"id": name, "response_id": case.name, "prompt_id": case.group, "index": index}
            seed = request_seed(settings.seed, 0, "agreement", name)
            yield Item(name, messages, sampling, seed, case.group, known)


def pair_outcomes(
    cases: Sequence[Case], value: Callable[[Case], Fraction | float | None]
) -> dict[str, list[tuple[float, float]]]:
    """For each group the pairs of different quality: (1 where `value` agrees, 1/2 where it ties, 0, gap in quality).

    A case without a value enters no pair.
    """
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    outcomes = {}
    for name, members in groups.items():
        pairs = []
        for i, better in enumerate(members):
            for worse in members[:i] + members[i + 1 :]:
                high, low = value(better), value(worse)
                if better.quality > worse.quality and high is not None and low is not None:
                    agrees = 0.5 if high == low else float(high > low)
                    pairs.append((agrees, better.quality - worse.quality))
        outcomes[name] = pairs
    return outcomes


def report(cases: Sequence[Case], judgments: Sequence[dict[str, Any]], minimum_valid: int = 1) -> dict[str, Any]:
    """Parse rate, pairwise agreement (by gap and by flaw), Spearman within a group, calibration, and the baseline."""
    by_case: dict[str, list[dict[str, Any]]] = {case.name: [] for case in cases}
    for row in judgments:
        by_case[row["response_id"]].append(row)
    scores = {name: mean_score(rows, minimum_valid) for name, rows in by_case.items()}
    outcomes = pair_outcomes(cases, lambda case: scores[case.name])
    most = max(map(len, by_case.values()))
    longer = pair_outcomes(cases, lambda case: len(case.text))
    gaps = sorted({gap for pairs in outcomes.values() for _, gap in pairs})
    parsed = [row["score"] for row in judgments if row["score"] is not None]
    return {
        "judgments": len(judgments),
        "parse_rate": round(len(parsed) / len(judgments), 4),
        "score_histogram": {str(score): parsed.count(score) for score in sorted(set(parsed))},
        "pairwise": _pairwise(cases, scores),
        "pairwise_by_N": {
            str(n): _pairwise(cases, {name: mean_score(rows[:n], minimum_valid) for name, rows in by_case.items()})
            for n in (1, 2, 4, 8, 16)
            if n <= most
        },
        "longer_wins": bootstrap([[agrees for agrees, _ in pairs] for pairs in longer.values()]),
        "spearman": bootstrap(_spearman_by_group(cases, scores)),
        "by_gap": {
            f"{gap:g}": bootstrap([[a for a, g in pairs if g == gap] for pairs in outcomes.values()]) for gap in gaps
        },
        "by_flaw": {flaw: bootstrap(pairs) for flaw, pairs in _against_flawless(cases, scores).items()},
        "mean_score_by_quality": _means(cases, scores, lambda case: f"{case.quality:g}"),
        "mean_score_by_flaw": _means(cases, scores, lambda case: case.flaw),
    }


def _pairwise(cases: Sequence[Case], scores: dict[str, Fraction | None]) -> dict[str, Any]:
    outcomes = pair_outcomes(cases, lambda case: scores[case.name])
    return bootstrap([[agrees for agrees, _ in pairs] for pairs in outcomes.values()])


def _against_flawless(cases: Sequence[Case], scores: dict[str, Fraction | None]) -> dict[str, list[list[float]]]:
    """For each flaw and group, whether the flawless responses are preferred to those with the flaw."""
    found: dict[str, list[list[float]]] = {}
    for flaw in sorted({case.flaw for case in cases} - {"", "none"}):
        members = [case for case in cases if case.flaw in (flaw, "none")]
        outcomes = pair_outcomes(members, lambda case: scores[case.name])
        found[flaw] = [[agrees for agrees, _ in pairs] for pairs in outcomes.values()]
    return found


def _spearman_by_group(cases: Sequence[Case], scores: dict[str, Fraction | None]) -> list[list[float]]:
    groups: dict[str, list[tuple[float, float]]] = {}
    for case in cases:
        score = scores[case.name]
        if score is not None:
            groups.setdefault(case.group, []).append((case.quality, float(score)))
    found = []
    for members in groups.values():
        if len({quality for quality, _ in members}) > 1:
            qualities, means = zip(*members, strict=True)
            found.append([spearman(qualities, means) or 0.0])  # a judge that scores all alike knows nothing
    return found


def _means(cases: Sequence[Case], scores: dict[str, Fraction | None], label: Callable[[Case], str]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for case in cases:
        score = scores[case.name]
        if score is not None:
            values.setdefault(label(case), []).append(float(score))
    return {name: round(float(np.mean(values[name])), 3) for name in sorted(values)}


def agreement_key(settings: Settings, model_dir: Path, cases: Path, N: int) -> str:
    """The identity of an agreement measurement."""
    inputs: dict[str, Path | str] = {"model": model_dir, "cases": cases}
    return generation_key(f"agreement-{N}", settings, judge_section(settings), 0, inputs)


def read_report(folder: Path) -> dict[str, Any]:
    """The finished measurement in `folder`, of a judge or of a meta-judge."""
    return json.loads((folder / "agreement.json").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how well a judge agrees with labelled groups.")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--model", required=True, type=Path, help="Hugging Face directory of the judge")
    parser.add_argument("--cases", required=True, type=Path, help="JSON lines of labelled groups")
    parser.add_argument("--N", type=int, default=1, help="judgments a response")
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    settings = load_settings(arguments.config)
    key = agreement_key(settings, arguments.model, arguments.cases, arguments.N)
    if is_complete(arguments.out, key):
        return
    chat, cases = load_chat(arguments.model), list(read_cases(arguments.cases))
    if not cases:
        raise UserError(f"{arguments.cases}: no labelled responses; name another file of groups")
    work = arguments.out / "judgments"
    run_units(
        "agreement",
        list(agreement_items(cases, chat, settings, arguments.N)),
        lambda item, completion: judgment_record(item, completion, chat, settings.judge),
        chat=chat,
        settings=settings,
        model_dir=arguments.model,
        out=work,
        key=key,
    )
    found = report(cases, list(read_units(work)))
    path = arguments.out / "agreement.json"
    write_json(path, found)
    write_manifest(arguments.out, "agreement", key, [path], counts={"cases": len(cases)})


if __name__ == "__main__":
    command(main)
