"""Makes the answers files below data/: the default model's own answers to prompts.

Run from the repository's root, as data/README.md says for each file:

    python -m prepare.make_answers --model MODEL_DIR --prompts P.jsonl --temperatures 0.2 0.8 1.6 --out A.jsonl

Answers at several temperatures are the raw material of the judging examples that `prepare/construct.py` builds.
"""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from model.chat import load_chat
from model.dtype import generation_dtype
from model.weights import load_packed
from sampling.engine import Engine
from sampling.generate import request_seed
from sampling.request import Request, Sampling
from stages.files import read_jsonl, write_jsonl

MAX_NEW_TOKENS = 96


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer prompts at several temperatures.")
    parser.add_argument("--model", required=True, type=Path, help="Hugging Face directory")
    parser.add_argument("--prompts", required=True, type=Path, nargs="+", help="JSON lines of {id, prompt}")
    parser.add_argument("--temperatures", required=True, type=float, nargs="+")
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    chat = load_chat(arguments.model)
    model = load_packed(arguments.model, generation_dtype("auto", torch.device("cpu")))
    engine = Engine(model, num_kv_blocks=2048, block_size=16, max_num_batched_tokens=2048, max_num_seqs=128)
    requests = []
    for row in (row for path in arguments.prompts for row in read_jsonl(path, ("id", "prompt"))):
        ids = chat.prompt_ids([{"role": "user", "content": row["prompt"]}])
        for temperature in arguments.temperatures:
            name = f"{row['id']}/{temperature}"
            sampling = Sampling(temperature, 0.95, MAX_NEW_TOKENS, chat.stop_ids)
            requests.append(Request(name, ids, sampling, request_seed(0, 0, "answers", name)))
    completions = {c.id: c for c in tqdm(engine.run(requests), total=len(requests), mininterval=10)}
    rows = []
    for request in requests:
        prompt_id, temperature = request.id.split("/")
        completion = completions[request.id]
        text = chat.text(completion.ids).strip()
        rows.append(
            {"id": request.id, "prompt_id": prompt_id, "temperature": float(temperature), "text": text}
            | {"finish_reason": completion.finish_reason}
        )
    write_jsonl(arguments.out, rows)


if __name__ == "__main__":
    main()
