"""Runs for tests of the trace and the report, made by hand with the real pairs stage and the real bias panel."""

import random
from collections.abc import Sequence
from itertools import permutations, product
from pathlib import Path

from evaluation.bias import write_panel
from judging.metajudge import choose_meta_judged
from judging.pairs import PAIRS, Sources
from stages.files import read_manifest, write_jsonl, write_manifest, write_sealed
from stages.records import group_by
from stages.settings import Iteration, Judge, Model, Respond, Settings

PLANTED = '<script>window.pwned=1</script><img src=x onerror="window.pwned=1"></script><!-- {{ 7 * 7 }}'
PROMPTS, K, N = 45, 3, 4
SAMPLED = {"ids": [3, 4], "finish_reason": "stop", "logprob": -1.0, "seed": 1}
STEP = {"epoch": 1, "split": "train", "margin": 0.1, "grad_norm": 1.0, "reward_chosen": 0.1, "reward_rejected": -0.1}
SFT = {"checkpoint": "", "eft": None, "agreement_before": None, "agreement": None, "meta_agreement": None}
ROW = {"rho": 0.0, "responses": 0, "agreement": None, "meta_agreement": None, "checkpoint": ""}
ROW |= {"dpo": {"loss": 0.5, "accuracy": 0.75, "margin": 0.2, "held_out": True}}
ROW |= {"seconds": {"respond": 10.0, "judge": 20.0, "pairs": 0.1, "train": 5.0}}


def share(value: float | None, low: float | None = None, high: float | None = None) -> dict:
    return {"value": value, "low": low, "high": high, "count": 0 if value is None else 9}


MODELS: list[dict] = [
    {"name": "seed", "verifiable": share(0.25, 0.2, 0.3), "win_rate_by": None, "differences": {}},
    {"name": "M0", "verifiable": share(0.5, 0.4, 0.6), "win_rate": share(0.6, 0.5, 0.7), "differences": {},
     "win_rate_by": "M0", "win_rate_way": "by mean scores", "win_rate_undecided": 0},
    {"name": "M1", "verifiable": share(0.75, 0.7, 0.8), "win_rate": share(None),
     "differences": {"verifiable": share(0.25, 0.1, 0.4)},
     "win_rate_by": "M1", "win_rate_way": "by mean scores", "win_rate_undecided": 9},
]  # fmt: skip


def stage(folder: Path, rows: Sequence[dict], weights: str = "seed weights") -> Path:
    path = folder / "shards" / "0.jsonl"
    write_jsonl(path, rows)
    facts = {"shards": ["shards/0.jsonl"], "counts": {"records": len(rows)}, "seconds": 8.0, "new_tokens": 1000}
    write_manifest(folder, "test", "key", [path], inputs={"model": {"path": "m", "digest": weights}}, **facts)
    return folder


def write_iteration(
    folder: Path, settings: Settings, responses, judgments=None, comparisons=None, scores_file=None
) -> Sources:
    """Write the stages of an iteration, and its pairs."""
    number, model = int(folder.name.removeprefix("iter")), folder.parents[1] / "model"
    model.mkdir(exist_ok=True)
    (model / "tokenizer.json").write_text("{}")
    prompts = {row["prompt_id"]: row["prompt"] for row in responses}
    write_jsonl(folder / "prompts.jsonl", ({"id": name, "prompt": text} for name, text in prompts.items()))
    sources = {"responses": stage(folder / "responses", responses), "scores_file": scores_file}
    if judgments:
        sources["judgments"] = stage(folder / "judgments", judgments)
    if comparisons is not None:
        chosen = choose_meta_judged(responses, group_by(judgments, "response_id"), settings, number)
        write_jsonl(folder / "comparisons" / "meta_judged.jsonl", chosen)
        sources["comparisons"] = stage(folder / "comparisons", comparisons, "another's weights")
    PAIRS.run(PAIRS.job(settings, folder / "pairs", number, model=model, **sources))
    return Sources(**sources)


def made_run(folder: Path, *judge_pairs: bool, models: Sequence[dict] = MODELS) -> Path:
    """A finished run of random words with an iteration for each value, with judge pairs or without."""
    folder.mkdir(parents=True)
    rows = [_made_iteration(folder / f"iter{t}", wanted) for t, wanted in enumerate(judge_pairs, 1)]
    summary = {"name": "made", "seed": 1, "model": "models/seed", "pool": None, "sft": SFT, "iterations": rows}
    write_sealed(folder / "summary.json", summary | {"models": list(models)})
    return folder


def _made_iteration(folder: Path, judge_pairs: bool) -> dict:
    """Write an iteration and return its row of the summary; the first prompt's texts are markup."""
    number, draw = int(folder.name.removeprefix("iter")), random.Random(folder.name)

    def text(i: int) -> str:
        return PLANTED if i == 0 else " ".join(f"word{draw.randrange(1000)}" for _ in range(draw.randint(8, 40)))

    respond, iterations = Respond(PROMPTS, "p", K=K), [Iteration(judge_pairs=judge_pairs)] * number
    settings = Settings("made", model=Model("m"), respond=respond, judge=Judge(N=N), iteration=iterations)
    prompts = [{"prompt_id": f"t{number}{i:04}", "prompt": f"{text(i)} zebra {i}"} for i in range(PROMPTS)]
    responses = [
        SAMPLED | row | {"id": f"{row['prompt_id']}/r{k}", "sample": k, "text": f"{text(i)} {k}"}
        for (i, row), k in product(enumerate(prompts), range(K))
    ]
    judgments = []
    for row, n in product(responses, range(N)):
        score = draw.choice([*range(6), None]) if row["prompt_id"] != prompts[-1]["prompt_id"] else 3
        own = {"id": f"{row['id']}/j{n}", "response_id": row["id"], "prompt_id": row["prompt_id"], "index": n}
        own |= {"text": f"{text(row is not responses[0])}\nScore: {score}", "score": score}
        judgments.append(SAMPLED | own | {"failure": None if score is not None else "missing"})
    by_response = group_by(judgments, "response_id")
    comparisons = []
    for row in choose_meta_judged(responses, by_response, settings, number) if judge_pairs else ():
        for first, second in permutations(row["judgments"], 2):
            winner = draw.choices(["first", "second", None], [3, 2, 1])[0]
            own = {"id": f"{row['response_id']}/m{first}-{second}", "first": first, "second": second, "winner": winner}
            own |= {"response_id": row["response_id"], "prompt_id": row["prompt_id"], "text": f"Winner: {winner}"}
            comparisons.append(SAMPLED | own | {"failure": None if winner else "malformed"})
    sources = write_iteration(folder, settings, responses, judgments, comparisons if judge_pairs else None)
    panel = write_panel(folder / "bias.json", number, settings, sources, folder / "pairs")
    write_jsonl(folder / "train" / "metrics.jsonl", [STEP | {"step": i, "loss": 0.7 - i / 50} for i in range(10)])
    counts = read_manifest(folder / "pairs")["counts"]
    pairs = {"actor": counts["actor"], "judge": counts.get("judge", 0), "reasons": {}}
    return ROW | {"iteration": number, "pairs": pairs, "bias": panel}
