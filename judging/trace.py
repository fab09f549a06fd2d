"""The evidence behind a training pair: `python -m judging.trace RUN PAIR_ID`.

The trace shows the responses to the pair's prompt and their judgments, for judge pairs comparisons and Elo scores; all
with raw text, seed and the hash of the checkpoint that wrote them. `--why-not PROMPT_ID` explains why a prompt has no
pair. `--json` prints all evidence as one document.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from judging.scores import EXPLANATIONS, Reason, distinct_responses, read_scores, response_scores, to_number
from stages.files import UserError, command, digest, read_jsonl, read_manifest, read_shards
from stages.records import group_by
from stages.settings import Iteration

Record = dict[str, Any]
Document = dict[str, Any]
STAGES = {"respond": "responses", "score": "scores", "judge": "judgments", "metajudge": "comparisons"}
KINDS = ("actor", "judge")


def find_pair(run: Path, pair_id: str) -> tuple[int, Record]:
    """The iteration and the record of a training pair. Raises `UserError` where the run has no such pair."""
    for number, folder in _iterations(run):
        for kind in KINDS:
            path = folder / "pairs" / f"{kind}.jsonl"
            for row in _rows_naming(path, pair_id) if path.is_file() else ():
                if row["id"] == pair_id:
                    return number, row
    raise UserError(f"{run}: no pair {pair_id!r}; see iter*/pairs/*.jsonl, or ask --why-not PROMPT_ID")


def find_prompt(run: Path, prompt_id: str) -> int:
    """The iteration that drew a prompt. Raises `UserError` where no iteration did."""
    for number, folder in _iterations(run):
        if any(row["id"] == prompt_id for row in read_jsonl(folder / "prompts.jsonl")):
            if not (folder / "pairs" / "manifest.json").is_file():
                raise UserError(f"{folder}: its pairs are not made yet; run iterate.py to its end first")
            return number
    raise UserError(f"{run}: no iteration has drawn the prompt {prompt_id!r}; see iter*/prompts.jsonl")


def lineage(run: Path, number: int, prompt_id: str) -> Document:
    """All records of one prompt in one iteration: responses, judgments, comparisons, Elo, pairs or reasons."""
    folder = run / f"iter{number}"
    made, trained = read_manifest(folder / "pairs") or {}, read_manifest(folder / "checkpoint")
    sources = _sources(folder, made)
    stages = {name: sources[place] for name, place in STAGES.items() if place in sources}
    responses = list(_shard_rows(sources["responses"], prompt_id))
    judgments = group_by(_shard_rows(sources.get("judgments"), prompt_id), "response_id")
    expected = group_by(_shard_rows(sources.get("scores"), prompt_id), "response_id")
    scores = response_scores(expected or judgments, made["minimum_valid"])
    if "scores_file" in sources:
        scores = read_scores(sources["scores_file"], read_shards(sources["responses"]))
    kept = {row["id"] for row in distinct_responses(responses)}
    pairs = {
        kind: list(_rows_naming(folder / "pairs" / f"{kind}.jsonl", prompt_id)) for kind in (*KINDS, "elo", "none")
    }
    none = {row["kind"]: row["reason"] for row in pairs["none"] if row["prompt_id"] == prompt_id}
    return {
        "run": str(run),
        "iteration": number,
        "prompt_id": prompt_id,
        "prompt": responses[0]["prompt"],
        "rule": made["rule"],
        "minimum_valid": made["minimum_valid"],
        "positions": made.get("positions"),
        "scores_from": made["inputs"].get("scores_file"),
        "written_by": {name: _writer(run, stage) for name, stage in stages.items()},
        "trained_model": {"checkpoint": f"M{number}", "weights": trained["digest"]} if trained else None,
        "responses": [
            _without_ids(row)
            | {
                "distinct": row["id"] in kept,
                "characters": len(row["text"]),
                "score": to_number(scores[row["id"]]) if row["id"] in scores else None,
                "expected": [_without_ids(score) for score in expected.get(row["id"], [])],
                "judgments": [_without_ids(judgment) for judgment in judgments.get(row["id"], [])],
            }
            for row in responses
        ],
        "comparisons": [_without_ids(row) for row in _shard_rows(sources.get("comparisons"), prompt_id)],
        "elo": [row for row in pairs["elo"] if row["prompt_id"] == prompt_id],
        "pairs": [_pair(row) for kind in KINDS for row in pairs[kind] if row["prompt_id"] == prompt_id],
        "none": none,
    }


def explain(document: Document, kind: str) -> str:
    """Why the prompt has no pair of a kind, in one sentence with the figures that decided."""
    reason, rule = Reason(document["none"][kind]), Iteration(**document["rule"])
    distinct = [row for row in document["responses"] if row["distinct"]]
    scored = [row for row in distinct if row["score"] is not None]
    decided = sum(row["winner"] in ("first", "second") for row in document["comparisons"])
    tiers = f"the tiers of rho = {rule.rho:g} meet"
    limit = rule.max_response_characters if kind == "actor" else rule.max_judgment_characters
    text_kind = "response" if kind == "actor" else "judgment"
    positions = document["positions"] or {}
    sentences = {
        Reason.TOO_FEW_RESPONSES: f"{len(distinct)} distinct responses, and two are needed",
        Reason.TOO_FEW_SCORED: f"{len(scored)} of {len(distinct)} distinct responses have a score, and two are needed"
        + ("" if document["scores_from"] else f" (a score needs {document['minimum_valid']} parsed judgments)"),
        Reason.EQUAL_SCORES: f"all {len(scored)} scores are {scored[0]['score'] if scored else '-'}",
        Reason.SAME_RESPONSE: f"{tiers}, and one response is the shortest of the upper and the longest of the lower",
        Reason.NOT_BETTER: f"{tiers}, and the shortest of the upper does not score above the longest of the lower",
        Reason.CHOSEN_TOO_LONG: f"the {text_kind} to be chosen is longer than the iteration's {limit} characters",
        Reason.NO_DECISIVE_COMPARISON: f"{decided} of {len(document['comparisons'])} comparisons name a winner, and "
        "none of them has weight",
        Reason.EQUAL_ELO: f"the {decided} comparisons with a winner balance: all Elo scores are equal",
        Reason.POSITION_COLLAPSE: f"in the whole iteration the first shown won {positions.get('first')} comparisons "
        f"and the second {positions.get('second')}, so no comparison is evidence",
    }
    return sentences.get(reason, EXPLANATIONS[reason])


def trace_text(document: Document, pair: Document) -> Iterator[str]:
    """The lines that show a pair and its evidence."""
    yield f"{pair['id']}: iteration {document['iteration']} of {document['run']}"
    yield from _head(document)
    if pair["kind"] == "actor":
        sides = {pair["chosen_id"]: "chosen", pair["rejected_id"]: "rejected"}
        for row in sorted(document["responses"], key=lambda row: sides.get(row["id"], "without part in the pair")):
            yield from _response_text(row, sides.get(row["id"]))
        return
    response = next(row for row in document["responses"] if row["id"] == pair["response_id"])
    yield f"\nresponse {response['id']}, seed {response['seed']}, {response['characters']} characters"
    yield _indented(response["text"])
    sides = {pair["chosen_id"]: "chosen", pair["rejected_id"]: "rejected"}
    elo = {row["judgment_id"]: row for row in document["elo"]}
    for row in response["judgments"]:
        yield from _judgment_text(row, sides.get(row["id"]), elo.get(row["id"]))
    for row in document["comparisons"]:
        verdict = row["winner"] or f"no winner ({row['failure']})"
        yield f"\n  comparison {row['id']}, seed {row['seed']}: {verdict}"
        yield _indented(row["text"], 4)


def why_not_text(document: Document) -> Iterator[str]:
    """The lines that explain why a prompt has no pair, with the scores and Elo scores that decided."""
    yield f"{document['prompt_id']}: iteration {document['iteration']} of {document['run']}"
    for pair in document["pairs"]:
        yield f"  {pair['kind']}: pair {pair['id']}"
    for kind, reason in document["none"].items():
        yield f"  {kind}: no pair, {reason}: {explain(document, kind)}"
    if document["positions"] is None:
        yield "  judge: this iteration makes no judge pairs"
    yield from _head(document)
    for row in document["responses"]:
        verdicts = ", ".join(_verdict(judgment) for judgment in row["judgments"])
        judgments = f"; judgments: {verdicts}" if verdicts else ""
        score = f"score {row['score']}" if row["score"] is not None else "no score"
        yield f"  response {row['id']}: {score}, {row['characters']} characters{_doubtful(row)}{judgments}"
    for row in document["elo"]:
        yield f"  judgment {row['judgment_id']}: {_elo_text(row)}"
    for row in document["comparisons"]:
        yield f"  comparison {row['id']}: {row['winner'] or row['failure']}"


def _head(document: Document) -> Iterator[str]:
    for stage, by in document["written_by"].items():
        yield f"  {stage} by {by['checkpoint']}, weights {by['weights']}"
    if scores := document["scores_from"]:
        yield f"  scores from {scores['path']}, SHA-256 {scores['digest']}"
    if trained := document["trained_model"]:
        yield f"  the iteration's pairs trained {trained['checkpoint']}, weights {trained['weights']}"
    rule = ", ".join(f"{key} {value}" for key, value in document["rule"].items() if value is not None)
    yield f"  rule: {rule}"
    if document["positions"]:
        yield "  positions: " + ", ".join(f"{key} {value:.4g}" for key, value in document["positions"].items())
    yield "  prompt:"
    yield _indented(document["prompt"], 4)


def _response_text(row: Document, side: str | None) -> Iterator[str]:
    score = f"score {row['score']}" if row["score"] is not None else "no score"
    part = f" ({side})" if side else ""
    yield f"\nresponse {row['id']}{part}: {score}, seed {row['seed']}, {row['characters']} characters{_doubtful(row)}"
    yield _indented(row["text"])
    for expected in row["expected"]:
        shares = "  ".join(f"{digit}: {share:.1%}" for digit, share in enumerate(expected["probabilities"]))
        yield f"  expected score {_verdict(expected)}: {shares}"
    for judgment in row["judgments"]:
        yield from _judgment_text(judgment, None, None)


def _judgment_text(row: Document, side: str | None, elo: Document | None) -> Iterator[str]:
    part = f" ({side})" if side else ""
    yield f"\n  judgment {row['id']}{part}: {_verdict(row)}, seed {row['seed']}" + (
        f", {_elo_text(elo)}" if elo else ""
    )
    yield _indented(row["text"], 4)


def _verdict(judgment: Document) -> str:
    return f"{judgment['score']}" if judgment["score"] is not None else f"none ({judgment['failure']})"


def _elo_text(row: Document) -> str:
    return f"Elo {row['elo']:.3f} +- {row['standard_error']:.3f}, won {row['won']}, lost {row['lost']}"


def _doubtful(row: Document) -> str:
    """Notes on an unusual response."""
    notes = {"length": ", cut off", "too_long": ", prompt too long"}
    return notes.get(row["finish_reason"], "") + ("" if row["distinct"] else ", not distinct: not judged")


def _indented(text: str, spaces: int = 2) -> str:
    return "\n".join(" " * spaces + "| " + line for line in text.splitlines() or [""])


def _iterations(run: Path) -> Iterator[tuple[int, Path]]:
    names = (folder.name.removeprefix("iter") for folder in run.glob("iter*"))
    numbers = sorted(int(name) for name in names if name.isdecimal())
    if not numbers:
        raise UserError(f"{run}: the folder holds no run; name one such as runs/smollm2-135m")
    for number in numbers:
        yield number, run / f"iter{number}"


def _sources(folder: Path, made: dict[str, Any]) -> dict[str, Path]:
    """The inputs of the pairs. Raises `UserError` for an input that has changed since the pairs were made."""
    if "inputs" not in made:
        raise UserError(f"{folder}/pairs: made by an older version; remove the folder and run iterate.py again")
    sources = {}
    for name, source in made["inputs"].items():
        if name == "model":
            continue
        path = Path(source["path"]) if name == "scores_file" else folder / name
        if digest(path) != source["digest"]:
            raise UserError(f"{path}: changed since the pairs were made; run iterate.py again")
        sources[name] = path
    return sources


def _rows_naming(path: Path, name: str) -> Iterator[Record]:
    """The rows of a file whose lines contain the name; a full run's files are too long to parse each line."""
    written = json.dumps(name, ensure_ascii=False)[1:-1]
    with path.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if written in line)


