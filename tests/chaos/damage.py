"""Damage to every kind of file that a run reads: its inputs, its outputs, and the state of a stopped training.

The command is then repeated. It has to end with one line that names the file, or with the undisturbed run's bytes,
because it made the file anew or never needed it. Text of an input is damaged so that no valid input is left.
"""

import json
import random
import re
import shutil
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from processes import ROOT

from tests.chaos.place import CONFIG, RUN, contents, copied, differences, operations, run, seconds, shared, steps

Damage = Callable[[bytes, random.Random], bytes]
Case = Callable[[Path, Path], list[str]]  # (base, place to work in) -> what was wrong

POOL = Path("data/prompts/train.jsonl")
REQUIRED = {  # keys that the rows of an input need
    str(POOL): ("id", "prompt"),
    "prompts.jsonl": ("id", "prompt"),
    "instructions.jsonl": ("id", "prompt", "rules"),
    "judge_cases.jsonl": ("id", "prompt", "responses"),
    "sft.jsonl": ("kind", "prompt", "response"),
}
DEEP, LONG = b"[" * 100_000, b"9" * 5000
PATIENCE = 10.0  # seconds that a command may take beyond those of the whole run


def _line(change: Callable[[list[bytes], int], list[bytes]]) -> Damage:
    def damage(content: bytes, draw: random.Random) -> bytes:
        lines = content.splitlines(keepends=True) or [b""]
        return b"".join(change(lines, draw.randrange(len(lines))))

    return damage


def _value(value: Any, *keys: str) -> Damage:
    """A random value of a row, or that of one of the keys, replaced; `...`: taken out."""

    def damage(content: bytes, draw: random.Random) -> bytes:
        lines = content.splitlines()
        number = draw.randrange(len(lines))
        row = json.loads(lines[number])
        inner, key = row, draw.choice(keys or sorted(row))
        while not keys and isinstance(inner[key], dict) and inner[key] and draw.random() < 0.5:
            inner = inner[key]
            key = draw.choice(sorted(inner))
        if value is ...:
            del inner[key]
        else:
            inner[key] = value
        return b"\n".join([*lines[:number], json.dumps(row).encode(), *lines[number + 1 :]]) + b"\n"

    return damage


