"""Against transformers, on the default model's real weights: `make test-peers`."""

from pathlib import Path

import pytest
import torch

from kernels.attention import VarlenAttention
from model.chat import load_chat
from model.llama import logits_head
from model.prepare import prepare
from model.weights import load_model, save_pretrained
from sampling.engine import Engine
from sampling.request import Request, Sampling
from settings import Model

pytestmark = pytest.mark.peers

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
def folder() -> Path:
    return prepare(Model(path="models/smollm2-135m-instruct", prepare="smollm2-135m"))


@pytest.fixture(scope="module")
def reference(folder):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_chat_prompts_equal_the_template(folder):
    transformers = pytest.importorskip("transformers")
    tokenizer, chat = transformers.AutoTokenizer.from_pretrained(folder), load_chat(folder)
    for prompt in PROMPTS:
        if "<|im_end|>" in prompt:  # there transformers makes the control token, on purpose we do not
            continue
        for messages in (
            [{"role": "user", "content": prompt}],
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}],
        ):
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            assert chat.prompt_ids(messages) == tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.inference_mode()
def test_greedy_tokens(folder, reference):
    """64 greedy tokens of 8 prompts in fp32, ours batched in the engine, theirs one prompt at a time."""
    chat, model = load_chat(folder), load_model(folder, torch.float32)
    requests = [
        Request(p, chat.prompt_ids([{"role": "user", "content": p}]), Sampling(0.0, 1.0, 64, chat.stop_ids), 0)
        for p in PROMPTS
    ]
    engine = Engine(model, blocks=256, block_size=16, token_budget=128, max_sequences=5)
    found = {c.id: c.ids for c in engine.run(requests)}
    for request in requests:
        ids = torch.tensor([request.ids])
        wanted = reference.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False, pad_token_id=2
        )
        assert found[request.id] == wanted[0, ids.shape[1] :].tolist(), request.id


@torch.inference_mode()
def test_an_exported_checkpoint_has_equal_logits_in_transformers(folder, reference, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = load_model(folder, torch.float32)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # not the weights that were loaded
        parameter += 0.02 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    save_pretrained(model.named_parameters(), model.config, folder, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.randint(0, model.config.vocab_size, (90,), generator=generator)
    ours = model(ids, torch.arange(90), VarlenAttention(torch.tensor([0, 90], dtype=torch.int32)), logits_head)
    wanted = theirs(ids[None]).logits[0]
    assert (ours - wanted).abs().max() <= 1e-4 * wanted.std()
    assert (ours - reference(ids[None]).logits[0]).abs().max() > 1e-2 * wanted.std()
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).chat_template
