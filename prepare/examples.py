"""SFT examples: labelled judgments and comparisons, in the rubric's form, as token ids.

`python -m prepare.examples` gathers the labelled rows that the config names: rows in files, prompts with scored
responses, rows of `prepare.eft`, and constructed rows. It writes examples.jsonl for `dpo.train --stage sft`.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from judging.rubric import comparison_text, evidence_text, judge_prompt, judgment_text, meta_judgment_text, meta_prompt
from model.chat import ChatFormat, load_chat
from prepare.construct import Constructor, load_sources
from stages.files import UserError, read_jsonl
from stages.settings import Settings, VerdictPosition
from stages.stage import Job, Output, Stage


def labelled_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The labelled rows of a file: rows {kind, ...} unchanged; one row for each scored response to a prompt."""
    for row in read_jsonl(path, ("prompt",)):
        if "responses" not in row:
            if row.get("kind") not in ("judge", "metajudge"):
                raise UserError(f"{path}, id {row.get('id')!r}: neither 'responses' nor a 'kind'; see data/README.md")
            yield row
            continue
        for response in row["responses"]:
            yield {
                "kind": "judge",
                "prompt": row["prompt"],
                "response": response["text"],
                "flaw": response.get("flaw", ""),
                "score": response["score"],
                "justification": evidence_text(response["evidence"]),
            }


def lessons(settings: Settings, files: Iterable[Path]) -> list[dict[str, Any]]:
    """The labelled rows in three lessons: decisions alone; judgments; judgments and comparisons.

    Rows of the files are spread over the second and third lesson, the actor's answers over all. The third lesson has a
    judgment for each comparison, but at most half of the judgments.
    """
    sft = settings.sft
    labelled = [row for path in files for row in labelled_rows(path)]
    random.Random(settings.seed).shuffle(labelled)
    first: list[dict[str, Any]] = []
    judgments: list[dict[str, Any]] = []
    comparisons: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    if sft.constructed_decisions + sft.constructed_judgments + sft.constructed_comparisons + sft.constructed_answers:
        prompts = [row for path in sft.prompts for row in read_jsonl(path, ("id", "prompt", "category", "topic"))]
        texts = [row for path in sft.answers for row in read_jsonl(path, ("prompt_id", "temperature", "text"))]
        constructor = Constructor(load_sources(prompts, texts), settings.seed)
        first = list(constructor.decision_examples(sft.constructed_decisions))
        judgments = list(constructor.judge_examples(sft.constructed_judgments))
        comparisons = list(constructor.metajudge_examples(sft.constructed_comparisons))
        answers = list(constructor.answer_examples(sft.constructed_answers))
    cut = len(judgments) - min(len(comparisons), len(judgments) // 2)
    third = _interleave(judgments[cut:], comparisons)
    return _interleave([*first, *_interleave([*judgments[:cut], *third], labelled)], answers)


def _interleave(*lists: list[Any]) -> list[Any]:
    """The items of all lists, spread evenly, with each list in its order."""
    placed = [((i + 0.5) / len(items), n, item) for n, items in enumerate(lists) for i, item in enumerate(items)]
    return [item for _, _, item in sorted(placed, key=lambda entry: entry[:2])]


def render(rows: Iterable[dict[str, Any]], chat: ChatFormat, settings: Settings) -> Iterator[dict[str, Any]]:
    """SFT examples {id, kind, flaw, prompt, completion, prompt_ids, completion_ids, token_weights} of labelled rows."""
    for number, row in enumerate(rows):
        if row["kind"] == "respond":
            yield _answer(number, row, chat, settings.sft.answer_weight)
            continue
        if row["kind"] == "judge":
            place = settings.judge.verdict_position
            messages = judge_prompt(row["prompt"], row["response"], settings.judge.prompt_style, place)
            text = judgment_text(row["score"], row["justification"], place)
        else:
            place = settings.metajudge.verdict_position
            a, b = (
                judgment_text(j["score"], j["justification"], settings.judge.verdict_position) for j in row["judgments"]
            )
            messages = meta_prompt(row["prompt"], row["response"], a, b, settings.metajudge.prompt_style, place)
            reason = comparison_text(row["score"], [judgment["score"] for judgment in row["judgments"]])
            text = meta_judgment_text(row["winner"], reason, place)
        ids = chat.completion_ids(text)
        weights = [1.0] * len(ids)
        for i in decision_tokens(chat, text, place):
            weights[i] = settings.sft.verdict_token_weight
        yield {
            "id": f"{row['kind']}/{number:05}",
            "kind": row["kind"],
            "flaw": row.get("flaw", ""),
            "prompt": messages,
            "completion": text,
            "prompt_ids": chat.prompt_ids(messages),
            "completion_ids": ids,
            "token_weights": weights,
        }


def _answer(number: int, row: dict[str, Any], chat: ChatFormat, weight: float) -> dict[str, Any]:
    """An actor's example; a cut-off answer has no end token."""
    messages = [{"role": "user", "content": row["prompt"]}]
    ids = chat.completion_ids(row["response"])
    ids = ids if row["finished"] else ids[:-1]
    return {
        "id": f"respond/{number:05}",
        "kind": "respond",
        "flaw": "",
        "prompt": messages,
        "completion": row["response"],
        "prompt_ids": chat.prompt_ids(messages),
        "completion_ids": ids,
        "token_weights": [weight] * len(ids),
    }


def decision_tokens(chat: ChatFormat, text: str, place: VerdictPosition) -> list[int]:
    """Indices of the tokens that decide: the verdict's value, and the deserved score in a meta-judge's reason."""
    line = text.split("\n")[0 if place == "first" else -1]
    end = len(line) if place == "first" else len(text)
    spans = [(end - len(line.split()[-1]), end)]
    spans += [match.span(1) for match in re.finditer(r"^It deserves (\d);", text, flags=re.MULTILINE)]
    return [i for i, (low, high) in enumerate(chat.offsets(text)) if any(low < b and high > a for a, b in spans)]


def gather(job: Job) -> Output:
    """Write the SFT examples that the config asks for."""
    settings, chat = job.settings, load_chat(job.path("model"))
    files = [*map(Path, settings.sft.examples), *job.paths("labelled")]
    examples = list(render(lessons(settings, files), chat, settings))
    if not examples:
        raise UserError("sft names no examples and constructs none; add some or set sft.enabled = false")
    counts = Counter(f"{e['kind']}.{e['flaw']}" for e in examples)
    tokens = sum(len(e["prompt_ids"]) + len(e["completion_ids"]) for e in examples)
    return Output({"examples.jsonl": examples}, {"counts": dict(sorted(counts.items())), "tokens": tokens})


def _settings(settings: Settings, iteration: int) -> Any:
    names = [f"constructed_{name}" for name in ("decisions", "judgments", "comparisons", "answers")]
    return {
        "sft": {name: getattr(settings.sft, name) for name in (*names, "verdict_token_weight", "answer_weight")},
        "judge": [settings.judge.prompt_style, settings.judge.verdict_position],
        "metajudge": [settings.metajudge.prompt_style, settings.metajudge.verdict_position],
        "seed": settings.seed,
    }


EXAMPLES = Stage(
    "examples",
    "prepare.examples",
    gather,
    settings=_settings,
    inputs=("model",),
    optional=("labelled",),
    lists=("labelled",),
    files=lambda settings: {
        "examples": settings.sft.examples,
        "prompts": settings.sft.prompts,
        "answers": settings.sft.answers,
    },
)

if __name__ == "__main__":
    EXAMPLES.main()
