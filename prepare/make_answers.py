"""Makes the answers files below data/: the default model's own answers to prompts.

Run from the repository's root, as data/README.md says for each file:

    python -m prepare.make_answers --model MODEL_DIR --prompts P.jsonl --temperatures 0.2 0.8 1.6 --out A.jsonl

Answers at several temperatures are the raw material of the judging examples that `prepare/construct.py` builds.
"""

import argparse
from pathlib import Path

import torch

from sampling.llm import LLM, SamplingParams
from stages.files import read_jsonl, write_jsonl
from stages.seeds import request_seed

MAX_NEW_TOKENS = 96


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer prompts at several temperatures.")
    parser.add_argument("--model", required=True, type=Path, help="Hugging Face directory")
    parser.add_argument("--prompts", required=True, type=Path, nargs="+", help="JSON lines of {id, prompt}")
    parser.add_argument("--temperatures", required=True, type=float, nargs="+")
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    llm = LLM(arguments.model, device="cpu", num_kv_blocks=2048)
    conversations, params, rows = [], [], []
    for prompt in (row for path in arguments.prompts for row in read_jsonl(path, ("id", "prompt"))):
        for temperature in arguments.temperatures:
            name = f"{prompt['id']}/{temperature}"
            conversations.append([{"role": "user", "content": prompt["prompt"]}])
            params.append(SamplingParams(temperature, 0.95, MAX_NEW_TOKENS, request_seed(0, 0, "answers", name)))
            rows.append({"id": name, "prompt_id": prompt["id"], "temperature": temperature})
    outputs = zip(rows, llm.chat(conversations, params), strict=True)
    write_jsonl(
        arguments.out,
        [row | {"text": output.text.strip(), "finish_reason": output.finish_reason} for row, output in outputs],
    )


if __name__ == "__main__":
    main()
