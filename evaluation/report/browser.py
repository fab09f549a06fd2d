"""The data of the report's browser of pairs: texts, scores, judgments, comparisons and Elo scores.

Each file of a run is read once, since a full run has 385,000 judgments in each iteration. Texts that would make the
page too large are cut to a length that the page states; `judging/trace.py` prints them whole. Text by models enters the
page as chunks of deflated JSON in base64, so that none of it is markup.
"""

import base64
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from judging.scores import response_scores, to_number
from stages.files import UserError, read_jsonl, read_manifest, read_shards
from stages.records import group_by

Record = dict[str, Any]
Text = str | list[Any]
"""A whole text, or of a cut one [beginning, length in characters]."""

TEXT_BUDGET = 60_000_000
"""Characters of prompts, responses and the judgments of judge pairs in one page, for all runs together."""
JUDGMENT_BUDGET = 30_000_000
"""Characters of all other judgments."""
COMPARISONS = 20_000
"""An iteration with more comparisons than this shows their winners without their texts."""
LIMITS = (16_000, 8_000, 4_000, 2_000, 1_000, 500, 250, 120, 60)
CHUNK = 64
"""Prompts in a chunk."""


@dataclass
class Prompt:
    """One prompt of an iteration, and everything that the page shows of it."""

    text: str = ""
    responses: dict[str, Record] = field(default_factory=dict)
    """By id: characters, score (or None), and the text (None if no pair needs it)."""
    sides: dict[str, str] = field(default_factory=dict)
    """The texts of the chosen and the rejected judgment, by id."""
    judgments: dict[str, list[tuple[str, float | str, str]]] = field(default_factory=dict)
    """By response: (id, score or failure, text)."""
    compared: str = ""
    """The response whose judgments were compared."""
    comparisons: list[tuple[int, int, str, str | None]] = field(default_factory=list)
    """(first judgment, second judgment, winner or failure, text)."""
    elo: dict[str, tuple[float, float, int, int]] = field(default_factory=dict)
    """By judgment: (Elo score, standard error, won, lost)."""


@dataclass
class Evidence:
    """An iteration's pairs, and its prompts that gave no pair."""

    entries: list[Record]
    """The lines of the browser's list; "prompt" is the prompt's id."""
    prompts: dict[str, Prompt]


def read_evidence(folder: Path) -> Evidence:
    """The evidence of the iteration in `folder`. Raises `UserError` where its files don't fit together."""
    try:
        return _read(folder)
    except KeyError as error:
        raise UserError(f"{folder}: its files are not of one run ({error} is missing); run iterate.py again") from None


def _read(folder: Path) -> Evidence:
    made = _manifest(folder / "pairs")
    prompts = {row["id"]: Prompt(row["prompt"]) for row in read_jsonl(folder / "prompts.jsonl")}
    evidence = Evidence([], prompts)
    wanted = _read_pairs(folder / "pairs", evidence)
    for row in read_shards(folder / "responses"):
        keep = row["id"] in wanted or row["prompt_id"] in wanted
        response = {"characters": len(row["text"]), "score": None, "text": row["text"] if keep else None}
        prompts[row["prompt_id"]].responses[row["id"]] = response
    if "judgments" in made["inputs"]:
        _read_judgments(folder / "judgments", prompts)
    if "scores_file" in made["inputs"]:
        responses = {name: row for prompt in prompts.values() for name, row in prompt.responses.items()}
        for row in read_jsonl(Path(made["inputs"]["scores_file"]["path"])):
            responses[row["id"]]["score"] = row["score"]
    else:
        stage = "scores" if "scores" in made["inputs"] else "judgments"
        _read_scores(folder / stage, prompts, made["minimum_valid"])
    if "comparisons" in made["inputs"]:
        texts = _manifest(folder / "comparisons")["counts"]["records"] <= COMPARISONS
        for row in read_shards(folder / "comparisons"):
            outcome = (row["first"], row["second"], row["winner"] or row["failure"], row["text"] if texts else None)
            prompts[row["prompt_id"]].compared = row["response_id"]
            prompts[row["prompt_id"]].comparisons.append(outcome)
    for entry in evidence.entries:
        prompt = prompts[entry["prompt"]]
        for name in (entry[side] for side in ("chosen", "rejected", "response") if side in entry):
            if name not in prompt.responses and name not in prompt.sides:
                raise KeyError(name)
    return evidence


