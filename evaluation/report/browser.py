"""The data of the report's browser of pairs: each prompt's documents (`judging/trace.py`) as nested lists of texts.

Texts that would make the page too large are cut, or left out; `judging.trace` prints them whole.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from judging.scores import EXPLANATIONS
from judging.trace import Document, comparison_label, judgment_label, response_label, verdict

TEXT_BUDGET = 20_000_000
"""Characters of the prompts and of the pairs' texts in one page; the texts behind the pairs may have as many again."""
LIMITS = (16_000, 8_000, 4_000, 2_000, 1_000, 600, 300, 150)
LABEL = 80  # characters of a label, about; they count, too


def shown_prompts(documents: Sequence[Document], budget: int) -> list[list[Any]]:
    """For each prompt [id, text, entries, responses, comparisons], with about 2 x `budget` characters in all.

    A response, judgment or comparison is [label, text or None, part in the pair, texts behind this text].
    """
    pairs, behind = [len(document["prompt"]) for document in documents], list[int]()
    for document in documents:
        for row in document["responses"]:
            (pairs if _in_pair(document, row) else behind).append(len(row["text"]))
            for own in row["judgments"]:
                (pairs if own["part"] else behind).append(len(own["text"]))
        behind += [len(row["text"]) for row in document["comparisons"]]
    return [_prompt(document, _limit(pairs, budget), _limit(behind, budget)) for document in documents]


def _limit(lengths: Sequence[int], budget: int) -> int:
    """The longest text with which all fit into the budget; 0 where even the shortest limit does not suffice."""
    limits = (max(lengths, default=0), *(limit - LABEL for limit in LIMITS))
    return next((limit for limit in limits if sum(LABEL + min(length, limit) for length in lengths) <= budget), 0)


def _prompt(document: Document, limit: int, behind: int) -> list[Any]:
    responses = []
    for row in document["responses"]:
        # Judgments whose text is left out keep their line if they were compared.
        judgments: list[list[Any]] = [
            [judgment_label(own), _cut(own["text"], limit if own["part"] else behind), own["part"] or "", []]
            for own in row["judgments"]
            if behind or own["part"] or own["elo"]
        ]
        verdicts = "" if behind else "; judgments: " + ", ".join(map(verdict, row["judgments"]))
        text = _cut(row["text"], limit if _in_pair(document, row) else behind)
        responses.append([response_label(row) + verdicts, text, row["part"] or "", judgments])
    rows = document["comparisons"] if behind else ()
    comparisons: list[list[Any]] = [[comparison_label(row), _cut(row["text"], behind), "", []] for row in rows]
    return [document["prompt_id"], _cut(document["prompt"], limit), [*_entries(document)], responses, comparisons]


def _entries(document: Document) -> Iterator[list[str]]:
    """The prompt's lines in the browser's list: [id, kind, outcome] of each pair and of each missing pair."""
    for pair in document["pairs"]:
        if pair["kind"] == "actor":
            outcome = f"{pair['chosen_score']:.4g} over {pair['rejected_score']:.4g}"
        else:
            outcome = f"Elo {pair['chosen_elo']:.2f} over {pair['rejected_elo']:.2f}"
        yield [pair["id"], f"{pair['kind']} pair", outcome]
    for kind, reason in document["none"].items():
        yield [f"none/{kind}/{document['prompt_id']}", f"no {kind} pair: {EXPLANATIONS[reason]}", ""]


def _in_pair(document: Document, row: Document) -> bool:
    """Whether a response is shown at full length: part of a pair, judged by one, or its prompt has no actor pair."""
    judged = any(pair.get("response_id") == row["id"] for pair in document["pairs"])
    return bool(row["part"]) or judged or "actor" in document["none"]


def _cut(text: str, limit: int) -> str | None:
    if len(text) <= limit or not limit:
        return text if limit else None
    return f"{text[:limit]}\N{HORIZONTAL ELLIPSIS} [cut: {len(text) - limit:,} more characters]"
