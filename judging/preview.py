"""What a run's model says first, for people to see before its stages begin: a response, a judgment, a comparison.

They are the run's own: the stages draw the same texts again.
"""

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from files import command, read_jsonl
from judging.judge import judge_items, judgment_record
from judging.metajudge import comparison_record, metajudge_items
from sampling.generate import Item, Worker, response_items
from sampling.request import Completion
from settings import load_settings

Row = dict[str, Any]
PROMPTS = 8
COMPARISONS = 4


def preview(worker: Worker, prompts: Iterable[Row], iteration: int) -> Iterable[str]:
    """One of each, as texts, as soon as it is there; of the longest response that ends and whose
    judgments differ."""
    settings, chat = worker.settings, worker.chat

    def complete(items: Iterable[Item], record: Callable[[Item, Completion], Row]) -> list[Row]:
        named = {item.name: item for item in items}
        found = worker.engine(log=False).run([item.request(chat) for item in named.values()])
        return [record(named[completion.id], completion) for completion in found]

    items = response_items(islice(prompts, PROMPTS), chat, settings, iteration)
    responses = complete([item for item in items if item.record["sample"] == 0], worker.record)
    ended = [row for row in responses if row["finish_reason"] == "stop"]
    for response in sorted(ended, key=lambda row: -len(row["text"])):
        asked = judge_items([response], chat, settings, iteration, settings.judge.N)
        judgments = complete(asked, partial(judgment_record, chat=chat, judge=settings.judge))
        compared = metajudge_items([response], {response["id"]: judgments}, chat, settings, iteration)
        comparisons = complete(
            islice(compared, COMPARISONS), partial(comparison_record, chat=chat, meta=settings.metajudge)
        )
        decided = [row for row in comparisons if row["winner"] is not None]
        if decided:
            yield told("A first response", {"prompt": response["prompt"], "response": response["text"]})
            a, b = (next(row for row in judgments if row["index"] == decided[0][i]) for i in ("first", "second"))
            for letter, row in (("A", a), ("B", b)):
                yield told(f"Judgment {letter} of it: {row['score']:g} of 5", {"judge": row["text"]})
            winner = {"first": "A", "second": "B"}.get(decided[0]["winner"], "tie")
            yield told("Which judgment is better?", {"meta-judge": decided[0]["text"], "winner": winner})
            return


def told(title: str, parts: dict[str, str], width: int = 100) -> str:
    """One record for people: a title, then its parts, each under its name and wrapped."""
    lines = [f"\n{title}"]
    for name, text in parts.items():
        for i, line in enumerate(text.strip().splitlines() or [""]):
            head = f"  {name:>10} | " if i == 0 else f"  {'':>10} | "
            later = f"  {'':>10} | "
            lines += textwrap.wrap(line, width, initial_indent=head, subsequent_indent=later) or [later]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Print one response, judgment and comparison of an iteration.")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--model", required=True, type=Path, help="Hugging Face directory")
    parser.add_argument("--prompts", required=True, type=Path, help="JSON lines of {id, prompt}")
    parser.add_argument("--iteration", type=int, default=1)
    arguments = parser.parse_args()
    worker = Worker(load_settings(arguments.config), arguments.model)
    for text in preview(worker, read_jsonl(arguments.prompts, ("id", "prompt")), arguments.iteration):
        print(text, file=sys.stderr)


if __name__ == "__main__":
    command(main)
