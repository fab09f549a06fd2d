"""LLM: texts and conversations in, the engine's completions out."""

import pytest
from workload import greedy_by_full_forwards

from prepare.seed_model import make_tiny
from sampling.llm import LLM, SamplingParams
from stages.command import UserError

CHAT = [{"role": "user", "content": "Name a fruit."}]
GREEDY = SamplingParams(temperature=0.0, max_tokens=8)


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> LLM:
    folder = tmp_path_factory.mktemp("llm") / "tiny"
    make_tiny(folder)
    return LLM(folder, dtype="float32", device="cpu", num_kv_blocks=64)


def greedy(llm: LLM, ids: list[int]) -> list[int]:
    return greedy_by_full_forwards(llm.engine.model, ids, 8)


def test_texts_are_continued_and_conversations_answered(llm, monkeypatch):
    prompts = ["The sea is", "Once upon a time"]
    for prompt, output in zip(prompts, llm.generate(prompts, GREEDY), strict=True):
        assert output.token_ids == greedy(llm, llm.tokenizer.encode(prompt))
        assert output.text == llm.tokenizer.decode(output.token_ids) and output.finish_reason == "length"
    too_long = llm.generate(["word " * 2000], GREEDY)[0]
    assert (too_long.text, too_long.finish_reason) == ("", "too_long")
    expected = greedy(llm, llm.chat_format.prompt_ids(CHAT))
    assert [output.token_ids for output in llm.chat(CHAT, GREEDY)] == [expected]
    assert [output.token_ids for output in llm.chat([CHAT, CHAT], GREEDY)] == [expected] * 2
    control = llm.tokenizer.control
    monkeypatch.setattr(llm.tokenizer, "control", lambda name: 7 if name == "<s>" else control(name))
    expected = greedy(llm, [7, *llm.tokenizer.encode("The sea")])  # a BOS begins a text where there is one
    assert llm.generate(["The sea"], GREEDY)[0].token_ids == expected


def test_a_text_is_encoded_alike_before_and_after_a_conversation(tmp_path):
    """The chat format's tokens, which are no special ones in the file, are text from the start."""
    make_tiny(tmp_path / "tiny")
    path = tmp_path / "tiny" / "tokenizer.json"
    path.write_text(path.read_text().replace('"special": true', '"special": false'))
    assert '"special": false' in path.read_text()
    llm = LLM(tmp_path / "tiny", dtype="float32", device="cpu", num_kv_blocks=64)
    text = f"x{llm.tokenizer.decode([1])}<|im_end|>y"
    before = llm.tokenizer.encode(text)
    llm.chat(CHAT, GREEDY)
    assert llm.tokenizer.encode(text) == before and llm.chat_format.end not in before


def test_seeds_make_samples_reproducible(llm):
    params = SamplingParams(temperature=1.0, top_p=0.9, max_tokens=12, seed=5)
    first, second = llm.generate(["The sea", "The sea"], params)
    assert first != second and [first, second] == llm.generate(["The sea", "The sea"], params)
    own = [SamplingParams(1.0, 0.9, 12, seed=6), SamplingParams(1.0, 0.9, 12, seed=5)]
    assert llm.generate(["The sea", "The sea"], own) == [second, first]


def test_errors_say_what_to_do(llm, tmp_path):
    for fault, complaint in [
        (lambda: SamplingParams(top_p=1.5), "top_p from 0 to 1"),
        (lambda: llm.generate("text", GREEDY), "pass a list"),
        (lambda: llm.generate(["text", ""], GREEDY), "prompt 1 is empty"),
        (lambda: llm.generate(["text"], [GREEDY] * 2), "1 prompts but 2 params"),
        (lambda: LLM(tmp_path / "none"), "none"),
    ]:
        with pytest.raises(UserError, match=complaint):
            fault()
