"""Meta-judging: `torchrun -m judging.metajudge` compares the judgments of one response a prompt, in both orders."""

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from judging.pairs import Sources
from judging.rubric import meta_prompt
from judging.schedule import schedule_seed, scheduled
from judging.scores import Record, distinct_responses, group_by, meta_judged, seeded_draw
from judging.verdict import Failure, parse_winner
from model.chat import ChatFormat
from sampling.generate import (
    Item,
    Worker,
    completion_fields,
    generation_key,
    read_units,
    request_seed,
)
from sampling.request import Completion, Sampling
from stages.files import UserError, command
from stages.settings import Metajudge, Settings, as_dict, load_settings


def metajudge_items(
    responses: Iterable[Record],
    judgments: Mapping[str, Sequence[Record]],
    chat: ChatFormat,
    settings: Settings,
    iteration: int,
    spreads: Mapping[str, Fraction] | None = None,
) -> Iterator[Item]:
    """A request for each scheduled pair of the distinct judgments of each prompt's meta-judged response.

    `judgments` and, with expected scores, their variances `spreads` by response id.
    """
    meta, draw = settings.metajudge, seeded_draw(settings.seed, iteration)
    sampling = Sampling(meta.temperature, meta.top_p, meta.max_new_tokens, chat.stop_ids)
    for prompt_id, rows in group_by(distinct_responses(responses), "prompt_id").items():
        picked = meta_judged(rows, judgments, draw, spreads)
        if picked is None:
            continue
        response, distinct = picked
        for a, b in scheduled(distinct, meta, schedule_seed(settings.seed, iteration, response["id"])):
            texts = (response["prompt"], response["text"], a["text"], b["text"])
            messages = partial(meta_prompt, *texts, meta.prompt_style, meta.verdict_position)
            name = f"{response['id']}/m{a['index']}-{b['index']}"
            seed = request_seed(settings.seed, iteration, "metajudge", name)
            known = {
                "id": name,
                "response_id": response["id"],
                "prompt_id": prompt_id,
                "first": a["index"],
                "second": b["index"],
            }
            yield Item(name, messages, sampling, seed, prompt_id, known)


def comparison_record(item: Item, completion: Completion, chat: ChatFormat, meta: Metajudge) -> dict[str, Any]:
    """The comparison with its "winner", "first", "second" or "tie", or the "failure" that explains its absence."""
    row = item.record | completion_fields(completion, chat, item.seed)
    winner = parse_winner(row["text"], completion.finish_reason, meta.verdict_position)
    if isinstance(winner, Failure):
        return row | {"winner": None, "failure": str(winner)}
    return row | {"winner": winner, "failure": None}


def metajudge_key(settings: Settings, model_dir: Path, sources: Sources, iteration: int) -> str:
    """The identity of the comparisons' work."""
    inputs: dict[str, Path | str] = {"model": model_dir, **sources.paths()}
    section = as_dict(settings.metajudge)
    del section["model"], section["elo_penalty"]  # the one is an input, the other is for later
    return generation_key("metajudge", settings, section, iteration, inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the judgments of one response a prompt.")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--model", required=True, type=Path, help="Hugging Face directory")
    parser.add_argument("--iteration", type=int, default=1)
    Sources.add_arguments(parser)
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    settings = load_settings(arguments.config)
    worker = Worker(settings, arguments.model)
    sources, t = Sources.read(arguments), arguments.iteration
    if not sources.judgments:
        raise UserError("--judgments is missing: they are what is compared; add it")
    fields = ("response_id", "index", "text", "score")
    judgments = group_by(({key: row[key] for key in fields} for row in read_units(sources.judgments)), "response_id")
    responses = read_units(sources.responses)
    items = list(metajudge_items(responses, judgments, worker.chat, settings, t, sources.spreads()))
    record = partial(comparison_record, chat=worker.chat, meta=settings.metajudge)
    key = metajudge_key(settings, arguments.model, sources, t)
    worker.run("metajudge", items, arguments.out, key, record)


if __name__ == "__main__":
    command(main)
