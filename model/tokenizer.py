"""Text to token ids and back: `tokenizer.json`, sentencepiece's `tokenizer.model`, or Meta's in tiktoken's format.

Text is always encoded as plain text: the name of a control token inside it never becomes that token.
"""

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from model.config import FETCH, check_links, reading
from stages.command import UserError
from stages.files import read_text

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3's words, within which tokens are merged."""
LLAMA3_NAMED = (
    "begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 finetune_right_pad_id step_id "
    "start_header_id end_header_id eom_id eot_id python_tag image"
)
LLAMA3_SPECIAL = [f"<|{n}|>" for n in (*LLAMA3_NAMED.split(), *(f"reserved_special_token_{i}" for i in range(2, 246)))]
"""The 256 control tokens that follow the ranks, by the names of Llama 3.1 and later. The ids are also Llama 3's."""
SPACE, NORMAL, CONTROL, USER_DEFINED = "\u2581", 1, 3, 4  # sentencepiece's space, and types of its pieces
PIPES = re.compile(r"<\|[^<>\s]+\|>")
TAGS = re.compile(r"<[^<>\s]+>|\[/?\w*[A-Z]\w*\]")


class Control:
    """The control tokens of a vocabulary, and what finds them in a text that a template has written."""

    def __init__(self, ids: Mapping[str, int], flags: Mapping[str, tuple[bool, bool]]):
        """`flags`: of a name, whether the token takes white space before and after it."""
        self.ids, self.flags, self.characters = ids, flags, sorted({c for name in ids for c in name if not c.isspace()})
        found = "|".join(map(re.escape, sorted(ids, key=len, reverse=True)))
        after = "".join(rf"(?:(?<={re.escape(name)})\s+)?" for name in ids if flags.get(name, (False, False))[1])
        self.names = re.compile(f"({found or '(?!)'}){after}")

    def split(self, text: str) -> list[int | str]:
        """The text's control tokens as ids, and what stands between them."""
        parts = self.names.split(text)
        for i in range(1, len(parts), 2):
            if self.flags.get(parts[i], (False, False))[0]:
                parts[i - 1] = parts[i - 1].rstrip()
        return [self.ids[part] if i % 2 else part for i, part in enumerate(parts) if part]


def written_names(names: Iterable[str], text: str) -> set[str]:
    """Those names, of more than letters, digits and white space, that a text has, the longest ones first."""
    marked = [name for name in names if not all(c.isalnum() or c.isspace() for c in name)]
    return set(re.findall("|".join(map(re.escape, sorted(marked, key=len, reverse=True))) or "(?!)", text))


class JsonTokenizer:
    """From Hugging Face's tokenizer.json or Meta's ranks, by the library `tokenizers`."""

    def __init__(self, backend: tokenizers.Tokenizer):
        self.backend, self.vocab_size = backend, backend.get_vocab_size()
        if getattr(backend.model, "dropout", None):
            raise ValueError("its model has dropout, so that a text has many encodings; set it to null")
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The characters [start, end) of each of `encode(text)`."""
        return self.backend.encode(text, add_special_tokens=False).offsets

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; control tokens, and ids beyond the vocabulary, which pad the embedding, are left out."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def control(self, token: str) -> int | None:
        """The id, or None if the vocabulary lacks it."""
        return self.backend.token_to_id(token)

    def reserve(self, template: str, named: Sequence[str] = (), written: str = "") -> Control:
        """The control tokens: special ones, those in pipes, and those in a template's text, `named` for it or `written`
        by it. From now on no text is encoded to these, and they are decoded to none. `ValueError` if texts are all the
        same."""
        added = {token.content: token for token in self.backend.get_added_tokens_decoder().values()}
        used = {name for name in (*PIPES.findall(template), *named) if self.control(name) is not None}
        used |= {name for name in added if name in template and TAGS.fullmatch(name)} | written_names(added, written)
        names = used | {name for name, token in added.items() if token.special or PIPES.fullmatch(name)}
        self.backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in sorted(names)])
        if inside := names & self.backend.get_vocab(with_added_tokens=False).keys():  # BPE's merges may lead to it
            table = json.loads(self.backend.to_str())
            merges = table["model"].get("merges", [])
            if (kept := [merge for merge in merges if "".join(merge) not in inside]) != merges:
                table["model"]["merges"] = kept
                self.__init__(tokenizers.Tokenizer.from_str(json.dumps(table)))  # type: ignore[misc]
        for name in sorted(inside & used):
            if any(self.control(name) in self.encode(before + name) for before in ("", " ", "\n", "a")):
                raise ValueError(name)
        flags = {name: (token.lstrip, token.rstrip) for name, token in added.items()}
        return Control({name: i for name in names if (i := self.control(name)) is not None}, flags)


class SentencePieceTokenizer:
    """From sentencepiece's tokenizer.model: Llama 2, TinyLlama. Methods as above."""

    def __init__(self, backend: sentencepiece.SentencePieceProcessor):
        self.backend, self.vocab_size = backend, backend.get_piece_size()

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Each token of a character spelled in bytes gets the character, which the library gives to the last alone."""
        mapping = self.backend.encode(text, out_type="offset_mapping")
        ids, spans = mapping["ids"], mapping["offsets"]
        for i in reversed(range(len(ids) - 1)):
            if spans[i][0] == spans[i][1] and self.backend.is_byte(ids[i]):
                spans[i] = spans[i + 1]
        return spans

    def decode(self, ids: Sequence[int]) -> str:
        return self.backend.decode([i for i in ids if i < self.vocab_size and not self.backend.is_control(i)])

    def control(self, token: str) -> int | None:
        ids = {name: self.backend.piece_to_id(name) for name in (token, token.replace(" ", SPACE))}
        return next((i for name, i in ids.items() if self.backend.id_to_piece(i) == name), None)

    def reserve(self, template: str, named: Sequence[str] = (), written: str = "") -> Control:
        """As above, by the piece's type. A file is a protobuf: a piece has its text in field 1, its type in field 3."""
        file, place, pieces = self.backend.serialized_model_proto(), 0, list[tuple[bytes, bytes, int]]()
        while file[place : place + 1] == b"\n":
            size, begun = _varint(file, place + 1)
            length, text = _varint(file, begun + 1)
            kind = re.fullmatch(rb"(?:\x15.{4})?(?:\x18(.))?", file[text + length : begun + size], re.DOTALL)
            place = begun + size
            pieces.append((file[begun:place], file[text : text + length], ord(kind[1]) if kind and kind[1] else NORMAL))
        names = [text.decode(errors="replace").replace(SPACE, " ") for _, text, _ in pieces]
        kinds = {name: kind for name, (_, _, kind) in zip(names, pieces, strict=True) if kind in (NORMAL, USER_DEFINED)}
        used = {*TAGS.findall(template), *named, *filter(PIPES.fullmatch, names)}
        used |= written_names((name for name, kind in kinds.items() if kind == USER_DEFINED), written)
        if ordinary := used & kinds.keys():
            parts = zip(names, pieces, strict=True)
            changed = [_field(raw) + bytes((0x18, CONTROL)) if n in ordinary else body for n, (body, raw, _) in parts]
            self.backend.load_from_serialized_proto(b"".join(map(_field, changed)) + file[place:])
        own = filter(self.backend.is_control, range(self.vocab_size))
        return Control({self.backend.id_to_piece(i).replace(SPACE, " "): i for i in own}, {})