def _flip(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


def _inserted(piece: bytes) -> Damage:
    def damage(content: bytes, draw: random.Random) -> bytes:
        place = draw.randrange(len(content) + 1)
        return content[:place] + piece + content[place:]

    return damage


BINARY: dict[str, Damage] = {
    "a bit flipped": _flip,
    "cut to a half": lambda content, draw: content[: len(content) // 2],
    "without its last byte": lambda content, draw: content[:-1],
    "emptied": lambda content, draw: b"",
    "longer": lambda content, draw: content + b"\0" * 64,
    "zeros": lambda content, draw: bytes(len(content)),
}
TEXT: dict[str, Damage] = BINARY | {
    "a line dropped": _line(lambda lines, i: lines[:i] + lines[i + 1 :]),
    "a line doubled": _line(lambda lines, i: lines[: i + 1] + lines[i:]),
    "a line emptied": _line(lambda lines, i: [*lines[:i], b"{}\n", *lines[i + 1 :]]),
    "not UTF-8": _inserted(b"\xff\xfe"),
    "a letter changed": lambda content, draw: re.sub(rb"[a-z]", b"q", content, count=1),
}
INVALID: dict[str, Damage] = {  # whatever the text was
    "not UTF-8": _inserted(b"\xff\xfe"),
    "cut within a row": lambda content, draw: content[: content.rindex(b"\n", 0, -1) + 9],
    "emptied": lambda content, draw: b"",
    "binary": lambda content, draw: bytes(range(256)) * 4,
    "UTF-16": lambda content, draw: content.decode().encode("utf-16"),
}
ROWS: dict[str, Damage] = {
    "too deep": lambda content, draw: b'{"id": ' + DEEP + b"\n" + content,
    "a long number": lambda content, draw: b'{"id": ' + LONG + b"}\n" + content,
    "half a character": lambda content, draw: b'{"id": "\\ud83d", "prompt": "x"}\n' + content,
    "a row is a list": lambda content, draw: b"[]\n" + content,
    "a row is null": lambda content, draw: b"null\n" + content,
    "a row is empty": lambda content, draw: b"{}\n" + content,
}
WHOLE: dict[str, Damage] = {
    f"replaced by {text[:9]!r}": (lambda content, draw, text=text: text)
    for text in (b"{}", b"[]", b"null", b"7", b'"x"', b"{", b'{"key": ' + DEEP, b'{"key": ' + LONG + b"}")
}
VALUES: dict[str, Damage] = {
    f"a value {'missing' if value is ... else value}": _value(value)
    for value in (..., None, -1, float("nan"), [], "x", {})
}  # fmt: skip


def damages(path: Path, is_input: bool) -> dict[str, Damage]:
    """The kinds of damage to a file of this name."""
    name = str(path)
    if is_input and path.suffix == ".jsonl":
        required = {f"{key} {value}": _value(value, key) for key in REQUIRED[name] for value in (..., None, 7, [])}
        if name == "judge_cases.jsonl":
            del required["id 7"]  # there a number is a name, too
        return INVALID | ROWS | required
    if is_input and path.suffix == ".toml":
        return INVALID | {"a bit flipped": _flip, "too deep": lambda content, draw: b"seed = " + DEEP + content}
    if "models/tiny" in name:  # another valid model would be another run
        cut = {kind: BINARY[kind] for kind in ("cut to a half", "emptied", "zeros")}
        return cut if path.suffix == ".safetensors" else cut | WHOLE
    if path.suffix == ".json":
        return TEXT | WHOLE | VALUES
    return TEXT | VALUES if path.suffix == ".jsonl" else BINARY


def files(base: Path, half: Path) -> dict[str, list[tuple[Path, Path]]]:
    """Files that can be damaged, with their place, by kind: those of one name, apart from numbers, are of one kind."""
    kinds: dict[str, list[tuple[Path, Path]]] = defaultdict(list)
    for name in (CONFIG, *REQUIRED):
        kinds[name].append((base, Path(name)))
    for place in (base, half):
        for path in shared(place):
            if (place / path).is_file() and path.name != "report.html" and (place is base or "train" in path.parts):
                kinds[re.sub(r"[0-9a-f]{12}|M\d|seed|\d+", "#", str(path))].append((place, path))
    return kinds


def stopped(base: Path, half: Path) -> Path:
    """A run that was killed within its first training, once it had states and an export; made from the base."""
    training = next(step for step in steps(base) if step.name == "iter1/checkpoint")
    number = len(operations(base, [training])) // 2
    while not (half / RUN / "iter1/train/manifest.json").is_file():
        copied(base, half)
        training.undo(half)
        run(half, at=(number, signal.SIGKILL, "self"))
        number += 3
    return half


def cases(base: Path, half: Path, count: int, seed: int) -> Iterator[tuple[str, Case]]:
    """`count` cases by name, every kind of file in turn."""
    draw, kinds = random.Random(f"{seed}/damage"), files(base, stopped(base, half))
    names = sorted(kinds)
    draw.shuffle(names)
    for number in range(count):
        place, path = draw.choice(kinds[names[number % len(names)]])
        is_input = str(path) in (CONFIG, *REQUIRED)
        known = damages(path, is_input) | {"deleted": None}
        what = draw.choice(sorted(known))
        yield f"{number}: {path} {what}", damaged(place, path, known[what], random.Random(f"{seed}/{number}"))


def damaged(source: Path, path: Path, damage: Damage | None, draw: random.Random) -> Case:
    """The file of a copy of `source`, a run, is damaged, or deleted, before the command is repeated."""

    def case(base: Path, place: Path) -> list[str]:
        copied(source, place)
        (place / "data").unlink()
        (place / POOL).parent.mkdir(parents=True)
        shutil.copy(ROOT / POOL, place / POOL)
        whole = (place / path).read_bytes()
        if damage is None:
            (place / path).unlink()
        else:
            try:
                changed = damage(whole, draw)
            except (ValueError, IndexError, KeyError, AttributeError, TypeError):
                return []  # the file has nothing of this kind
            (place / path).write_bytes(changed)
            if changed == whole:
                return []
        ended = run(place, timeout=seconds(base) + PATIENCE)
        faults = list(ended.faults)
        if ended.code == 0:
            return faults + _used(base, place, path)
        lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
        if ended.code != 2 or len(lines) != 1:
            faults.append(f"exit code {ended.code}, {len(lines)} error lines: {ended.last_line}")
        elif not any(part in lines[0] for part in (path.name, path.parent.name) if part):
            faults.append(f"not named: {lines[0][:200]}")
        return faults

    return case


def _used(base: Path, place: Path, path: Path) -> list[str]:
    """Silent use: anything but the damaged file itself differs from the undisturbed run."""
    wanted, given = contents(base), contents(place)
    if given.get(str(path)) != wanted.get(str(path)):
        wanted.pop(str(path), None)
    return [f"used silently: {fault}" for fault in differences(place, wanted) if str(path) not in fault]
