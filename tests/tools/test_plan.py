"""tools/plan.py: the simulation does what the engine does, counts are those worked by hand, and each fault is told."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training import changed
from workload import FIXTURE, mixed_requests

from dpo.data import Example
from model.config import LlamaConfig
from model.weights import load_model
from prepare.seed_model import make_tiny
from sampling.engine import Engine
from sampling.request import Sampling
from stages.command import UserError
from stages.settings import EngineOptions, Iteration, Settings, load_settings
from tools import plan as command_line
from tools.plan import Plan
from tools.planned import Generation, Planned, Training, disk, disk_needed
from tools.roofline import CARDS, Roofline, StepWork, simulate

ROOT = Path(__file__).parents[2]
LLAMA = LlamaConfig.load(ROOT / "configs" / "architectures" / "llama-3-8b")
PARAMETERS = 8_030_261_248


@pytest.fixture(scope="module")
def llama() -> Settings:
    return load_settings(ROOT / "configs" / "llama3-8b-instruct.toml")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Settings:
    """The tiny config, with its model there."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_tiny(folder)
    return changed(load_settings(ROOT / "configs" / "tiny.toml"), model={"path": str(folder)})


@pytest.fixture(autouse=True)
def in_root(monkeypatch) -> None:
    """Configs name files by their paths in the repository. The count of training's memory has tests of its own."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(command_line, "count", lambda config, settings, ranks: {"needed": 5 * 10**9})


def planned(settings: Settings, ranks: int = 1) -> Plan:
    return Plan(Roofline(LlamaConfig.load(settings.model.shape), settings, CARDS["h100"], ranks))


@pytest.mark.parametrize(("blocks", "sequences", "passes"), [(256, 3, 1), (24, 32, 1), (256, 3, 4), (24, 32, 4)])
def test_a_simulation_computes_what_the_engine_computes(blocks, sequences, passes):
    """Prompts that share, long ones in chunks, waiting ones; with 24 blocks sequences give way and start again."""
    model, work = load_model(FIXTURE, torch.float32), []
    options = {"num_kv_blocks": blocks, "block_size": 8, "max_num_batched_tokens": 64, "max_num_seqs": sequences}
    engine = Engine(model, **options)
    engine.max_passes, forward = passes, engine._forward

    def watched(step):
        work.extend(StepWork.of(step, 8, passed) for passed in range(step.passes))
        return forward(step)

    engine._forward = watched  # type: ignore[method-assign]
    asked = mixed_requests(24, Sampling(1.0, 1.0, 24))
    lengths = {completion.id: len(completion.ids) for completion in engine.run(asked)}
    known = [replace(request, sampling=Sampling(1.0, 1.0, lengths[request.id])) for request in asked]
    assert list(simulate(known, EngineOptions(**options), model.config.max_position_embeddings, passes)) == work
    assert sum(step.tokens for step in work) == engine.computed_tokens
    assert (engine.preemptions > 0) == (blocks == 24)
    # A shared prompt of 64 tokens is read once and seen by all: the second computes its last token and one of its own.
    twins = [replace(request, ids=list(range(64))) for request in mixed_requests(2, Sampling(1.0, 1.0, 2))]
    first, *rest = simulate(twins, EngineOptions(block_size=8), 1000)
    assert first == StepWork(tokens=64, drawn=1, keys_read=64, keys_seen=64 * 65 // 2)
    tokens, _, read, seen = map(sum, zip(*rest, strict=True))
    assert tokens == 3 and seen == 65 + 64 + 65 > read


def test_lengths_have_the_mean_that_is_asked_for(tiny):
    drawn = Planned(tiny)
    lengths = [drawn.length(430, 2048) for _ in range(4000)]
    assert np.mean(lengths) == pytest.approx(430, rel=0.03) and max(lengths) <= 2048
    assert np.mean(drawn.lengths(Generation(0, list, 430, 2048), 1000)) == pytest.approx(430, rel=0.01)


def test_the_papers_run_by_hand(llama):
    """5,000 prompts, 7 responses, 11 judgments, all ordered pairs of those; 10,500 ranked replies, 1/4 set aside."""
    settings = changed(llama, plan={"distinct_judgments": 1.0})
    stages = Planned(settings).stages()
    wanted = {"pool": 40_000, "sft/eft": 7_875 * 4, "sft/checkpoint": 1_575, "evaluation/seed/actor": 271}
    wanted |= {"iter1/responses": 35_000, "iter1/judgments": 385_000, "iter1/comparisons": 550_000}
    wanted |= {"iter1/checkpoint": 3_000 + 2_500, "iter4/checkpoint": 3_000, "iter3/comparisons": None}
    wanted |= {"evaluation/M4/judge": 875 * 3 * llama.evaluation.N, "evaluation/M0/wins": 192}
    wanted |= {"evaluation/seed/wins": None}
    assert {name: stages[name].count if name in stages else None for name in wanted} == wanted
    # A group's requests share the rubric and the question, and the N judgments of a response the whole prompt.
    judgments = stages["iter1/judgments"].group()
    assert len(judgments) == 77 and judgments[0] is judgments[10] and len({tuple(ids) for ids in judgments}) == 7
    assert judgments[0][:280] == judgments[-1][:280]
    assert disk(stages["sft/checkpoint"], LLAMA) == 2 * PARAMETERS
    assert disk(stages["iter1/responses"], LLAMA) == 35_000 * (300 + 11.5 * 430)
    # M0 to M4, the old state and the new one, and the 7 exports that wait for a state every 5.6 epochs.
    assert 0 < disk_needed(stages, llama, LLAMA) - (5 * 2 + 24 + 14) * PARAMETERS < 10e9
    parts = Roofline(LLAMA, llama, CARDS["h100"], 8).generation_memory()
    assert parts["weights"] == 2 * PARAMETERS and parts["KV cache"] == (16384 + 1) * 2 * 2**20, "2 MiB a block"


@pytest.mark.parametrize(
    ("name", "architecture", "parameters", "layers", "blocks"),
    [
        ("llama3-8b-one-gpu", "llama-3-8b", PARAMETERS, 32, 2048),
        ("qwen3-8b-one-gpu", "qwen3-8b", 8_190_735_360, 36, 1536),
    ],
)
def test_generation_of_the_recipes_for_one_gpu_fits(name, architecture, parameters, layers, blocks):
    """On 80 GB, and with docs/your-model.md's settings on 24 GB: a block has 64 bytes x layers x 8 heads x 128."""
    settings = load_settings(ROOT / "configs" / f"{name}.toml")
    small = {"num_kv_blocks": blocks, "max_num_batched_tokens": 2048, "max_num_seqs": 128}
    config = LlamaConfig.load(ROOT / "configs" / "architectures" / architecture)
    for own, card in ((settings, CARDS["h100"]), (changed(settings, engine=small), CARDS["rtx4090"])):
        parts = Roofline(config, own, card, 1).generation_memory()
        assert parts["weights"] == 2 * parameters
        assert parts["KV cache"] == (own.engine.num_kv_blocks + 1) * 64 * layers * 8 * 128
        assert sum(parts.values()) < card.memory
    assert list(Planned(settings).stages())[:3] == ["pool", "sft/eft", "sft/checkpoint"]


