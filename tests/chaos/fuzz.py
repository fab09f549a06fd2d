"""Fuzz of every reader: a sample with random changes is read, or refused by the readers' own error. Nothing else: no
other exception, no death of the process, no reading that takes more than `SECONDS`.
"""

import gzip
import json
import os
import random
import resource
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from readers import READERS

from evaluation.alpaca import read_csv
from evaluation.report.page import render
from judging.trace import find, read_lineage
from judging.verdict import Failure, parse_score, parse_winner
from model.chat import load_chat
from model.weights import load_model
from prepare.gguf import convert
from prepare.sft_delta import read_facts
from stages.command import UserError
from stages.files import read_jsonl, read_manifest, read_shards
from stages.settings import load_settings
from tests.chaos.place import CONFIG, RUN

SECONDS = 10
CHUNK = 250  # readings in a process of its own
SPLICES = [b"null", b"NaN", b"-1", b"1e999", b"{}", b"[]", b'"', b"\\ud83d", b"\xff", b"\0", b"\n"]
SPLICES += [b"9" * 5000, b"[" * 3000]
KNOWN: tuple[type[BaseException], ...] = (UserError,)


@dataclass(frozen=True)
class Reader:
    read: Callable[[Path], Any]  # of a folder in which the sample lies
    samples: tuple[str, ...]  # files in the folder, of which one is changed
    make: Callable[[Path], None]  # writes the whole folder


def readers(base: Path) -> dict[str, Reader]:
    """By name; the base is a finished run."""
    found = {f"rows: {name}": _rows(read, rows) for name, (read, rows) in READERS.items()}
    model = base / "models" / "tiny"

    def file(read: Callable[[Path], Any], source: Path, name: str = "") -> Reader:
        name = name or source.name
        return Reader(lambda folder: read(folder / name), (name,), lambda folder: _copy(source, folder / name))

    def of_folder(read: Callable[[Path], Any], source: Path, *names: str) -> Reader:
        return Reader(read, names, lambda folder: _copy(source, folder, names))

    iteration, summary = base / RUN / "iter1", base / RUN / "summary.json"
    shard = next((iteration / "judgments").glob("shards-*/*.jsonl"))
    found["config"] = file(load_settings, base / CONFIG)
    found["JSON lines"] = file(lambda path: list(read_jsonl(path)), shard, "rows.jsonl")
    found["compressed JSON lines"] = Reader(
        lambda folder: list(read_jsonl(folder / "rows.jsonl.gz")), ("rows.jsonl.gz",), _compressed(shard)
    )
    found["a JSON list"] = Reader(
        lambda folder: list(read_jsonl(folder / "rows.json")), ("rows.json",), _json_list(shard)
    )
    found["a manifest"] = of_folder(read_manifest, iteration / "judgments", "manifest.json")
    names = ("manifest.json", f"{shard.parent.name}/{shard.name}")
    found["shards"] = of_folder(lambda folder: list(read_shards(folder)), shard.parents[1], *names)
    found["a chat format"] = of_folder(load_chat, model, "tokenizer_config.json", "tokenizer.json", "config.json")
    found["a model"] = of_folder(
        lambda folder: load_model(folder, torch.float32), model, "config.json", "model.safetensors"
    )
    found["a GGUF file"] = Reader(_converted, ("model.gguf",), _gguf)
    found["facts of an SFT delta"] = Reader(
        lambda folder: read_facts(folder / "delta.safetensors"), ("delta.json",), _delta
    )
    found["a CSV file"] = Reader(
        lambda folder: read_csv(folder / "d.csv", (), "d.csv"), ("d.csv",),
        lambda folder: _write(folder / "d.csv", b"index,difficulty\n0,1.5\n1,-2\n"),
    )  # fmt: skip
    names = ("pairs/actor.jsonl", "pairs/elo.jsonl", "pairs/none.jsonl", "pairs/manifest.json", "prompts.jsonl")
    found["a trace"] = Reader(_trace, tuple(f"iter1/{name}" for name in names), lambda folder: _copy_run(base, folder))
    found["a report"] = Reader(
        lambda folder: render([folder]),
        ("summary.json", "iter1/train/metrics.jsonl", "iter1/bias.json"),
        lambda folder: (_copy_run(base, folder), _copy(summary, folder / "summary.json")),
    )
    return found | {f"verdicts: {kind}": _verdicts(read) for kind, read in (("scores", _score), ("winners", _winner))}


def _rows(read: Callable[[Path], Any], rows: list[dict]) -> Reader:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    name = "r.jsonl"
    return Reader(lambda folder: read(folder / name), (name,), lambda folder: _write(folder / name, content))


def _verdicts(read: Callable[[str], Any]) -> Reader:
    text = b"The answer is fine.\n\n**Score:** 4/5 points\nWinner: Response A\nIt deserves 3; A gives 2, B gives 5."
    make = lambda folder: _write(folder / "v.txt", text)  # noqa: E731
    return Reader(lambda folder: read((folder / "v.txt").read_text(errors="replace")), ("v.txt",), make)


def _score(text: str) -> None:
    score = parse_score(text, "stop", "last", True)
    assert isinstance(score, Failure) or 0 <= score <= 5, text


def _winner(text: str) -> None:
    assert isinstance(parse_winner(text, "stop", "last", "responses"), str), text


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _copy(source: Path, target: Path, names: tuple[str, ...] = ()) -> None:
    for name in names or ("",):
        _write(target / name if name else target, (source / name if name else source).read_bytes())


