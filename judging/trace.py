"""The evidence behind a training pair: `python -m judging.trace RUN PAIR_ID`.

The trace shows the responses to the pair's prompt and their judgments, for judge pairs comparisons and Elo scores; all
with raw text, seed and the hash of the checkpoint that wrote them. `evaluation/report` shows the same documents.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from judging.scores import Reason, distinct_responses, read_scores, response_scores, to_number
from stages.command import UserError, command, printable
from stages.files import check_output, digest, read_jsonl, read_manifest, read_shards
from stages.records import Record, group_by
from stages.rows import conversation_text
from stages.stage import weights_of

Document = Record
STAGES = {"respond": "responses", "score": "scores", "judge": "judgments", "metajudge": "comparisons"}
KINDS = ("actor", "judge")


def find(run: Path, name: str, *files: str) -> tuple[int, Record]:
    """The iteration with a row of this id in one of the files, and the row; `UserError` if there is none."""
    for number, folder in iterations(run):
        for row in _rows((folder / file for file in files), name, "id"):
            return number, row
    raise UserError(f"{run}: no iteration has {name!r}; see {' or '.join(f'iter*/{file}' for file in files)}")


def iterations(run: Path) -> list[tuple[int, Path]]:
    """Number and folder of each of a run's iterations. Raises `UserError` where the folder has none."""
    folders = {folder.name.removeprefix("iter"): folder for folder in run.glob("iter*")}
    if numbered := sorted((int(name), folder) for name, folder in folders.items() if name.isdecimal()):
        return numbered
    raise UserError(f"{run}: the folder holds no run; name one such as runs/smollm2-135m")


def read_lineage(run: Path, number: int, prompt_id: str = "") -> tuple[Document, dict[str, Document]]:
    """The facts of an iteration, and by prompt id, for all prompts or one, all records without token ids. A prompt's
    document has its responses, with score and judgments, comparisons, pairs, and reasons for missing pairs. Judgments
    have their Elo score, and chosen and rejected texts their "part". Raises `UserError` for an input that is missing or
    has changed since the pairs were made."""
    folder = run / f"iter{number}"
    made = _checked_manifest(folder)
    given = [name for name in STAGES.values() if name in made["inputs"]]
    shards = {name: (read_manifest(folder / name) or {})["shards"] for name in given}
    files = {name: [folder / name / shard for shard in own] for name, own in shards.items()}
    files |= {name: [folder / "pairs" / f"{name}.jsonl"] for name in (*KINDS, "elo", "none")}
    rows = {name: list(_rows(files.get(name, ()), prompt_id)) for name in (*STAGES.values(), *files)}
    judgments, expected = (group_by(rows[name], "response_id") for name in ("judgments", "scores"))
    if file := made["inputs"].get("scores_file"):
        scores = read_scores(Path(file["path"]), read_shards(folder / "responses"))
    else:
        scores = response_scores(expected or judgments, made["minimum_valid"])
    distinct = {row["id"] for row in distinct_responses(rows["responses"])}
    pairs = rows["actor"] + rows["judge"]
    parts = {row[f"{part}_id"]: part for row in pairs for part in ("chosen", "rejected")}
    elo = {row["judgment_id"]: row for row in rows["elo"]}
    documents: dict[str, Document] = {}
    for row in rows["responses"]:
        prompt = {"prompt_id": row["prompt_id"], "prompt": conversation_text(row.pop("prompt")), "responses": []}
        document = documents.setdefault(row["prompt_id"], prompt | {"comparisons": [], "pairs": [], "none": {}})
        score, own = scores.get(row["id"]), judgments.get(row["id"], [])
        row |= {"part": parts.get(row["id"]), "distinct": row["id"] in distinct, "characters": len(row["text"])}
        row |= {"score": None if score is None else to_number(score), "expected": expected.get(row["id"], [])}
        row["judgments"] = [one | {"part": parts.get(one["id"]), "elo": elo.get(one["id"])} for one in own]
        document["responses"].append(row)
    for row in rows["comparisons"]:
        documents[row["prompt_id"]]["comparisons"].append(row)
    for row in pairs:
        texts = {part: row[part][0]["content"] for part in ("chosen", "rejected")}
        documents[row["prompt_id"]]["pairs"].append({key: row[key] for key in row if key != "prompt"} | texts)
    for row in rows["none"]:
        documents[row["prompt_id"]]["none"][row["kind"]] = row["reason"]
    return _facts(run, number, made), documents


def _facts(run: Path, number: int, made: Document) -> Document:
    """What all prompts of an iteration have in common."""
    folder, trained = run / f"iter{number}", read_manifest(run / f"iter{number}" / "checkpoint")
    # The actor of iteration t + 1 is M_t.
    models = {weights_of(path / "responses"): f"M{t - 1}" for t, path in iterations(run)}
    weights = {name: weights_of(folder / place) for name, place in STAGES.items() if place in made["inputs"]}
    places = {name: models.get(own, "a model outside the run") for name, own in weights.items()}
    return {
        "run": str(run),
        "iteration": number,
        **{name: made.get(name) for name in ("rule", "minimum_valid", "positions")},
        "scores_from": made["inputs"].get("scores_file"),
        "written_by": {name: {"checkpoint": places[name], "weights": own} for name, own in weights.items()},
        "trained_model": {"checkpoint": f"M{number}", "weights": trained["digest"]} if trained else None,
    }