def _shard_rows(stage: Path | None, prompt_id: str) -> Iterator[Record]:
    """The records of one prompt, in order; none where the pairs were made without the stage."""
    if stage is None:
        return
    for name in (read_manifest(stage) or {})["shards"]:
        yield from (row for row in _rows_naming(stage / name, prompt_id) if row["prompt_id"] == prompt_id)


def _writer(run: Path, stage: Path) -> dict[str, str]:
    """The model that wrote a stage: the hash of its weights, and M_t where it is the actor of iteration t + 1."""
    weights = _weights(stage)
    name = "a model outside the run"
    for number, folder in _iterations(run):
        if _weights(folder / "responses") == weights:
            name = f"M{number - 1}"
    return {"checkpoint": name, "weights": weights}


def _weights(stage: Path) -> str:
    """The hash of the weights that wrote a stage; empty if the stage is missing."""
    return (read_manifest(stage) or {"inputs": {"model": {"digest": ""}}})["inputs"]["model"]["digest"]


def _pair(row: Record) -> Document:
    kept = {key: value for key, value in row.items() if not key.endswith("_ids") and key not in ("prompt",)}
    return kept | {side: row[side][0]["content"] for side in ("chosen", "rejected")}


def _without_ids(row: Record) -> Document:
    return {key: value for key, value in row.items() if key not in ("ids", "prompt", "prompt_id")}


def main() -> None:
    parser = argparse.ArgumentParser(description="The evidence behind a training pair, or why a prompt has none.")
    parser.add_argument("run", type=Path, help="a run's folder, such as runs/smollm2-135m")
    parser.add_argument("pair", nargs="?", help="a pair's id, such as actor/t0203 or judge/t0203/r2")
    parser.add_argument("--why-not", metavar="PROMPT_ID", help="explain why this prompt has no pair")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    if (arguments.pair is None) == (arguments.why_not is None):
        raise UserError("judging.trace: name either a pair or --why-not and a prompt")
    if arguments.why_not:
        document = lineage(arguments.run, find_prompt(arguments.run, arguments.why_not), arguments.why_not)
        lines = why_not_text(document)
    else:
        number, pair = find_pair(arguments.run, arguments.pair)
        document = lineage(arguments.run, number, pair["prompt_id"]) | {"pair": arguments.pair}
        lines = trace_text(document, _pair(pair))
    print(json.dumps(document, indent=2, ensure_ascii=False) if arguments.json else "\n".join(lines))


if __name__ == "__main__":
    command(main)