def _read_pairs(folder: Path, evidence: Evidence) -> set[str]:
    """Add the iteration's entries; returns ids of responses to show, and of prompts all of whose responses to show."""
    wanted: set[str] = set()
    for row in read_jsonl(folder / "actor.jsonl"):
        sides = {"chosen": row["chosen_id"], "rejected": row["rejected_id"]}
        evidence.entries.append({"id": row["id"], "kind": "actor", "prompt": row["prompt_id"]} | sides)
        wanted |= set(sides.values())
    for row in read_jsonl(folder / "judge.jsonl") if (folder / "judge.jsonl").is_file() else ():
        sides = {"chosen": row["chosen_id"], "rejected": row["rejected_id"]}
        prompt = row["prompt_id"]
        entry = {"id": row["id"], "kind": "judge", "prompt": prompt, "response": row["response_id"]}
        evidence.entries.append(entry | sides | {"elo": [row["chosen_elo"], row["rejected_elo"]]})
        evidence.prompts[prompt].sides = {name: row[side][0]["content"] for side, name in sides.items()}
        wanted.add(row["response_id"])
    for row in read_jsonl(folder / "none.jsonl"):
        entry = {"id": f"none/{row['kind']}/{row['prompt_id']}", "kind": "none", "prompt": row["prompt_id"]}
        evidence.entries.append(entry | {"of": row["kind"], "reason": row["reason"]})
        wanted.add(row["prompt_id"])
    for row in read_jsonl(folder / "elo.jsonl") if (folder / "elo.jsonl").is_file() else ():
        outcome = (row["elo"], row["standard_error"], row["won"], row["lost"])
        evidence.prompts[row["prompt_id"]].elo[row["judgment_id"]] = outcome
        wanted.add(row["response_id"])
    order = {name: place for place, name in enumerate(evidence.prompts)}
    evidence.entries.sort(key=lambda entry: order[entry["prompt"]])
    return wanted


def _read_judgments(stage: Path, prompts: dict[str, Prompt]) -> None:
    """Add the judgments of the responses to show."""
    for row in read_shards(stage):
        prompt, name = prompts[row["prompt_id"]], row["response_id"]
        if prompt.responses[name]["text"] is not None:
            verdict = row["score"] if row["score"] is not None else row["failure"]
            prompt.judgments.setdefault(name, []).append((row["id"], verdict, row["text"]))


def _read_scores(stage: Path, prompts: dict[str, Prompt], minimum_valid: int) -> None:
    """Add each response's mean score, if it has enough, from the records of judgments or of expected scores."""
    scores = response_scores(group_by(read_shards(stage), "response_id"), minimum_valid)
    for prompt in prompts.values():
        for name in prompt.responses.keys() & scores.keys():
            prompt.responses[name]["score"] = to_number(scores[name])


def _manifest(stage: Path) -> Record:
    if (manifest := read_manifest(stage)) is None:
        raise UserError(f"{stage}: no manifest.json: deleted, or not finished; iterate.py makes it again")
    return manifest


def pack(runs: Sequence[Sequence[tuple[int, Evidence]]]) -> Record:
    """The browser's data: {"entries": chunk, "texts": chunks, "evidence": chunks, "limits": {...}}.

    `runs` holds each run's iterations, (number, evidence).
    """
    iterations = [(run, number, evidence) for run, own in enumerate(runs) for number, evidence in own]
    prompts = [prompt for _, _, evidence in iterations for prompt in evidence.prompts.values()]
    text = _limit((len(text) for prompt in prompts for text in _texts(prompt)), TEXT_BUDGET)
    judgment = _limit(
        (len(row[2]) for prompt in prompts for rows in prompt.judgments.values() for row in rows), JUDGMENT_BUDGET
    )
    entries, start = [], 0
    for run, number, evidence in iterations:
        places = {name: start + i for i, name in enumerate(evidence.prompts)}
        start += len(places)
        common = {"run": run, "iteration": number}
        entries += [common | {"at": places[entry["prompt"]]} | entry for entry in evidence.entries]
    return {
        "entries": _deflated(entries),
        "texts": _chunks([_shown(prompt, text) for prompt in prompts]),
        "evidence": _chunks([_behind(prompt, judgment) for prompt in prompts]),
        "limits": {"text": text, "judgment": judgment},
        "outcomes_only": any(row[3] is None for prompt in prompts for row in prompt.comparisons),
    }


def _texts(prompt: Prompt) -> Iterator[str]:
    yield prompt.text
    yield from (row["text"] for row in prompt.responses.values() if row["text"] is not None)
    yield from prompt.sides.values()


def _shown(prompt: Prompt, limit: int | None) -> Record:
    responses = [
        [name, row["characters"], row["score"], _cut(row["text"], limit)] for name, row in prompt.responses.items()
    ]
    sides = {name: _cut(text, limit) for name, text in prompt.sides.items()}
    return {"prompt": _cut(prompt.text, limit), "responses": responses, "sides": sides}


def _behind(prompt: Prompt, limit: int | None) -> Record:
    judgments = {
        name: [[judgment, verdict, _cut(text, limit)] for judgment, verdict, text in rows]
        for name, rows in prompt.judgments.items()
    }
    compared = {"compared": prompt.compared, "comparisons": prompt.comparisons, "elo": prompt.elo}
    return {"judgments": judgments} | compared


def _limit(lengths: Iterable[int], budget: int) -> int | None:
    """The longest limit with which all texts fit, or else the shortest limit; None if they fit whole."""
    lengths = list(lengths)
    if sum(lengths) <= budget:
        return None
    return next((limit for limit in LIMITS if sum(min(length, limit) for length in lengths) <= budget), LIMITS[-1])


def _cut(text: str | None, limit: int | None) -> Text | None:
    return text if text is None or limit is None or len(text) <= limit else [text[:limit], len(text)]


def _chunks(rows: Sequence[Record]) -> list[str]:
    return [_deflated(rows[i : i + CHUNK]) for i in range(0, len(rows), CHUNK)]


def _deflated(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # A tokenizer may leave a lone surrogate, which UTF-8 can't hold.
    return base64.b64encode(zlib.compress(text.encode("utf-8", "replace"))).decode()
