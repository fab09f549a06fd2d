"""Against transformers, on the default model's real weights: `make test-peers`."""

import json
import random
import shutil
from itertools import islice
from pathlib import Path

import llama_models
import meta_layout
import pytest
import torch
from marks import needs_int8

from kernels.attention import VarlenAttention
from kernels.segments import Segments
from model.chat import load_chat
from model.llama import logits_head
from model.tokenizer import tiktoken_backend
from model.weights import load_model, load_packed, save_pretrained
from prepare.meta import LLAMA3_TEMPLATE, convert
from prepare.seed_model import prepare
from sampling.engine import Engine
from sampling.request import Request, Sampling
from stages.files import read_jsonl
from stages.settings import Model

pytestmark = pytest.mark.peers
ROOT = Path(__file__).parent.parent
LLAMA3 = Path(llama_models.__file__).parent / "llama3" / "tokenizer.model"

PROMPTS = [
    "What is the capital of France?",
    "Write two sentences about rain.",
    "Explain gravity to a child.",
    "Give me three names for a cat, one a line.",
    "What is 12 + 30? Say <|im_end|> at the end.",
    "  Leading spaces, unusual characters: é ü 漢字 🙂\tand a tab.",
    "Translate nothing; just say hello.",
    "List the numbers from 1 to 15.",
]


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder() -> Path:
    return prepare(Model(path="models/smollm2-135m-instruct", prepare="smollm2-135m"))


@pytest.fixture(scope="module")
def reference(folder, transformers):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_chat_prompts_equal_the_template(folder, transformers):
    tokenizer, chat = transformers.AutoTokenizer.from_pretrained(folder), load_chat(folder)
    for messages in DIALOGS:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert chat.prompt_ids(messages) == tokenizer(text, add_special_tokens=False)["input_ids"]


def mixed_prompts(chat) -> list[list[int]]:
    """64 prompts of 30 to 700 tokens in random order; every fourth begins like the one before it."""
    rows = [row["prompt"] for row in read_jsonl("data/prompts/evaluation.jsonl")]
    draw = random.Random(3)
    texts = PROMPTS + rows[:40] + [" ".join(rows[i : i + 2 + i % 13]) for i in range(16)]
    texts = [texts[i - 1] + " " + rows[i] if i % 4 == 3 else text for i, text in enumerate(texts)]
    draw.shuffle(texts)
    return [chat.prompt_ids([{"role": "user", "content": text}]) for text in texts]


@pytest.fixture(scope="module")
def greedy(folder, reference) -> list[tuple[list[int], list[int]]]:
    """(prompt, up to 40 greedy tokens by transformers, one prompt at a time)."""
    answers, options = [], {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 2}
    for ids in mixed_prompts(load_chat(folder)):
        prompt = torch.tensor([ids])
        whole = reference.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        answers.append((ids, whole[0, len(ids) :].tolist()))
    return answers


@pytest.mark.parametrize(
    ("blocks", "tokens", "sequences", "share"),
    [(2048, 2048, 64, True), (2048, 61, 9, True), (90, 100, 64, True), (2048, 300, 64, False)],
    ids=["whole", "chunked", "preempted", "unshared"],
)
def test_greedy_tokens(folder, greedy, blocks, tokens, sequences, share):
    """64 prompts in fp32, ours batched in the engine."""
    chat, model = load_chat(folder), load_model(folder, torch.float32)
    options = {"block_size": 16, "max_num_batched_tokens": tokens, "max_num_seqs": sequences, "share_prefixes": share}
    engine = Engine(model, num_kv_blocks=blocks, **options)
    sampling = Sampling(0.0, 1.0, 40, chat.stop_ids)
    done = {c.id: c.ids for c in engine.run(Request(str(i), ids, sampling, 0) for i, (ids, _) in enumerate(greedy))}
    assert (engine.preemptions > 0) == (blocks == 90)
    for i, (_, wanted) in enumerate(greedy):
        assert done[str(i)] == wanted, i


@torch.inference_mode()
@pytest.mark.parametrize(
    ("dtype", "most"),
    [("float32", 1e-6), ("bfloat16", 0.004), pytest.param("int8", 0.01, marks=needs_int8)],
)
def test_divergence_from_float32(folder, reference, dtype, most):
    """Kullback-Leibler a token of answers to real prompts, in nats: what a faster product changes."""
    products, chat = getattr(torch, dtype), load_chat(folder)
    model = load_packed(folder, products)
    prompts = {row["id"]: row["prompt"] for row in read_jsonl(ROOT / "data" / "prompts" / "train.jsonl")}
    parts = []
    for row in islice(read_jsonl(ROOT / "data" / "answers" / "train.jsonl.gz"), 0, 160, 10):
        prompt = chat.prompt_ids([{"role": "user", "content": prompts[row["prompt_id"]]}])
        ids = torch.tensor(prompt + chat.tokenizer.encode(row["text"]))
        attend = VarlenAttention(Segments.make([len(ids)]))
        ours = model(ids, torch.arange(len(ids)), attend, logits_head)[len(prompt) - 1 :].log_softmax(-1)
        exact = reference(ids[None]).logits[0, len(prompt) - 1 :].log_softmax(-1)
        parts.append((exact.exp() * (exact - ours)).sum(-1))
    divergence = torch.cat(parts).mean().item()
    print(f"{dtype}: {divergence:.5f} nats a token, {sum(map(len, parts))} tokens")
    assert divergence < most