def test_the_stages_are_those_of_a_run(tiny):
    """Two iterations, the second without judge pairs; SFT on constructed examples; scores from elsewhere."""
    stages = Planned(tiny).stages()
    first, second = ("responses", "judgments", "comparisons", "checkpoint"), ("responses", "judgments", "checkpoint")
    assert list(stages) == ["sft/checkpoint", *(f"iter1/{p}" for p in first), *(f"iter2/{p}" for p in second)]
    counts = [stages[name].count for name in ("sft/checkpoint", "iter1/judgments", "iter1/checkpoint")]
    assert counts == [240 + 120, 8 * 3 * 4, 4 + 6]
    settings = changed(tiny, dpo={"held_out": 0.1, "epochs": 5})  # an export of each epoch, or of the one that is set
    stages = Planned(replace(settings, iteration=[Iteration(), Iteration(epoch=2)])).stages()
    trainings = [work for work in stages.values() if isinstance(work, Training)]
    assert [(work.epochs, work.exports) for work in trainings] == [(3, 1), (5, 5), (2, 1)]
    scores = changed(tiny, judge={"scores_file": "scores-{t}.jsonl"}, sft={"enabled": False})
    scores = replace(scores, iteration=[Iteration(judge_pairs=False)])
    assert list(Planned(scores).stages()) == ["iter1/responses", "iter1/checkpoint"]
    expected = Planned(changed(tiny, judge={"score": "expected"}, sft={"enabled": False})).stages()
    assert expected["iter1/scores"].count == 8 * 3 and expected["iter1/judgments"].count == 8 * 4
    assert "iter2/judgments" not in expected


