"""Makes data/answers.jsonl and data/evaluation/answers.jsonl: the default model's own answers to prompts.

Run from the repository's root: `python data/make_answers.py MODEL_DIR OUT PROMPTS...`. Answers at several temperatures
are the raw material of the judging examples that `judging/construct.py` builds.
"""

import os
import sys
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from files import read_jsonl, write_jsonl
from model.chat import load_chat
from model.llama import compute_dtype
from model.weights import load_model
from sampling.engine import Engine
from sampling.generate import request_seed
from sampling.request import Request, Sampling

TEMPERATURES = (0.2, 0.8, 1.6)
MAX_NEW_TOKENS = 96


def main() -> None:
    folder, out, *sources = sys.argv[1:]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    chat = load_chat(folder)
    model = load_model(folder, compute_dtype("auto", torch.device("cpu")))
    engine = Engine(model, blocks=2048, block_size=16, token_budget=2048, max_sequences=128)
    requests = []
    for source in sources:
        for row in read_jsonl(source, ("id", "prompt")):
            ids = chat.prompt_ids([{"role": "user", "content": row["prompt"]}])
            for temperature in TEMPERATURES:
                name = f"{row['id']}/{temperature}"
                sampling = Sampling(temperature, 0.95, MAX_NEW_TOKENS, chat.stop_ids)
                requests.append(Request(name, ids, sampling, request_seed(0, 0, "answers", name)))
    completions = {c.id: c for c in tqdm(engine.run(requests), total=len(requests))}
    rows = []
    for request in requests:
        prompt_id, temperature = request.id.split("/")
        completion = completions[request.id]
        text = chat.text(completion.ids).strip()
        rows.append(
            {"id": request.id, "prompt_id": prompt_id, "temperature": float(temperature), "text": text}
            | {"finish_reason": completion.finish_reason}
        )
    write_jsonl(out, rows)


if __name__ == "__main__":
    main()