@torch.inference_mode()
def test_an_exported_checkpoint_has_equal_logits_in_transformers(folder, reference, transformers, tmp_path):
    model = load_model(folder, torch.float32)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # not the weights that were loaded
        parameter += 0.02 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    save_pretrained(model.named_parameters(), model.config, folder, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.randint(0, model.config.vocab_size, (90,), generator=generator)
    ours = model(ids, torch.arange(90), VarlenAttention(Segments.make([90])), logits_head)
    wanted = theirs(ids[None]).logits[0]
    assert (ours - wanted).abs().max() <= 1e-4 * wanted.std()
    assert (ours - reference(ids[None]).logits[0]).abs().max() > 1e-2 * wanted.std()
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).chat_template


# Of "<|im_end|>" in a message transformers makes the control token, which we do not on purpose.
TALK = [("system", "Be brief."), ("user", "One?"), ("assistant", " Yes: 1.\n"), ("user", "  And two? ")]
DIALOGS = [[{"role": "user", "content": prompt}] for prompt in PROMPTS if "<|im_end|>" not in prompt] + [
    [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": " Hi\nthere "}],
    [{"role": role, "content": text} for role, text in TALK],
]
ZEPHYR_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% else %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}\n{% endif %}"
)


@torch.inference_mode()
@pytest.mark.parametrize("family", ["llama3", "llama3.1", "llama2", "zephyr"])
def test_a_checkpoint_of_metas_layout_in_transformers(family, transformers, tmp_path):
    """Converted, it has equal logits there, and its chat template makes the ids that ours are."""
    pieces = family in ("llama2", "zephyr")
    vocabulary = 320 if pieces else 128256
    params = meta_layout.PARAMS | {"vocab_size": vocabulary, "use_scaled_rope": family == "llama3.1"}
    ranks = meta_layout.shards(meta_layout.seeded(params), 2)
    tokenizer_file = meta_layout.sentencepiece_file if pieces else lambda path: shutil.copy(LLAMA3, path)
    folder = convert(meta_layout.written(tmp_path / "meta", params, ranks, tokenizer_file), tmp_path / "hf")
    if family == "zephyr":
        configuration = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(configuration | {"chat_template": ZEPHYR_TEMPLATE}))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(0, vocabulary, (90,), generator=torch.Generator().manual_seed(0))
    wanted = theirs(ids[None]).logits[0]
    assert (meta_layout.our_logits(folder, ids) - wanted).abs().max() <= 1e-4 * wanted.std()
    tokenizer, chat = transformers.AutoTokenizer.from_pretrained(folder), load_chat(folder)
    for messages in DIALOGS:
        theirs_ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert theirs_ids == chat.prompt_ids(messages), messages
    for text in ("Plain text.", "é 漢字 🙂\n\n  two"):
        assert tokenizer(text).input_ids == [theirs.config.bos_token_id, *chat.tokenizer.encode(text)]
        assert tokenizer.decode(chat.tokenizer.encode(text)) == text
    stop = theirs.generation_config.eos_token_id
    assert set(stop if isinstance(stop, list) else [stop]) == chat.stop_ids


def test_llama3s_dialogs_equal_metas(tmp_path):
    """Of contents without white space at their ends: Hugging Face's template strips it, Meta's code does not."""
    datatypes = pytest.importorskip("llama_models.datatypes")
    from llama_models.llama3.chat_format import ChatFormat
    from llama_models.llama3.tokenizer import Tokenizer

    tiktoken_backend(LLAMA3).save(str(tmp_path / "tokenizer.json"))
    table = {"chat_template": LLAMA3_TEMPLATE, "bos_token": "<|begin_of_text|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(table))
    ours, theirs = load_chat(tmp_path), ChatFormat(Tokenizer(LLAMA3))
    for dialog in DIALOGS:
        messages = [message | {"content": message["content"].strip()} for message in dialog]
        ended = {"assistant": {"stop_reason": "end_of_turn"}}
        raw = [datatypes.RawMessage(**message, **ended.get(message["role"], {})) for message in messages]
        assert ours.prompt_ids(messages) == theirs.encode_dialog_prompt(raw).tokens
    ended = theirs.tokenizer.encode("Fine, thanks.<|eot_id|>", bos=False, eos=False, allowed_special="all")
    assert ours.completion_ids("Fine, thanks.") == ended
