"""Judging: `python -m judging.judge` samples N judgments of each distinct response and reads their scores."""

import argparse
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from files import command
from judging.rubric import judge_prompt
from judging.scores import Record, distinct_responses
from judging.verdict import Failure, parse_score
from model.chat import ChatFormat, load_chat
from sampling.generate import Item, completion_fields, generation_key, read_units, request_seed, run_units
from sampling.request import Completion, Sampling
from settings import Judge, Settings, as_dict, load_settings


def judge_items(responses: Iterable[Record], chat: ChatFormat, settings: Settings, iteration: int) -> Iterator[Item]:
    """N requests for each distinct response; the same prompt each time, another stream of noise."""
    judge = settings.judge
    sampling = Sampling(judge.temperature, judge.top_p, judge.max_new_tokens, chat.stop_ids)
    for response in distinct_responses(responses):
        messages = partial(judge_prompt, response["prompt"], response["text"], judge.form, judge.verdict)
        for index in range(judge.N):
            name = f"{response['id']}/j{index}"
            seed = request_seed(settings.seed, iteration, "judge", name)
            known = {
                "id": name,
                "response_id": response["id"],
                "prompt_id": response["prompt_id"],
                "index": index,
            }
            yield Item(name, messages, sampling, seed, response["prompt_id"], known)


def judgment_record(item: Item, completion: Completion, chat: ChatFormat, judge: Judge) -> dict[str, Any]:
    """The judgment with its "score", a whole number or a decimal, or the "failure" that explains its absence."""
    row = item.record | completion_fields(completion, chat, item.seed)
    score = parse_score(row["text"], completion.finish_reason, judge.verdict, judge.fractions)
    if isinstance(score, Failure):
        return row | {"score": None, "failure": str(score)}
    return row | {"score": int(score) if score.denominator == 1 else float(score), "failure": None}


def judge_key(settings: Settings, model_dir: Path, responses: Path, iteration: int) -> str:
    """The identity of the judgments' work."""
    inputs: dict[str, Path | str] = {"model": model_dir, "responses": responses}
    return generation_key("judge", settings, judge_section(settings) | {"N": settings.judge.N}, iteration, inputs)


def judge_section(settings: Settings) -> dict[str, Any]:
    """The settings that a judgment depends on."""
    return {key: value for key, value in as_dict(settings.judge).items() if key not in ("N", "minimum_valid", "scores")}


def main() -> None:
    parser = argparse.ArgumentParser(description="Sample N judgments of each response.")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--model", required=True, type=Path, help="Hugging Face directory")
    parser.add_argument("--iteration", type=int, default=1)
    parser.add_argument("--responses", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    settings = load_settings(arguments.config)
    chat = load_chat(arguments.model)
    run_units(
        "judge",
        list(judge_items(read_units(arguments.responses), chat, settings, arguments.iteration)),
        lambda item, completion: judgment_record(item, completion, chat, settings.judge),
        chat=chat,
        settings=settings,
        model_dir=arguments.model,
        out=arguments.out,
        key=judge_key(settings, arguments.model, arguments.responses, arguments.iteration),
    )


if __name__ == "__main__":
    command(main)
