"""Runs for tests of the report, made by hand with the real pairs stage and the real bias panel."""

import random
from pathlib import Path

from evaluation.bias import write_panel
from judging.metajudge import choose_meta_judged
from judging.pairs import PAIRS, Sources
from stages.files import read_manifest, write_json, write_jsonl, write_manifest
from stages.records import group_by
from stages.settings import Iteration, Judge, Model, Respond, Settings

PLANTED = '<script>window.pwned=1</script><img src=x onerror="window.pwned=1"></script><!-- {{ 7 * 7 }}'
PROMPTS = 45

COMMON = {"ids": [3, 4], "finish_reason": "stop", "logprob": -1.0, "seed": 1}
SCORES = [*range(6), None]
STEP = {"epoch": 1, "split": "train", "margin": 0.1, "grad_norm": 1.0, "reward_chosen": 0.1, "reward_rejected": -0.1}
ROW = {
    "rho": 0.0,
    "dpo": {"loss": 0.5, "accuracy": 0.75, "margin": 0.2, "held_out": True},
    "agreement": None,
    "meta_agreement": None,
    "seconds": {"respond": 10.0, "judge": 20.0, "pairs": 0.1, "train": 5.0},
    "new_tokens": {"respond": 1000, "judge": 4000},
}


class Maker:
    """The folder of a run with `prompts` prompts, K responses each and N judgments each, of random words."""

    def __init__(self, folder: Path, prompts: int, K: int, N: int, lengths: tuple[int, int, int], seed: int = 0):
        self.folder, self.prompts, self.K, self.N, self.lengths = folder, prompts, K, N, lengths
        self.random = random.Random(seed)
        letters = "abcdefghijklmnopqrstuvwxyz"
        words = ["".join(self.random.choices(letters, k=self.random.randint(2, 9))) for _ in range(4000)]
        self.words = " ".join(self.random.choices(words, k=200_000))
        self.model = folder.parent / "model"
        self.model.mkdir(parents=True, exist_ok=True)
        (self.model / "tokenizer.json").write_text("{}")

    def text(self, length: int) -> str:
        start = self.random.randrange(len(self.words) - 2 * length)
        return self.words[start : start + self.random.randint(length // 2, 3 * length // 2)]

    def stage(self, path: Path, rows: list[dict]) -> Path:
        write_jsonl(path / "shards" / "0.jsonl", rows)
        facts = {"shards": ["shards/0.jsonl"], "counts": {"records": len(rows)}}
        inputs = {"model": {"path": str(self.model), "digest": "w"}}
        write_manifest(path, "test", "key", [path / "shards" / "0.jsonl"], inputs=inputs, **facts)
        return path

    def iteration(self, number: int, judge_pairs: bool = True, planted: bool = True) -> dict:
        """Write an iteration and return its row of the summary. All scores of the last prompt are equal."""
        folder = self.folder / f"iter{number}"
        prompts = [{"id": f"t{number}{i:04}", "prompt": self.text(self.lengths[0])} for i in range(self.prompts)]
        if planted:
            prompts[0]["prompt"] = f"{PLANTED} zebra"
        responses = [
            COMMON | {"id": f"{row['id']}/r{k}", "prompt_id": row["id"], "sample": k, "prompt": row["prompt"],
                      "text": f"{PLANTED} {k}" if planted and i == 0 else self.text(self.lengths[1])}
            for i, row in enumerate(prompts) for k in range(self.K)
        ]  # fmt: skip
        judgments = [
            judgment
            for row in responses
            for judgment in self.judgments(row, planted, [3] if row["prompt_id"] == prompts[-1]["id"] else SCORES)
        ]
        write_jsonl(folder / "prompts.jsonl", prompts)
        settings = Settings(
            name="made",
            model=Model(path="m"),
            respond=Respond(prompts="p", prompts_per_iteration=self.prompts, K=self.K),
            judge=Judge(N=self.N),
            iteration=[Iteration(judge_pairs=judge_pairs)] * number,
        )
        comparisons = folder / "comparisons" if judge_pairs else None
        if comparisons:
            by_response = group_by(judgments, "response_id")
            chosen = list(choose_meta_judged(responses, by_response, settings, number))
            write_jsonl(comparisons / "meta_judged.jsonl", chosen)
            self.stage(comparisons, [*self.comparisons(chosen, by_response)])
        sources = Sources(
            self.stage(folder / "responses", responses),
            self.stage(folder / "judgments", judgments),
            comparisons=comparisons,
        )
        PAIRS.run(PAIRS.job(settings, folder / "pairs", number, model=self.model, **sources.paths()))
        panel = write_panel(folder / "bias.json", number, settings, sources, folder / "pairs")
        write_jsonl(folder / "train" / "metrics.jsonl", [STEP | {"step": i, "loss": 0.7 - i / 50} for i in range(10)])
        counts = read_manifest(folder / "pairs")["counts"]
        return ROW | {
            "iteration": number,
            "pairs": {"actor": counts["actor"], "judge": counts.get("judge", 0)},
            "bias": panel,
        }

    def judgments(self, response: dict, planted: bool, scores: list) -> list[dict]:
        lineage = {"response_id": response["id"], "prompt_id": response["prompt_id"]}
        rows = []
        for n in range(self.N):
            score = self.random.choice(scores)
            text = f"{self.text(self.lengths[2])} {PLANTED if planted else ''}\nScore: {score}"
            failure = "missing" if score is None else None
            rows.append(
                COMMON
                | lineage
                | {"id": f"{response['id']}/j{n}", "index": n, "text": text, "score": score, "failure": failure}
            )
        return rows

    def comparisons(self, meta_judged: list[dict], judgments: dict[str, list[dict]]):
        """Comparisons of a meta-judge that prefers the judgment shown first and the higher score."""
        for row in meta_judged:
            name = row["response_id"]
            distinct = [judgment for judgment in judgments[name] if judgment["index"] in row["judgments"]]
            for a in distinct:
                for b in distinct:
                    if a is b:
                        continue
                    gap = a["score"] - b["score"]
                    winner = self.random.choices(["first", "second", None], [3 + max(gap, 0), 2 + max(-gap, 0), 1])[0]
                    yield COMMON | {
                        "id": f"{name}/m{a['index']}-{b['index']}", "response_id": name, "prompt_id": row["prompt_id"],
                        "first": a["index"], "second": b["index"], "winner": winner,
                        "failure": None if winner else "malformed",
                        "text": f"{self.text(self.lengths[2])}\nWinner: {winner}",
                    }  # fmt: skip

    def run(self, *iterations: dict, models: list[dict] | None = None) -> Path:
        sft = {"agreement_before": None, "agreement": None, "meta_agreement": None}
        summary = {"name": "made", "seed": 1, "model": "models/seed", "sft": sft, "iterations": list(iterations)}
        write_json(self.folder / "summary.json", summary | ({"models": models} if models else {}))
        return self.folder


def measured(value: float) -> dict:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "count": 100}


MODELS = [
    {"name": name, "verifiable": measured(0.4 + i / 20), "win_rate": measured(0.5 + i / 20) if i else None,
     "win_rate_by": "M2" if i else None, "win_rate_way": "by mean scores",
     "win_rate_consistency": None,
     "characters": {"value": 1500.0 + 10 * i, "low": 1400.0, "high": 1600.0, "count": 100},
     "agreement": measured(0.7), "longer_wins": measured(0.51), "spearman": measured(0.5),
     "differences": {"verifiable": measured(i / 20)} if i > 1 else {}}
    for i, name in enumerate(("seed", "M0", "M1", "M2"))
]  # fmt: skip
