"""tools/plan.py: the simulation does what the engine does, counts equal the stages' own, and each check can fail."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training import changed
from workload import FIXTURE, mixed_requests

from dpo.data import Example
from evaluation.labelled import read_cases
from judging.judge import judge_items
from model.chat import load_chat
from model.config import LlamaConfig
from model.weights import load_model
from prepare.seed_model import make_tiny
from sampling.engine import Engine
from sampling.request import Sampling
from stages.assumptions import Assumptions
from stages.files import UserError
from stages.settings import EngineOptions, Iteration, Settings, load_settings
from tools import plan as command_line
from tools.planning import checks, requests
from tools.planning.checks import free_disk, memory
from tools.planning.requests import Requests
from tools.planning.roofline import CARDS, Roofline, generation_bytes, generation_flops, this_cpu
from tools.planning.room import disk, generation_memory, memory_uses
from tools.planning.stages import PlannedRun
from tools.planning.texts import StandInTokenizer, Texts, chat_format, single_tokens
from tools.planning.training import training_work
from tools.simulation import Simulation, StepWork

ROOT = Path(__file__).parents[2]
LLAMA = LlamaConfig.load(ROOT / "configs" / "architectures" / "llama-3-8b")


@pytest.fixture(scope="module")
def llama() -> Settings:
    return load_settings(ROOT / "configs" / "llama3-8b-instruct.toml")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Settings:
    """The tiny config, with its model there."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_tiny(folder)
    settings = load_settings(ROOT / "configs" / "tiny.toml")
    return replace(settings, model=replace(settings.model, path=str(folder)))


def roofline(settings: Settings, config: LlamaConfig, ranks: int = 8) -> Roofline:
    return Roofline(config, settings.plan, CARDS["h100"], ranks, settings.trainer.activation_checkpointing)


def planned(settings: Settings, config: LlamaConfig | None = None, ranks: int = 1) -> PlannedRun:
    config = config or LlamaConfig.load(settings.model.shape)
    return command_line.plan(settings, config, roofline(settings, config, ranks), ranks)


# What is simulated.


@pytest.mark.parametrize(("blocks", "sequences"), [(256, 32), (256, 3), (24, 32)])
def test_a_simulation_computes_what_the_engine_computes(blocks, sequences):
    """Prompts that share, long ones in chunks, waiting ones; with 24 blocks sequences give way and start again."""
    model, work = load_model(FIXTURE, torch.float32), []
    engine = Engine(model, num_kv_blocks=blocks, block_size=8, max_num_batched_tokens=64, max_num_seqs=sequences)
    forward = engine._forward
    engine._forward = lambda step: (work.append(StepWork.of(step, 8)), forward(step))[1]  # type: ignore[method-assign]
    asked = mixed_requests(24, Sampling(1.0, 1.0, 24))
    lengths = {completion.id: len(completion.ids) for completion in engine.run(asked)}
    simulation = Simulation()
    options = EngineOptions(num_kv_blocks=blocks, block_size=8, max_num_batched_tokens=64, max_num_seqs=sequences)
    simulation.run(asked, lengths, options, model.config.max_position_embeddings)
    assert simulation.steps == work
    assert simulation.computed_tokens == engine.computed_tokens
    assert simulation.new_tokens == sum(lengths.values())
    assert simulation.preemptions == engine.preemptions and (engine.preemptions > 0) == (blocks == 24)
    assert simulation.prompt_tokens == sum(len(request.ids) for request in asked) > 0


