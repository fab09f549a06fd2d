"""Responding: `torchrun -m sampling.respond` samples K responses to each prompt."""

from collections.abc import Iterable, Iterator
from typing import Any

from model.chat import ChatFormat
from sampling.worker import Item, Row, Worker, generation_settings, sampling_of
from stages.rows import messages_of, read_prompts
from stages.seeds import request_seed
from stages.settings import Settings, as_dict
from stages.stage import Job, Stage


def response_items(prompts: Iterable[Row], chat: ChatFormat, settings: Settings, iteration: int) -> Iterator[Item]:
    """K requests for each prompt, a row {id, prompt}."""
    sampling = sampling_of(settings.respond, chat)
    for row in prompts:
        messages = messages_of(row["prompt"])
        for sample in range(settings.respond.K):
            name = f"{row['id']}/r{sample}"
            seed = request_seed(settings.seed, iteration, "respond", name)
            record = {"id": name, "prompt_id": row["id"], "sample": sample, "prompt": row["prompt"]}
            yield Item(name, messages.copy, sampling, seed, row["id"], record)


def respond(job: Job) -> None:
    """Sample K responses to each prompt."""
    worker = Worker(job.settings, job.path("model"))
    prompts = read_prompts(job.path("prompts"))
    worker.run(job, response_items(prompts, worker.chat, job.settings, job.iteration))


def _settings(settings: Settings, iteration: int) -> Any:
    section = as_dict(settings.respond)
    del section["prompts"], section["prompts_per_iteration"]  # the drawn prompts are an input
    return generation_settings(settings, iteration, section)


INPUTS = ("model", "prompts")
RESPOND = Stage("respond", "sampling.respond", respond, _settings, INPUTS, per_iteration=True, ranks="all")

if __name__ == "__main__":
    RESPOND.main()
