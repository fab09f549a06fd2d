"""A preview of an iteration for people: a response, two judgments and a comparison, which its stages draw again."""

import sys
import textwrap
from collections.abc import Iterable
from functools import partial
from itertools import islice, zip_longest

from judging.judge import judge_items, read_score
from judging.metajudge import choose_meta_judged, metajudge_items, read_winner
from sampling.respond import response_items
from sampling.worker import Item, Row, Verdict, Worker
from stages.command import arguments, command, printable
from stages.rows import conversation_text, read_prompts
from stages.settings import load_settings

PROMPTS = 8  # answered; one of the responses is shown
COMPARISONS = 4  # at most, of one response's judgments


def preview(worker: Worker, prompts: Iterable[Row], iteration: int) -> list[str]:
    """The texts of the longest response whose judgments are compared; else as many texts as there are."""
    settings, chat, shown = worker.settings, worker.chat, list[str]()

    def complete(items: Iterable[Item], verdict: Verdict = lambda row: {}) -> list[Row]:
        named = {item.name: item for item in items}
        completions = worker.engine(log=False).run([item.request(chat) for item in named.values()])
        rows = [named[completion.id].row(completion, chat) for completion in completions]
        return [row | verdict(row) for row in rows]

    items = response_items(islice(prompts, PROMPTS), chat, settings, iteration)
    responses = complete([item for item in items if item.record["sample"] == 0])
    for response in sorted(responses, key=lambda row: (row["finish_reason"] != "stop", -len(row["text"]))):
        name = response["id"]
        asked = judge_items([response], chat, settings, iteration, settings.judge.N)
        judgments = complete(asked, partial(read_score, judge=settings.judge))
        chosen = choose_meta_judged([response], {name: judgments}, settings, iteration)
        asked = metajudge_items(chosen, {name: response}, {name: judgments}, chat, settings, iteration)
        comparisons = complete(islice(asked, COMPARISONS), partial(read_winner, meta=settings.metajudge))
        texts = _texts(response, judgments, [row for row in comparisons if row["winner"] is not None])
        shown = max(shown, texts, key=len)
        if len(shown) == 4:
            break
    return shown


def _texts(response: Row, judgments: list[Row], comparisons: list[Row]) -> list[str]:
    scored = {row["index"]: row for row in judgments if row["score"] is not None}
    compared = [comparisons[0][place] for place in ("first", "second")] if comparisons else sorted(scored)[:2]
    texts = [_titled("A first response", prompt=conversation_text(response["prompt"]), response=response["text"])]
    for letter, row in zip("AB", map(scored.__getitem__, compared), strict=False):
        texts.append(_titled(f"Judgment {letter} of it: {row['score']:g} of 5", judge=row["text"]))
    for row in comparisons[:1]:
        winner = {"first": "A", "second": "B"}.get(row["winner"], "neither")
        texts.append(_titled("Which judgment is better?", judgment=row["text"], winner=winner))
    return texts


def _titled(title: str, **parts: str) -> str:
    """A title, then each part, wrapped and after its name."""
    lines = [f"\n{title}"]
    for name, text in parts.items():
        wrapped = [line for paragraph in text.strip().splitlines() for line in textwrap.wrap(paragraph, 85) or [""]]
        lines += [f"  {label:>10} | {line}" for label, line in zip_longest([name], wrapped, fillvalue="")]
    return "\n".join(lines) + "\n"


def main() -> None:
    given = arguments(__doc__, "config", "model", "prompts", iteration={"type": int, "default": 1})
    worker = Worker(load_settings(given.config), given.model)
    for text in preview(worker, read_prompts(given.prompts), given.iteration):
        print(printable(text), file=sys.stderr)


if __name__ == "__main__":
    command(main)