def test_shards_are_claimed_by_ranks(tiny):
    """Four shards on three ranks take as long as on two: one rank has two of them."""
    settings = changed(tiny, respond={"prompts_per_iteration": 32})
    plans = [planned(settings, ranks) for ranks in (1, 2, 3, 4, 8)]
    times = [plan.costs[plan.stages["iter1/responses"]][2] for plan in plans]
    fixed = settings.plan.start_seconds + plans[0].machine.disk_seconds(2)
    assert [(time - fixed) / (times[0] - fixed) for time in times] == pytest.approx([1, 1 / 2, 1 / 2, 1 / 4, 1 / 4])


def test_one_sequence_takes_its_place_in_every_pass(tiny):
    """Of two places at most half are taken; no pass is in vain, as there is always one that needs it."""
    for places in (1, 2):
        plan = planned(changed(tiny, engine={"max_num_seqs": places, "shard_requests": 1}))
        assert plan.places[plan.stages["iter1/responses"]] == pytest.approx(1 / places)


def test_seconds_of_steps_and_updates_by_hand(llama):
    """Llama-3-8B: a block has 4096 (2 4096 + 2 1024 + 3 14336) = 218,103,808 weights, the head 525,336,576.

    Three passes of operations, four with activation checkpointing; on two nodes sending is slower.
    """
    again = changed(llama, trainer={"activation_checkpointing": True})
    blocks, head = 32 * 218_103_808, 525_336_576
    one, two_nodes = (Roofline(LLAMA, llama, CARDS["h100"], ranks) for ranks in (1, 16))
    by_bytes = (2 * (blocks + head) + 128 * 1024 * (2_000 + 10)) / (3.35e12 * 0.6)
    assert one.step_seconds(StepWork(10, 3, 2_000, 7_000)) == pytest.approx(by_bytes + 0.002)
    operations = 2 * blocks * 8192 + 2 * head * 5 + 4 * 32 * 4096 * 10**8
    assert one.step_seconds(StepWork(8192, 5, 8192, 10**8)) == pytest.approx(operations / (989e12 * 0.5) + 0.002)
    adam, sent = 28 * PARAMETERS / 3.35e12, 15 / 16 * 8 * PARAMETERS / (50e9 * 0.6)
    for passes, machine in ((3, one), (4, replace(one, settings=again))):
        assert machine.update_seconds([1e14, 2e14]) == pytest.approx(passes * 3e14 / (989e12 * 0.4) + adam)
    assert two_nodes.update_seconds([1e12]) == pytest.approx(sent + adam / 16)
    copies = replace(two_nodes, settings=changed(llama, trainer={"shard_degree": 8}))
    sent = PARAMETERS * (7 / 8 * 8 / 450e9 + 1 / 2 * 8 / 8 / 50e9) / 0.6
    assert copies.update_seconds([1e12]) == pytest.approx(sent + adam / 8)


