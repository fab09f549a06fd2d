"""Judging: `python -m judging.judge` samples N judgments of each distinct response and reads their scores.

With `judge.score = "expected"` it reads off the distribution of the score instead (`judging/expected.py`).
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from judging.expected import expected_items, expected_record, reasoned_items, spreads
from judging.rubric import judge_prompt
from judging.scores import Record, distinct_responses, group_by, most_uncertain, seeded_draw
from judging.verdict import Failure, parse_score
from model.chat import ChatFormat
from sampling.generate import Item, Worker, completion_fields, generation_key, read_units, request_seed
from sampling.request import Completion, Sampling
from stages.files import UserError, command
from stages.settings import Judge, Settings, as_dict, load_settings


def judge_items(
    responses: Iterable[Record], chat: ChatFormat, settings: Settings, iteration: int, N: int, stage: str = "judge"
) -> Iterator[Item]:
    """N requests for each response {id, prompt_id, prompt, text}: the same prompt, other streams of noise."""
    judge = settings.judge
    sampling = Sampling(judge.temperature, judge.top_p, judge.max_new_tokens, chat.stop_ids)
    for response in responses:
        messages = partial(
            judge_prompt, response["prompt"], response["text"], judge.prompt_style, judge.verdict_position
        )
        for index in range(N):
            name = f"{response['id']}/j{index}"
            seed = request_seed(settings.seed, iteration, stage, name)
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
    score = parse_score(row["text"], completion.finish_reason, judge.verdict_position, judge.fractions)
    if isinstance(score, Failure):
        return row | {"score": None, "failure": str(score)}
    return row | {"score": int(score) if score.denominator == 1 else float(score), "failure": None}


@dataclass(frozen=True)
class Judging:
    """A model judges responses: how often each, and where the records go."""

    worker: Worker
    stage: str
    """Of the noise: what is judged in another stage meets other noise."""
    N: int
    iteration: int = 0

    @property
    def judge(self) -> Judge:
        return self.worker.settings.judge

    def scores(self, responses: Sequence[Record], out: Path, key: str) -> list[Record]:
        """The rows that say what each response {id, prompt_id, prompt, text} scores: judgments, or expected scores.

        They are written to `out`, and with the expected score behind reasons the judgments to `out`/reasons.
        """
        if self.judge.score == "sampled":
            return self.sampled(responses, out, key)
        if self.judge.verdict_position == "first":
            return self.expected(responses, out, key)
        judgments = self.sampled(responses, out / "reasons", key)
        return self.reasoned(responses, judgments, out, key)

    def sampled(self, responses: Sequence[Record], out: Path, key: str) -> list[Record]:
        """N judgments of each response."""
        items = list(judge_items(responses, self.worker.chat, self.worker.settings, self.iteration, self.N, self.stage))
        record = partial(judgment_record, chat=self.worker.chat, judge=self.judge)
        self.worker.run(self.stage, items, out, key, record)
        return list(read_units(out))

    def expected(self, responses: Sequence[Record], out: Path, key: str) -> list[Record]:
        """The expected score of each response, in one pass."""
        items = list(expected_items(responses, self.worker.chat, self.judge))
        self.worker.run(f"{self.stage} scores", items, out, key, expected_record)
        return list(read_units(out))

    def reasoned(self, responses: Sequence[Record], judgments: Iterable[Record], out: Path, key: str) -> list[Record]:
        """The expected score behind the reasons of each judgment."""
        by_response = group_by(judgments, "response_id")
        items = list(reasoned_items(responses, by_response, self.worker.chat, self.judge))
        self.worker.run(f"{self.stage} scores", items, out, key, expected_record)
        return list(read_units(out))


def judge_key(settings: Settings, model_dir: Path, responses: Path, iteration: int) -> str:
    """The identity of the judgments' work."""
    inputs: dict[str, Path | str] = {"model": model_dir, "responses": responses}
    facts = {"N": settings.judge.N, "score": settings.judge.score}  # which responses have judgments follows from it
    return generation_key("judge", settings, judge_section(settings) | facts, iteration, inputs)


def scores_key(settings: Settings, model_dir: Path, responses: Path, iteration: int) -> str:
    """The identity of the expected scores' work."""
    inputs: dict[str, Path | str] = {"model": model_dir, "responses": responses}
    return generation_key("scores", settings, scoring_section(settings, settings.judge.N), iteration, inputs)


def judge_section(settings: Settings) -> dict[str, Any]:
    """The settings that a judgment depends on."""
    others = ("N", "minimum_valid", "score", "scores_file")
    return {key: value for key, value in as_dict(settings.judge).items() if key not in others}


def scoring_section(settings: Settings, N: int) -> dict[str, Any]:
    """The settings that a response's score depends on; `N` judgments each, where any are sampled."""
    judge = settings.judge
    if judge.score == "sampled":
        return judge_section(settings) | {"N": N}
    if judge.verdict_position == "first":
        return {"form": judge.prompt_style, "verdict": judge.verdict_position, "score": judge.score}
    return judge_section(settings) | {"N": N, "score": judge.score}


def judge(judging: Judging, responses: Sequence[Record], arguments: argparse.Namespace) -> None:
    """Write the judgments to `--out`; where the config wants expected scores those, and to `--judgments` the judgments.

    With the verdict first these are judgments of each prompt's most uncertain response, where the iteration compares
    any.
    """
    settings, model, iteration = judging.worker.settings, arguments.model, arguments.iteration
    key = judge_key(settings, model, arguments.responses, iteration)
    if judging.judge.score == "sampled":
        judging.sampled(responses, arguments.out, key)
        return
    own = scores_key(settings, model, arguments.responses, iteration)
    if judging.judge.verdict_position == "last":
        judging.reasoned(responses, judging.sampled(responses, arguments.judgments, key), arguments.out, own)
        return
    rows = judging.expected(responses, arguments.out, own)
    if arguments.judgments:
        chosen = most_uncertain(responses, spreads(rows), seeded_draw(settings.seed, iteration))
        judging.sampled(chosen, arguments.judgments, key)


def main() -> None:
    parser = argparse.ArgumentParser(description="Sample N judgments of each response, or read off expected scores.")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--model", required=True, type=Path, help="Hugging Face directory")
    parser.add_argument("--iteration", type=int, default=1)
    parser.add_argument("--responses", required=True, type=Path)
    parser.add_argument("--judgments", type=Path, help="with expected scores: folder for the judgments, if wanted")
    parser.add_argument("--out", required=True, type=Path, help="folder for the judgments, or for expected scores")
    arguments = parser.parse_args()
    settings = load_settings(arguments.config)
    if settings.judge.score == "sampled" and arguments.judgments:
        raise UserError(
            f"{arguments.config}: judge.score is sampled, so the judgments go to --out; leave --judgments out"
        )
    if settings.judge.score == "expected" and settings.judge.verdict_position == "last" and not arguments.judgments:
        raise UserError("--judgments is missing: with the verdict last, expected scores stand behind judgments; add it")
    judging = Judging(Worker(settings, arguments.model), "judge", settings.judge.N, arguments.iteration)
    judge(judging, distinct_responses(read_units(arguments.responses)), arguments)


if __name__ == "__main__":
    command(main)
