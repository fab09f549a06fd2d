"""Tokenizers: ids are those of tiktoken with Meta's own Llama-3 vocabulary, and of sentencepiece; text stays text."""
# ruff: noqa: RUF001

import base64
import random
import re
from pathlib import Path

import llama_models.llama3.tokenizer as metas
import pytest
import tokenizers
from meta_layout import sentencepiece_file

from model.tokenizer import JsonTokenizer, SentencePieceTokenizer, load_tokenizer, tiktoken_backend
from stages.command import UserError
from stages.files import read_jsonl

ROOT = Path(__file__).parents[2]
LLAMA3 = Path(metas.__file__).parent / "tokenizer.model"
THEIRS = metas.Tokenizer(LLAMA3)
SCRIPTS = """don't we'LL I'M they'Ve it'ſ 'S 'k
Ünïcödé naïve ﬁne ǅ İstanbul ß ſtraße|Привет, как дела? Это проверка.
漢字と仮名まじりの文、テスト。|안녕하세요 세계|السلام عليكم ورحمة الله|שלום עולם|नमस्ते दुनिया क्षत्रिय
สวัสดีชาวโลก|γειά σου Κόσμε
👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 ❤️‍🔥 ✌🏽|𝔘𝔫𝔦 𐍈 𓀀 𝟙𝟚|1234567890 3.14159 1,000,000 ٣٤٥ ५६ ⅷ ²³ ½"""
PROMPTS = [row["prompt"] for row in read_jsonl(ROOT / "data" / "prompts" / "evaluation.jsonl")]
WORDS = [*re.split(r"[|\n]", SCRIPTS), "", "e\u0301 a\u0308\u0323 \u200b\u200d\ufeff\u00ad"]
WORDS += ["a\r\nb\rc\n \n  \n\t\td", " " * 77, "\n" * 40, "\t \t" * 30, "!?" * 60, "0" * 50, "é" * 64, "字" * 33]
WORDS += ["x" * 300, "ab" * 150, "=-" * 90, "a\0b"]
LOOKALIKES = ["<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>user<|end_header_id|>\n\nHi", "<|reserved_"]
LOOKALIKES += ["<|python_tag|>x<|eom_id|>", "a<|end_of_text|>b", "<|eot_id|", "</s><s>", "<|reserved_special_token_5|>"]


def texts() -> list[str]:
    """Prompts, code, scripts, runs, names of control tokens, and characters drawn from all of Unicode."""
    draw = random.Random(0)
    code = [path.read_text() for path in sorted((ROOT / "model").glob("*.py"))]
    samples = [*WORDS, *LOOKALIKES, *PROMPTS, *code]
    ranges = [(0x20, 0x7F), (0x1, 0x250), (0x250, 0xD800), (0xE000, 0x20000), (0x1F300, 0x1FAFF), (0x9, 0xE)]
    alphabets = ["ab", "a- ", "aA1 \n", "é's LlTſ", "=-_", "0123456789 ", "\n\r\t ", "'sdmtrevl ", "ha", "🙂é字"]
    for _ in range(600):
        samples.append("".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(draw.randint(1, 50))))
        samples.append("".join(draw.choices(draw.choice(alphabets), k=draw.randint(1, 80))))
        samples.append(" ".join(draw.choices([*WORDS, *LOOKALIKES], k=3)))
    return samples


@pytest.fixture(scope="module")
def llama3(tmp_path_factory) -> JsonTokenizer:
    """By way of the tokenizer.json that transformers loads."""
    folder = tmp_path_factory.mktemp("llama3")
    tiktoken_backend(LLAMA3).save(str(folder / "tokenizer.json"))
    loaded = load_tokenizer(folder)
    assert isinstance(loaded, JsonTokenizer)
    return loaded


def test_ids_equal_tiktokens(llama3):
    for text in texts():
        ids = THEIRS.encode(text, bos=False, eos=False)
        assert llama3.encode(text) == ids, text
        assert llama3.decode(ids) == text


def test_llama3s_control_tokens(llama3):
    assert llama3.vocab_size == THEIRS.n_words == 128256
    for token, i in THEIRS.special_tokens.items():
        assert llama3.control(token) == i and max(llama3.encode(token)) < 128000
    assert llama3.control("<|im_end|>") is None
    ids = llama3.encode("Hi")
    assert llama3.decode([128000, *ids, 128009]) == "Hi"
    assert llama3.backend.encode("Hi").ids == [128000, *ids]  # as transformers does on its own


def test_offsets(llama3):
    text = "Score: 5, naïve 漢字!"
    spans = llama3.offsets(text)
    assert len(spans) == len(llama3.encode(text))
    assert [text[start:end] for start, end in spans][:3] == ["Score", ":", " "]


def test_a_word_of_the_vocabulary_is_one_token_though_no_merges_lead_to_it(tmp_path):
    """tiktoken looks a word up before it merges: of a b c ab bc abcd no two neighbours make abcd."""
    tokens = [bytes([byte]) for byte in range(256)] + [b"ab", b"bc", b"abcd"]
    path = tmp_path / "tokenizer.model"
    path.write_text("".join(f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(tokens)))
    ours, theirs = load_tokenizer(tmp_path), metas.Tokenizer(path)
    assert ours.encode("abcd") == [258]
    for text in ("abcd", "abcde", "xabcd", " abcd", "abc", "bcab", "<|eot_id|>"):
        assert ours.encode(text) == theirs.encode(text, bos=False, eos=False), text
    assert ours.vocab_size == theirs.n_words and ours.control("<|eot_id|>") == theirs.eot_id


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("{", r"tokenizer\.json: not a tokenizer"),
        ("IQ== 0\nIg== x\n", "line 2: expected 'base64 rank'"),
        ("IQ== 0\nIg== 2\n", "line 2: ranks must count from 0"),
        ("something else\n", r"tokenizer\.model: neither sentencepiece's nor Meta's"),
    ],
)
def test_damaged_files(tmp_path, lines, complaint):
    (tmp_path / ("tokenizer.json" if lines == "{" else "tokenizer.model")).write_text(lines)
    with pytest.raises(UserError, match=complaint):
        load_tokenizer(tmp_path)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> SentencePieceTokenizer:
    """Trained as Llama 2's was, on texts that lack most characters: those are spelled in bytes."""
    folder = tmp_path_factory.mktemp("pieces")
    sentencepiece_file(folder / "tokenizer.model", PROMPTS, 900, split_digits=True)
    loaded = load_tokenizer(folder)
    assert isinstance(loaded, SentencePieceTokenizer)
    return loaded


def test_sentencepieces_ids(pieces):
    """A piece of text is a piece of text: no id of a control token, whatever it says; what is encoded comes back."""
    for text in texts():
        ids = pieces.encode(text)
        assert not {0, 1, 2} & set(ids), text
        if "▁" not in text:  # sentencepiece's own sign for a space
            assert pieces.decode(ids) == text
    assert [pieces.control(token) for token in ("<s>", "</s>", "<0x0A>", "<|im_end|>")] == [1, 2, 13, None]
    assert pieces.decode([1, *pieces.encode(" two  spaces"), 2, 900, 901]) == " two  spaces"


def test_tokenizer_json_goes_before_tokenizer_model(tmp_path):
    (tmp_path / "tokenizer.model").write_text("IQ== 0\n")
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).vocab_size == 0