def _checked_manifest(folder: Path) -> Document:
    """The manifest of an iteration's pairs. Raises `UserError` where it is missing or an input has changed since."""
    made = check_output(folder / "pairs") or {}
    if "inputs" not in made:
        raise UserError(f"{folder}/pairs: not made yet, or by an older version; run iterate.py to its end")
    for name, source in made["inputs"].items():
        path = Path(source["path"]) if name == "scores_file" else folder / name
        if name != "model" and digest(path) != source["digest"]:
            raise UserError(f"{path}: changed since the pairs were made; run iterate.py again")
    return made


def _rows(paths: Iterable[Path], name: str, key: str = "prompt_id") -> Iterator[Record]:
    """All rows of the files that exist, or those with this name under the key, without token ids."""
    written = json.dumps(name, ensure_ascii=False)[1:-1]
    for path in filter(Path.is_file, paths):
        for row in read_jsonl(path, (key,), written):  # a full run has too many lines to parse each for one name
            if name in ("", row[key]):
                yield {field: value for field, value in row.items() if not field.endswith("ids")}


def trace_text(document: Document, pair: Document | None = None) -> Iterator[str]:
    """The lines that show a prompt's evidence: with a pair its texts, without one what decided in a line each."""
    facts: dict[str, Any] = {f"{stage} by": by for stage, by in document["written_by"].items()}
    facts |= {"scores from": document["scores_from"], "trained": document["trained_model"]}
    facts |= {"rule": document["rule"] | {"judgments needed for a score": document["minimum_valid"]}}
    facts |= {"positions": document["positions"] or {"judge": "this iteration makes no judge pairs"}}
    yield f"{pair['id'] if pair else document['prompt_id']}: iteration {document['iteration']} of {document['run']}"
    for name, values in facts.items():
        known = {key: value for key, value in (values or {}).items() if value is not None}
        shown = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in known.items())
        if known:
            yield f"  {name}: {', '.join(shown)}"
    yield from (f"  {row['kind']}: pair {row['id']}" for row in document["pairs"])
    yield from (f"  {kind}: no pair, {own}: {Reason(own).explanation}" for kind, own in document["none"].items())
    yield from _lines("  prompt", document["prompt"])
    only, texts = (pair or {}).get("response_id"), bool(pair)
    for row in sorted(document["responses"], key=lambda row: row["part"] or "without a part"):
        if only in (None, row["id"]):
            yield from _lines(f"\nresponse {response_label(row)}", row["text"] * texts)
            for one in row["expected"]:
                shares = "  ".join(f"{digit}: {share:.1%}" for digit, share in enumerate(one["probabilities"]))
                yield f"  expected score {verdict(one)}: {shares}"
            for one in row["judgments"]:
                yield from _lines(f"  judgment {judgment_label(one)}", one["text"] * texts)
    for row in document["comparisons"] if only or not pair else ():
        yield from _lines(f"comparison {comparison_label(row)}", row["text"] * texts)


def _lines(label: str, text: str) -> Iterator[str]:
    """A label, and the lines of a text below it, further to the right."""
    indent = " " * (len(label) - len(label.lstrip(" ")))
    yield label
    yield from (f"{indent}  | {line}" for line in text.splitlines())


def response_label(row: Document) -> str:
    """A response in one line: id, part in the pair, score, seed, length, and what is unusual."""
    score = "no score" if row["score"] is None else f"score {row['score']:.6g}"
    note = {"length": ", cut off", "too_long": ", prompt too long"}.get(row["finish_reason"], "")
    note += "" if row["distinct"] else ", not distinct: not judged"
    return f"{_name(row)}: {score}, seed {row['seed']}, {row['characters']} characters{note}"


def judgment_label(row: Document) -> str:
    """A judgment in one line: id, part in the pair, score or failure, seed, and if it was compared, its Elo score."""
    label = f"{_name(row)}: {verdict(row)}, seed {row['seed']}"
    if elo := row["elo"]:
        label += f", Elo {elo['elo']:.3f} +- {elo['standard_error']:.3f}, won {elo['won']}, lost {elo['lost']}"
    return label


def _name(row: Document) -> str:
    return row["id"] + (f" ({row['part']})" if row["part"] else "")


def comparison_label(row: Document) -> str:
    """A comparison in one line: id, seed, and the winner or the failure."""
    return f"{row['id']}, seed {row['seed']}: {row['winner'] or 'no winner (' + row['failure'] + ')'}"


def verdict(row: Document) -> str:
    """The score of a judgment, or why it has none."""
    return f"none ({row['failure']})" if row["score"] is None else f"{row['score']}"


def main() -> None:
    parser = argparse.ArgumentParser(description="The evidence behind a training pair, or why a prompt has none.")
    parser.add_argument("run", type=Path, help="a run's folder, such as runs/smollm2-135m")
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("pair", nargs="?", help="a pair's id, such as actor/t0203 or judge/t0203/r2")
    wanted.add_argument("--why-not", metavar="PROMPT_ID", help="explain why this prompt has no pair")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    files = ["prompts.jsonl"] if arguments.why_not else [f"pairs/{kind}.jsonl" for kind in KINDS]
    number, row = find(arguments.run, arguments.why_not or arguments.pair, *files)
    prompt_id = arguments.why_not or row["prompt_id"]
    facts, documents = read_lineage(arguments.run, number, prompt_id)
    document = facts | documents[prompt_id]
    pair = next((pair for pair in document["pairs"] if pair["id"] == arguments.pair), None)
    lines = [json.dumps(document, indent=2, ensure_ascii=False)] if arguments.json else trace_text(document, pair)
    print(printable("\n".join(lines)))


if __name__ == "__main__":
    command(main)