def _varint(file: bytes, place: int) -> tuple[int, int]:
    """A protobuf's number, and the place behind it."""
    number = shift = 0
    while file[place] & 128:
        number, shift, place = number | (file[place] & 127) << shift, shift + 7, place + 1
    return number | file[place] << shift, place + 1


def _field(content: bytes) -> bytes:
    """A protobuf's field 1 with its length."""
    size, length = len(content), b""
    while size > 127:
        size, length = size >> 7, length + bytes([size & 127 | 128])
    return b"\n" + length + bytes([size]) + content


Tokenizer = JsonTokenizer | SentencePieceTokenizer


def tokenizer_file(folder: Path | str) -> Path:
    """The file of a model's tokenizer: tokenizer.json, else tokenizer.model. Raises `UserError` if there is neither."""
    for path in (Path(folder) / "tokenizer.json", Path(folder) / "tokenizer.model"):
        if path.is_file():
            return path
    raise UserError(f"{folder}/tokenizer.json: no such file, nor tokenizer.model; name a Hugging Face directory")


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """The tokenizer of a model's directory. Raises `UserError` if its file is missing or damaged."""
    path = tokenizer_file(folder)
    check_links(path.parent)
    if path.suffix == ".json":
        with reading(path, "not a tokenizer"):
            return JsonTokenizer(tokenizers.Tokenizer.from_str(read_text(path, FETCH)))
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\s", path.read_bytes()):  # Meta's, not sentencepiece's protobuf
        return JsonTokenizer(tiktoken_backend(path))
    with reading(path, "neither sentencepiece's nor Meta's tokenizer"):
        return SentencePieceTokenizer(sentencepiece.SentencePieceProcessor(model_file=str(path)))


def tiktoken_backend(path: Path) -> tokenizers.Tokenizer:
    """Llama 3's tokenizer from a file in tiktoken's format; `save` writes a tokenizer.json that transformers loads.

    Byte-level BPE: a word in the vocabulary is one token; others are joined from neighbours, the lowest rank first.
    """
    ranks = _read_ranks(path)
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}  # GPT-2's characters for bytes
    others = iter(range(256, 512))
    characters = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    vocabulary = {"".join(characters[byte] for byte in token): rank for token, rank in ranks.items()}
    splits = [(name[:i], name[i:]) for name in vocabulary for i in range(1, len(name))]
    merges = [(left, right) for left, right in splits if left in vocabulary and right in vocabulary]
    merges.sort(key=lambda pair: (vocabulary[pair[0] + pair[1]], vocabulary[pair[0]], vocabulary[pair[1]]))
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    words = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, in_bytes])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in LLAMA3_SPECIAL])
    begin = LLAMA3_SPECIAL[0]
    templates = f"{begin} $A", f"{begin} $A {begin}:1 $B:1"  # of a single text and of a pair
    backend.post_processor = processors.TemplateProcessing(*templates, [(begin, len(ranks))])
    return backend


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Each token's rank, which is its id; all single bytes are among them."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise UserError(f"{path}, line {number}: expected 'base64 rank'; fetch the file again") from None
        if not len(ranks) == int(rank) + 1 == number:
            raise UserError(f"{path}, line {number}: ranks must count from 0, each token once; fetch the file again")
    if not {bytes([byte]) for byte in range(256)} <= ranks.keys():
        raise UserError(f"{path}: not all 256 single bytes are tokens; fetch the file again")
    return ranks