def test_a_shared_prefix_is_read_once_and_seen_by_all():
    """Two sequences with a prompt of 64 tokens: the second one computes its last token and one of its own."""
    simulation = Simulation()
    asked = [replace(request, ids=list(range(64))) for request in mixed_requests(2)]
    simulation.run(asked, {"0": 2, "1": 2}, EngineOptions(block_size=8), 1000)
    assert simulation.steps[0] == StepWork(tokens=64, drawn=1, keys_read=64, keys_seen=64 * 65 // 2)
    assert simulation.computed_tokens == 64 + 1 + 1 + 1
    assert sum(step.keys_seen for step in simulation.steps[1:]) == 65 + 64 + 65
    assert sum(step.keys_read for step in simulation.steps[1:]) < 65 + 64 + 65


def test_lengths_have_the_mean_that_is_asked_for():
    texts = Texts(["word"], 0.5, seed=0)
    for mean, limit in ((430, 2048), (70, 80), (5, 64)):
        drawn = [texts.length(mean, limit) for _ in range(4000)]
        assert np.mean(drawn) == pytest.approx(mean, rel=0.03) and max(drawn) <= limit
    assert texts.length(90, 80) == 80


def test_texts_have_the_tokens_that_are_asked_for(tiny):
    """With the model's own tokenizer, and with the stand-in."""
    chat = load_chat(tiny.model.path)
    words = single_tokens(chat)
    assert len(words) > 20
    assert len(chat.tokenizer.encode(Texts(words, 0.5, 0).text(300))) == pytest.approx(300, abs=1)
    absent = chat_format(Path("none"), 1000)
    assert isinstance(absent.tokenizer, StandInTokenizer)
    assert len(absent.tokenizer.encode(Texts(single_tokens(absent), 0.5, 0).text(300))) == pytest.approx(300, abs=5)


def test_the_stand_in_shares_what_texts_share():
    encode = StandInTokenizer(4.5, 1000).encode
    assert encode("a common beginning, then this")[:4] == encode("a common beginning, and that")[:4]
    assert encode("abcdefghi") != encode("abcdefghj") and len(encode("x" * 45)) == 10


# What is counted.


def test_requests_of_the_papers_run(llama):
    """5,000 prompts, 7 responses, 11 judgments, all ordered pairs of those; by hand."""
    plan = replace(llama.plan, distinct_judgments=1.0)
    made = Requests(replace(llama, plan=plan), chat_format(Path("none"), LLAMA.vocab_size))
    assert made.respond().requests == 35_000
    assert made.judge().requests == 385_000
    assert made.metajudge().requests == 550_000
    balanced = changed(llama, metajudge={"opponents": 4}, plan={"distinct_judgments": 1.0})
    assert Requests(balanced, made.chat).metajudge().requests == 5_000 * 11 * 4
    groups = [group for group in made.groups if not requests.is_held_out(group, llama)]
    assert made.eft().requests == 4 * 3 * len(groups) and 0.7 < len(groups) / 3500 < 0.8
    assert made.agreement().requests == 3 * (3500 - len(groups))


def test_requests_of_files_that_are_there(tiny):
    cases = "data/evaluation/groups.jsonl"
    settings = changed(tiny, evaluation={"judge_cases": cases, "comparisons": "data/evaluation/comparisons.jsonl"})
    chat = load_chat(settings.model.path)
    made = Requests(settings, chat)
    real = list(judge_items([case.response for case in read_cases(ROOT / cases)], chat, settings, 0, 1))
    assert made.agreement().requests == len(real) == 432
    assert [item.request(chat).ids for item in made.agreement().items] == [r.request(chat).ids for r in real]
    assert made.meta_agreement().requests == 240
    prompts = [row["prompt"] for row in made.sampled_prompts(1)]
    pool = {json.loads(line)["prompt"] for line in (ROOT / "data/prompts/train.jsonl").open()}
    assert len(prompts) == settings.respond.prompts_per_iteration and set(prompts) <= pool


def test_the_stages_are_those_of_a_run(tiny):
    """Two iterations, the second without judge pairs; SFT on constructed examples."""
    run = planned(tiny)
    iterations = ["responses", "judgments", "comparisons", "pairs", "checkpoint"]
    assert [stage.name for stage in run.stages] == [
        *("sft/examples", "sft/checkpoint"),
        *(f"iter1/{name}" for name in iterations),
        *(f"iter2/{name}" for name in iterations if name != "comparisons"),
    ]
    by_name = {stage.name: stage for stage in run.stages}
    assert by_name["iter1/responses"].requests == 8 * 3 and by_name["iter1/judgments"].requests == 8 * 3 * 4
    assert by_name["sft/checkpoint"].requests == 240 + 120
    assert run.pairs == [(4, 6), (4, 0)]
    scores = changed(tiny, judge={"scores_file": "scores-{t}.jsonl"})
    scores = replace(scores, iteration=[Iteration(judge_pairs=False)])
    assert [s.kind for s in planned(scores).stages if s.name.startswith("iter1")] == ["respond", "pairs", "dpo"]


def test_shards_are_claimed_by_ranks(tiny):
    """Four shards on three ranks take as long as on two: one rank has two of them."""
    settings = changed(tiny, respond={"prompts_per_iteration": 32})
    times = [planned(settings, ranks=ranks).stages[2].seconds for ranks in (1, 2, 3, 4, 8)]
    fixed = settings.plan.start_seconds + roofline(settings, LlamaConfig.load(settings.model.path)).load_seconds
    shares = [(time - fixed) / (times[0] - fixed) for time in times]
    assert shares == pytest.approx([1, 1 / 2, 1 / 2, 1 / 4, 1 / 4])


def test_operations_and_bytes_of_a_step_by_hand(llama):
    """Llama-3-8B: a block has 4096 (2 4096 + 2 1024 + 3 14336) = 218,103,808 weights, the head 525,336,576."""
    blocks, head = 32 * 218_103_808, 525_336_576
    step = StepWork(tokens=10, drawn=3, keys_read=2_000, keys_seen=7_000)
    assert generation_flops(LLAMA, step) == 2 * blocks * 10 + 2 * head * 3 + 4 * 32 * 4096 * 7_000
    assert generation_bytes(LLAMA, step) == 2 * (blocks + head) + 128 * 1024 * (2_000 + 10)
    machine = roofline(llama, LLAMA)
    by_bytes = (2 * (blocks + head) + 131_072 * 2_010) / (3.35e12 * 0.6)
    assert machine.step_seconds(step) == pytest.approx(by_bytes + 0.008)
    prefill = StepWork(tokens=8192, drawn=0, keys_read=8192, keys_seen=0)
    assert machine.step_seconds(prefill) == pytest.approx(2 * blocks * 8192 / (989e12 * 0.5) + 0.008)


def test_seconds_of_an_update_by_hand(llama):
    """With activation checkpointing four forward passes of operations, on one GPU; on two nodes sending is slower."""
    parameters = 8_030_261_248
    one = roofline(llama, LLAMA, 1)
    adam = 28 * parameters / 3.35e12
    assert one.update_seconds([1e14, 2e14]) == pytest.approx(4 * 3e14 / (989e12 * 0.4) + adam)
    assert one.forward_seconds([1e14]) == pytest.approx(1e14 / (989e12 * 0.4))
    sixteen = roofline(llama, LLAMA, 16)
    sent = 15 / 16 * 8 * parameters / (50e9 * 0.6)
    assert sixteen.update_seconds([1e12]) == pytest.approx(sent + adam / 16)


def test_training_counts_what_the_trainer_packs(tiny):
    """100 pairs of 40 + 2 x 20 tokens, a tenth held out, two epochs of batches of 8; the last token is not read."""
    config = LlamaConfig.load(tiny.model.path)
    settings = changed(tiny, dpo={"held_out": 0.1, "epochs": 2})
    pairs = [Example(str(i), [i] * 40, ([2] * 20, [3] * 20)) for i in range(16)]
    work = training_work(config, settings, settings.dpo, pairs, 100, ranks=1)
    assert work.batches == 90 / 8
    assert work.computed_tokens == (40 + 19 + 19) * (2 * 90 + 2 * 10 + 100)
    assert [len(update) for update in work.updates] == [1, 1] and work.dropped == 0
    halves = training_work(config, settings, settings.dpo, pairs, 100, ranks=2)
    assert halves.updates[0][0] == pytest.approx(work.updates[0][0] / 2)


def test_training_ends_with_the_epoch_that_is_set(tiny):
    """Five epochs with an export each, as pairs are held out; two and one export where the second is set."""
    config = LlamaConfig.load(tiny.model.path)
    settings = changed(tiny, dpo={"held_out": 0.1, "epochs": 5})
    pairs = [Example(str(i), [i] * 40, ([2] * 20, [3] * 20)) for i in range(16)]
    work = training_work(config, settings, settings.dpo, pairs, 100, 1, export_epoch=2)
    assert (work.epochs, work.exports) == (2, 1)
    assert work.computed_tokens == (40 + 19 + 19) * (2 * 90 + 2 * 10 + 100)
    assert training_work(config, settings, settings.dpo, pairs, 100, 1).exports == 5
    settings = replace(settings, iteration=[Iteration(), Iteration(epoch=2)])
    run = planned(changed(settings, plan={"actor_yield": 1.0}))
    assert [(work.epochs, work.exports) for work in run.trainings.values()] == [(3, 1), (5, 5), (2, 1)]


def test_memory_and_disk_by_hand(llama, monkeypatch):
    """A block of the cache takes 2 MiB; each checkpoint 2 bytes a parameter, a state 12."""
    parts = generation_memory(LLAMA, llama)
    assert parts["weights"] == 2 * 8_030_261_248
    assert parts["KV cache"] == (16384 + 1) * 2 * 2**20
    monkeypatch.setattr(requests, "SAMPLED_REQUESTS", 16)
    run = planned(changed(llama, engine={"shard_requests": 16}), LLAMA, 8)
    space = disk(run)
    assert space["checkpoints"] == 5 * 2 * 8_030_261_248, "M0 to M4"
    # Two states; in iterations 3 and 4 a state comes every 5.6 epochs, and exports stay until then: 7 of them.
    assert space["while training, besides"] == (24 + 14) * 8_030_261_248
    assert 1e9 < space["records"] < 20e9


# What will not fit.

SEEDS = {"seeds": "none.jsonl", "count": 100}
EFT = {"sources": ["none.jsonl"]}
CASES: list[tuple[dict, Callable, str, str]] = [
    ({"respond": {"max_new_tokens": 2000}}, checks.context, "will not fit", "respond.max_new_tokens"),
    ({"judge": {"max_new_tokens": 960}}, checks.context, "warning", "respond.max_new_tokens"),
    ({"engine": {"num_kv_blocks": 4}}, checks.context, "will not fit", "engine.num_kv_blocks"),
    ({"respond": {"prompts": ""}, "prompts": SEEDS}, checks.context, "will not fit", "prompts.shots"),
    ({"engine": {"num_kv_blocks": 24}}, checks.cache, "warning", "engine.num_kv_blocks"),
    ({"engine": {"num_kv_blocks": 4}}, checks.cache, "warning", "raise engine.num_kv_blocks"),
    ({"respond": {"prompts": ""}, "prompts": SEEDS | {"shots": 40}}, checks.cache, "warning", "prompts.shots"),
    ({"eft": EFT, "plan": {"reply_tokens": 2000, "groups": 20}}, checks.cache, "warning", "eft.sources"),
    ({"eft": EFT | {"held_out": 1.0}, "plan": {"groups": 20}}, checks.empty, "will not fit", "eft.held_out"),
    ({"evaluation": {"judge_cases": "{run}/other.jsonl"}}, checks.empty, "warning", "evaluation.judge_cases"),
    ({"judge": {"N": 1}}, checks.empty, "warning", "judge.N"),
    (
        {"trainer": {"tokens_per_microbatch": 200}},
        checks.tokens_per_microbatch,
        "warning",
        "trainer.tokens_per_microbatch",
    ),
    (
        {"trainer": {"tokens_per_microbatch": 20}},
        checks.tokens_per_microbatch,
        "will not fit",
        "trainer.tokens_per_microbatch",
    ),
    ({"dpo": {"batch_size": 1}}, checks.batches, "warning", "dpo.batch_size"),
    ({"dpo": {"batch_size": 3}}, checks.batches, "warning", "dpo.batch_size"),
    ({"engine": {"shard_requests": 512}}, checks.shards, "warning", "engine.shard_requests"),
    ({"respond": {"prompts_per_iteration": 300}}, checks.pool, "will not fit", "prompts_per_iteration"),
    ({"model": {"prepare": "", "path": "none", "architecture": "TINY"}}, checks.paths, "warning", "model.path"),
    ({"respond": {"prompts": "none.jsonl"}}, checks.paths, "warning", "respond.prompts"),
    ({"sft": {"prompts": ["none.jsonl"]}}, checks.paths, "warning", "sft.prompts"),
    ({"sft": {"answers": ["none.jsonl"]}}, checks.paths, "warning", "sft.answers"),
    ({"sft": {"sft_delta": "none.safetensors"}}, checks.paths, "warning", "sft.sft_delta"),
    ({"evaluation": {"judge_cases": "none.jsonl"}}, checks.paths, "warning", "evaluation.judge_cases"),
]


@pytest.mark.parametrize(("changes", "check", "status", "setting"), CASES, ids=lambda value: str(value)[:40])
def test_each_check_can_fail(tiny, monkeypatch, changes, check, status, setting):
    monkeypatch.setattr(requests, "SAMPLED_REQUESTS", 24)
    changes = {
        name: {k: tiny.model.path if v == "TINY" else v for k, v in keys.items()} for name, keys in changes.items()
    }
    ranks = 5 if check is checks.shards else 2  # two ranks have no idle one: the number of shards is even
    fits, fails = list(check(planned(tiny, ranks=1))), list(check(planned(changed(tiny, **changes), ranks=ranks)))
    assert {result.status for result in fits} <= {"ok"}
    assert any(result.status == status and setting in result.what + result.change for result in fails), fails


def test_sequences_that_give_way_are_counted_in_times(tiny):
    results = list(checks.cache(planned(changed(tiny, engine={"num_kv_blocks": 24}))))
    assert any("24 blocks are too few: a sequence gives way " in check.what for check in results)
    assert not any("% of the sequences" in check.what for check in results)


def test_only_files_that_the_run_reads_are_wanted(tiny):
    """Without iterations there is no pool."""
    settings = changed(tiny, respond={"prompts": ""}, prompts=SEEDS | {"model": "none", "evaluation": ["none"]})
    assert {check.what.partition(":")[0] for check in checks.paths(planned(settings)) if check.change} == {
        *("prompts.seeds", "prompts.model", "prompts.evaluation")
    }
    assert {check.status for check in checks.paths(planned(replace(settings, iteration=[])))} == {"ok"}


def test_models_besides_the_seed_are_said_to_be_counted_as_the_seed(tiny):
    settings = changed(tiny, respond={"prompts": ""}, prompts=SEEDS | {"model": "a"}, metajudge={"model": "b"})
    results = list(checks.other_models(planned(settings)))
    assert [check.status for check in results] == ["warning"] * 2
    assert [check.what.split(" is not")[0] for check in results] == ["prompts.model: a", "metajudge.model: b"]
    actors = replace(settings, iteration=[Iteration(judge_pairs=False)])
    assert list(planned(actors).other_models) == ["pool"]


def test_a_model_besides_the_seed_is_counted_with_its_own_shape(tiny, tmp_path):
    """One of twice the layers and an eighth of the context."""
    make_tiny(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    document |= {"num_hidden_layers": 2 * document["num_hidden_layers"], "max_position_embeddings": 128}
    (tmp_path / "config.json").write_text(json.dumps(document))
    own, other = planned(tiny), planned(changed(tiny, metajudge={"model": str(tmp_path)}))
    changed_stages = [a.name for a, b in zip(own.stages, other.stages, strict=True) if a.seconds != b.seconds]
    assert changed_stages == ["iter1/comparisons"]
    memories = {use: parts["KV cache"] for use, parts, _ in memory_uses(other) if "generation" in use}
    assert memories["generation by metajudge.model"] == 2 * memories["generation"]
    assert [check.status for check in checks.other_models(other)] == ["ok"]
    assert [c.status for c in checks.context(other) if c.what.startswith("metajudge")] == ["will not fit"]


def test_longest_examples_by_hand(tiny):
    """A pair's last tokens are not read; without shared prefixes its prompt is read twice."""
    run, settings = planned(tiny), tiny
    prompts = {kind: checks.longest(run)[kind][0] for kind in ("respond", "judge", "metajudge")}
    respond, judge, meta = (getattr(settings, name).max_new_tokens for name in ("respond", "judge", "metajudge"))
    shared = {
        "pair of responses": prompts["respond"] + 2 * (respond - 1),
        "pair of judgments": prompts["judge"] + 2 * (judge - 1),
        "judgment of SFT": prompts["judge"] + judge - 1,
        "comparison of SFT": prompts["metajudge"] + meta - 1,
    }
    assert checks.longest_examples(run) == pytest.approx(shared, abs=8), "texts are about as long as is asked for"
    apart = checks.longest_examples(planned(changed(settings, trainer={"share_prefixes": False})))
    assert apart["pair of judgments"] == pytest.approx(2 * (prompts["judge"] + judge - 1), abs=16)
    actors = planned(changed(replace(settings, iteration=[Iteration(judge_pairs=False)]), sft={"enabled": False}))
    assert list(checks.longest_examples(actors)) == ["pair of responses"]


def test_checks_of_the_machine_can_fail():
    for check in (lambda need: memory(need, 80e9, "x", "lower y"), lambda need: free_disk(need, 80e9, Path("."))):
        assert check(79e9).status == "ok"
        assert check(81e9).status == "will not fit" and check(81e9).change


def test_new_prompts_against_iterations(llama, monkeypatch):
    monkeypatch.setattr(requests, "SAMPLED_REQUESTS", 16)
    settings = changed(llama, engine={"shard_requests": 16}, prompts={"max_attempts": 1000})
    [check] = checks.pool(planned(settings, LLAMA, 8))
    assert check.status == "will not fit" and "prompts.max_attempts" in check.change


# The command.


def run_command(monkeypatch, capsys, *words: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["tools/plan.py", *words])
    monkeypatch.chdir(ROOT)
    try:
        command_line.main()
    except SystemExit as stop:
        return int(stop.code or 0), capsys.readouterr().out
    return 0, capsys.readouterr().out


def test_json_and_exit_codes(monkeypatch, capsys):
    """0: all fits. 1: a GPU of 1 GB has no room for CUDA itself, and the document says which settings take room."""
    base = ROOT / "configs" / "tiny.toml"
    code, out = run_command(monkeypatch, capsys, "--config", str(base), "--gpus", "2", "--json")
    document = json.loads(out)
    assert code == 0 and {"ok"} <= {check["status"] for check in document["checks"]} <= {"ok", "warning"}
    assert document["rank_hours"] == pytest.approx(2 * document["seconds"] / 3600)
    assert document["assumptions"]["response_tokens"] == 21 and document["ranks"] == 2 and document["gpu"] == "h100"
    monkeypatch.setitem(CARDS, "a100", replace(CARDS["a100"], memory=1e9))
    code, out = run_command(monkeypatch, capsys, "--config", str(base), "--gpus", "2", "--gpu", "a100", "--json")
    wrong = [check["change"] for check in json.loads(out)["checks"] if check["status"] == "will not fit"]
    assert code == 1 and ["engine.num_kv_blocks" in wrong[0], "trainer.tokens_per_microbatch" in wrong[1]] == [
        True,
        True,
    ]


def test_mistakes_are_named(monkeypatch, capsys):
    llama = str(ROOT / "configs" / "llama3-8b-instruct.toml")
    with pytest.raises(UserError, match="--gpu v100: unknown; choose cpu, a100"):
        run_command(monkeypatch, capsys, "--config", llama, "--gpus", "8", "--gpu", "v100")
    with pytest.raises(UserError, match=r"8\.0 billion parameters are too many for a CPU; .* GPUS=8 GPU=h100"):
        run_command(monkeypatch, capsys, "--config", llama)
    with pytest.raises(UserError, match="--gpus 0"):
        run_command(monkeypatch, capsys, "--config", llama, "--gpus", "0", "--gpu", "h100")
    with pytest.raises(UserError, match="--gpus 4: a CPU has none; name a GPU"):
        run_command(monkeypatch, capsys, "--config", llama, "--gpus", "4", "--gpu", "cpu")


def test_the_table_says_what_the_document_says(tiny):
    run = planned(tiny, ranks=2)
    document = command_line.report(run, "h100", Path("."))
    table = command_line.table(document)
    for stage in run.stages:
        assert stage.name in table
    assert "2 x h100" in table and "response_tokens 21" in table and "iter1 4 actor, 6 judge" in table
    words = " ".join(table.split())
    for check in document["checks"]:
        assert " ".join(f"{check['what']}: {check['change']}".split()).rstrip(": ") in words


def test_this_cpu_has_a_roofline(tiny):
    """Its peaks are those of a large product and a large copy."""
    card = this_cpu(tiny)
    assert 1e9 < card.flops < 1e14 and 1e8 < card.bandwidth < 1e13
    machine = Roofline(LLAMA, Assumptions(), card, 1, False)
    assert machine.generation_seconds([StepWork(100, 10, 500, 1000)]) > 0
    assert machine.update_seconds([1e9]) > machine.forward_seconds([1e9]) > 0