def _copy_run(base: Path, folder: Path) -> None:
    shutil.copytree(base / RUN / "iter1", folder / "iter1", dirs_exist_ok=True)


def _compressed(source: Path) -> Callable[[Path], None]:
    return lambda folder: _write(folder / "rows.jsonl.gz", gzip.compress(source.read_bytes()))


def _json_list(source: Path) -> Callable[[Path], None]:
    rows = json.dumps([json.loads(line) for line in source.read_text().splitlines()]).encode()
    return lambda folder: _write(folder / "rows.json", rows)


def _delta(folder: Path) -> None:
    _write(folder / "delta.safetensors", b"")
    _write(folder / "delta.json", json.dumps({"base": "a", "recipe": "b", "seed": 0, "explained": 0.5}).encode())


def _trace(folder: Path) -> None:
    _, row = find(folder, next(read_jsonl(folder / "iter1/prompts.jsonl", ("id",)))["id"], "prompts.jsonl")
    read_lineage(folder, 1, row["id"])


def _converted(folder: Path) -> None:
    shutil.rmtree(folder / "hf", ignore_errors=True)
    convert(folder / "model.gguf", folder / "hf")


def _gguf(folder: Path) -> None:
    """A Llama of one layer with a vocabulary of 259 tokens, as SmolLM's files have it."""
    import gguf
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    writer, size = gguf.GGUFWriter(folder / "model.gguf", "llama"), 16
    writer.add_embedding_length(size), writer.add_feed_forward_length(size), writer.add_block_count(1)
    writer.add_head_count(2), writer.add_head_count_kv(1), writer.add_context_length(64)
    writer.add_rope_freq_base(10000.0), writer.add_layer_norm_rms_eps(1e-5)
    tokens = [f"<{i}>" for i in range(3)] + [chr(0x100 + i) for i in range(256)]
    writer.add_tokenizer_model("gpt2"), writer.add_tokenizer_pre("smollm"), writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * 256), writer.add_token_merges(["\u0100 \u0101"])
    writer.add_bos_token_id(1), writer.add_eos_token_id(2), writer.add_chat_template("<|im_start|>")
    shapes = {"token_embd": (259, size), "output_norm": (size,), "blk.0.attn_norm": (size,), "blk.0.ffn_norm": (size,)}
    shapes |= {f"blk.0.attn_{name}": (size, size) for name in ("q", "output")}
    shapes |= {f"blk.0.attn_{name}": (size // 2, size) for name in "kv"}
    shapes |= {f"blk.0.ffn_{name}": (size, size) for name in ("gate", "up", "down")}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, dtype=np.float32))
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()


def changed(content: bytes, draw: random.Random) -> bytes:
    """The content with one to four random changes."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        a, b = sorted(draw.randrange(len(content) + 1) for _ in range(2))
        b = min(b, a + draw.choice((1, 1, 4, 64, 4096)))
        before, piece, after = content[:a], content[a:b], content[b:]
        new = draw.choice((bytes([draw.randrange(256)]), draw.choice(SPLICES), b"", piece * 2, piece[::-1], None))
        content = before if new is None else before + new + after
    return content


def fuzz(reader: Reader, folder: Path, count: int, seed: str) -> Iterator[str]:
    """What went wrong in `count` readings. Each chunk has a process of its own, so that a death has a number."""
    for start in range(0, count, CHUNK):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        reader.make(folder)
        log = folder / "faults"
        if not (process := os.fork()):
            _readings(reader, folder, range(start, min(start + CHUNK, count)), seed, log)
        _, status = os.waitpid(process, 0)
        lines = log.read_text().splitlines() if log.is_file() else ["nothing was read"]
        yield from (line for line in lines if not line.startswith("at "))
        if code := os.waitstatus_to_exitcode(status):
            at = next((line for line in reversed(lines) if line.startswith("at ")), "")
            yield f"{'hang of' if code == -signal.SIGPROF else 'death with code'} {code} {at}"


def _readings(reader: Reader, folder: Path, numbers: range, seed: str, log: Path) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (len(numbers) + 60, len(numbers) + 90))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1), os.dup2(null, 2)
    whole = {name: (folder / name).read_bytes() for name in reader.samples}
    with log.open("w", buffering=1) as file:
        for number in numbers:
            draw = random.Random(f"{seed}/{number}")
            name = draw.choice(reader.samples)
            (folder / name).write_bytes(changed(whole[name], draw))
            file.write(f"at {number} {name}\n")
            signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of the processor's time: the machine may be busy
            try:
                reader.read(folder)
            except KNOWN as error:
                if "\n" in str(error) or not str(error):
                    file.write(f"{number} {name}: {len(str(error).splitlines())} lines: {str(error)[:150]!r}\n")
            except BaseException as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{Path(where.filename).name}:{where.lineno}"
                file.write(f"{number} {name}: {type(error).__name__} in {place}: {str(error)[:150]!r}\n")
            signal.setitimer(signal.ITIMER_PROF, 0)
            for other in reader.samples:  # a reader may remove what it refuses
                (folder / other).parent.mkdir(parents=True, exist_ok=True)
                if other != name and not (folder / other).is_file():
                    (folder / other).write_bytes(whole[other])
            (folder / name).write_bytes(whole[name])
    os._exit(0)