def test_training_by_hand(tiny, monkeypatch):
    """96 pairs of 40 + 2 x 20 tokens, a quarter held out; the last token is not read. Two epochs."""
    settings = changed(tiny, dpo={"held_out": 0.25})
    pairs = [Example(str(i), [i] * 40, ([2] * 20, [3] * 20)) for i in range(32)]
    monkeypatch.setattr(Planned, "examples", lambda self, work, count: pairs)
    work = Training(settings.dpo, ((Generation(0, list, 1, 1), 96),), epochs=2, exports=2)
    one = planned(settings)
    computed, new, seconds = one.training(work)
    assert computed == (40 + 19 + 19) * (2 * 72 + 2 * 24 + 96) and new == 96 * 40 and work.steps == 9
    fixed = 2 * 8 + one.machine.disk_seconds(2 + 2 + 2)
    assert one.machine.update_seconds([0]) * 18 < seconds - fixed < 0.1
    slow = planned(changed(settings, plan={"disk_gigabytes_per_second": 1e-9}))  # training waits for an export, a state
    assert slow.training(work)[2] == pytest.approx(2 * 8 + slow.machine.disk_seconds(2 + 2 + 2 + 2 + 12))


def test_each_fault_is_told(tiny):
    seeds = {"respond": {"prompts": []}, "prompts": {"seeds": "none.jsonl", "count": 100}}
    few = seeds | {"prompts": seeds["prompts"] | {"max_attempts": 10}}
    no_model = {"prepare": "", "path": "none", "architecture": tiny.model.path}
    cases: list[tuple[dict, str]] = [
        ({"model": no_model}, "warning: model.path: none/config.json"),
        ({"respond": {"max_new_tokens": 2000}}, "iter1/judgments: up to"),
        ({"judge": {"max_new_tokens": 960}}, "warning: iter1/judgments: up to"),
        ({"trainer": {"tokens_per_microbatch": 200}}, "warning: iter1/checkpoint: examples may have"),
        ({"trainer": {"tokens_per_microbatch": 20}}, "iter1/checkpoint: no example fits a micro-batch; raise trainer."),
        ({"respond": {"prompts_per_iteration": 300}}, "pool: 400 prompts, the iterations need 600; add prompts"),
        (few, "pool: 5 prompts, the iterations need 16; raise"),
    ]
    for changes, told in cases:
        faults = list(planned(changed(tiny, **changes)).faults(1e12))
        assert any(fault.startswith(told) for fault in faults), faults
    plan = planned(tiny)
    assert "disk: 0.0 GB, 0.0 are free" in next(plan.faults(1e3))
    faults = list(Plan(replace(plan.machine, card=CARDS["a100"]._replace(memory=1e9))).faults(1e12))
    assert "sft/checkpoint: 5.0 of 1 GB of memory; lower trainer.tokens_per_microbatch" in faults
    assert any(fault.endswith("GB of memory; lower engine.num_kv_blocks") for fault in faults)


def test_the_command(monkeypatch, capsys):
    """The table on GPUs, and this CPU with its measured peaks."""

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["tools/plan.py", "--config", "configs/tiny.toml", *words])
        command_line.main()
        return capsys.readouterr().out

    out = run("--gpus", "2")
    assert "2 x h100" in out and "Everything fits" in out
    rows = [line.split() for line in out.splitlines() if "/" in line.partition(" ")[0]]
    assert [row[0] for row in rows[:2]] == ["sft/checkpoint", "iter1/responses"] and len(rows) == 8
    [(*_, hours, minutes)] = [line.split() for line in out.splitlines() if line.startswith("in all")]
    assert float(hours) == pytest.approx(sum(float(row[4]) for row in rows), abs=0.05)
    assert float(minutes) == pytest.approx(sum(float(row[5]) for row in rows), abs=0.5)
    assert "1 x cpu" in run()
    monkeypatch.setitem(CARDS, "h100", CARDS["h100"]._replace(memory=1e9))
    with pytest.raises(SystemExit, match="1"):
        run("--gpus", "2")
    with pytest.raises(UserError, match="--gpus"):
        run("--gpus", "4", "--gpu", "cpu")
