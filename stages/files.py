"""Files between stages: JSON lines, atomic writes, digests, the manifest of a complete stage.

A stage's folder is complete when it holds `manifest.json`, which is written last. The manifest's `key` identifies the
inputs and settings, its `digest` the output, of which `files` has each file's.
"""

import gzip
import hashlib
import json
import lzma
import math
import os
import platform
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stages.command import UserError

MANIFEST = "manifest.json"
UTF_8 = "utf-8-sig"  # with or without a byte order mark


def read_objects(path: Path | str, containing: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and object of each entry of a JSON list (`.json`), or of each line of JSON lines, which may be compressed
    (`.gz`, `.xz`), without blank lines and those without the text `containing`. Raises `UserError` naming the place for
    a missing or damaged file and what is no object."""
    path, number, mend = Path(path), 0, "mend or remove the line"
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path in the config or run the stage that writes it")
    if path.suffix == ".json":
        wanted = "name a JSON list of rows"
        entries = parse_json(read_text(path, wanted), str(path), wanted, lambda _: None)  # tables' NaN: no value
        if isinstance(entries, dict):
            entries = entries.get("examples")  # of a task of BIG-bench
        if not isinstance(entries, list):
            raise UserError(f"{path}: not a JSON list; {wanted}")
        for where, entry in ((f"{path}, entry {index}", entry) for index, entry in enumerate(entries)):
            yield where, _object(entry, where, "mend or remove the entry")
        return
    try:
        open_text: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
        with open_text(path, "rt", encoding=UTF_8) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip() and containing in line:
                    where = f"{path}, line {number}"
                    yield where, _object(parse_json(line, where, mend), where, mend)
    except (gzip.BadGzipFile, lzma.LZMAError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path}, after line {number}: damaged ({error}); fetch the file again") from None


def _object(value: Any, where: str, mend: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object; {mend}")
    return value


def read_jsonl(path: Path | str, required: Iterable[str] = (), containing: str = "") -> Iterator[dict[str, Any]]:
    """The objects of a file, as `read_objects` gives them. Raises `UserError` for a missing key of `required`."""
    for where, row in read_objects(path, containing):
        if missing := [key for key in required if key not in row]:
            raise UserError(f"{where}: key {missing[0]!r} is missing; add it")
        yield row


def read_json(path: Path | str, mend: str = "repeat the stage that writes it") -> dict[str, Any]:
    """The object in a JSON file."""
    return _object(parse_json(read_text(path, mend), str(path), mend), str(path), mend)


def parse_json(text: str, where: str, mend: str, constant: Callable[[str], Any] = int) -> Any:
    """The value of a JSON text. Raises `UserError` also for nesting and numbers that Python does not read, for nan and
    infinity, and for half a surrogate pair, which is no character."""
    try:
        value = json.loads(text, parse_constant=constant, parse_float=_finite)  # int refuses nan and infinity
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) and error.lineno > 1 else ""
        raise UserError(f"{where}{line}: not JSON ({error}); {mend}") from None
    return value


def _finite(number: str) -> float:
    if math.isinf(value := float(number)):
        raise ValueError(f"{number:.20} is beyond the range of numbers")
    return value


def read_text(path: Path | str, mend: str) -> str:
    """A text in UTF-8. Raises `UserError` for another, and without a file; it tells users to `mend`."""
    try:
        return Path(path).read_text(encoding=UTF_8)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file; {mend}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); {mend}") from None
    except ValueError as error:  # a NUL
        raise UserError(f"{str(path)!r}: no name of a file ({error}); {mend}") from None


def write_atomic(path: Path | str, data: str | bytes, mode: int = 0o666) -> None:
    """Write a file whole or not at all, also where its folder is not there yet."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Nodes share folders, and process numbers repeat on them.
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb", opener=partial(os.open, mode=mode)) as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def to_json(value: Any, path: Path | str, indent: int | None = None) -> str:
    """JSON for the file `path`. Raises `UserError` for a number that is not finite."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent) + "\n"
    except ValueError:
        before = re.split(r"(?<=NaN|ity)(?=[,}\]])", json.dumps(value))[0][-120:]
        raise UserError(f"{path}: not written, for a number is not finite: {before}") from None


def write_jsonl(path: Path | str, rows: Iterable[dict[str, Any]]) -> None:
    """Write objects as JSON lines, atomically."""
    write_atomic(path, "".join(to_json(row, path) for row in rows))


def write_json(path: Path | str, value: Any) -> None:
    """Write an indented JSON document, atomically."""
    write_atomic(path, to_json(value, path, indent=2))


def digest(path: Path | str) -> str:
    """The digest of an input: a file's SHA-256; a folder's manifest's digest or, without one, that of all its files.
    Raises `UserError` for a stage's output that has changed since."""
    path = Path(path)
    if path.is_file():
        check_output(path.parent, path)
        return _sha256(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; check the path or run the stage that writes it")
    if manifest := check_output(path):
        return manifest["digest"]
    # Hidden files and folders belong to tools: a download's notes, an unfinished write.
    shown = (file for file in path.rglob("*") if "/." not in f"/{file.relative_to(path).as_posix()}")
    return _digest_of_files(path, filter(Path.is_file, shown))


def _sha256(path: Path) -> str:
    """A file's SHA-256. A process reads weights once: a file in the state of the last time is not read again."""
    state = path.stat()
    return _read_digest(path, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@cache
def _read_digest(path: Path, *_state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of_files(folder: Path, files: Iterable[Path]) -> str:
    """The SHA-256 of the names and digests of files in a folder."""
    lines = (f"{file.relative_to(folder)} {_sha256(file)}\n" for file in sorted(files))
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def stage_key(stage: str, settings: Any, inputs: Mapping[str, Path | str] = MappingProxyType({})) -> str:
    """The identity of a stage's work: its name, the settings it reads, and the content of its inputs."""
    content = {name: digest(path) for name, path in sorted(inputs.items())}
    text = json.dumps({"stage": stage, "settings": settings, "inputs": content}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(folder: Path | str) -> dict[str, Any] | None:
    """The manifest of a complete stage, or None. Raises `UserError` for one that is not as it was written."""
    path = Path(folder) / MANIFEST
    return read_sealed(path) if path.is_file() else None


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object with a checksum of itself as JSON."""
    plain = json.loads(to_json(value, path))  # whose keys are texts, as they will be read
    write_json(path, plain | {"checksum": stage_key("manifest", plain)})


def read_sealed(path: Path, mend: str = "repeat the stage that writes it") -> dict[str, Any]:
    """The object that `write_sealed` wrote. Raises `UserError` for one that has changed."""
    value = read_json(path, mend)
    if value.pop("checksum", None) != stage_key("manifest", value):
        raise UserError(f"{path}: damaged, or of an older version; {mend}")
    return value


def changed_files(folder: Path) -> list[Path]:
    """The files of a complete stage that are not as it wrote them, or its manifest."""
    try:
        written = (read_manifest(folder) or {"files": {}})["files"].items()
    except UserError:
        return [folder / MANIFEST]
    return [path for name, value in written if not (path := folder / name).is_file() or _sha256(path) != value]


def check_output(folder: Path | str, file: Path | None = None) -> dict[str, Any] | None:
    """The manifest of a complete stage, or None. Raises `UserError` if one of its files, or `file`, has changed."""
    manifest = read_manifest(folder) or {}
    for path in (path for path in changed_files(Path(folder)) if file in (None, path)):
        raise UserError(f"{path}: not as the stage {manifest['stage']!r} wrote it; repeat that stage")
    return manifest or None


def read_shards(folder: Path | str) -> Iterator[Any]:
    """All records of a finished stage that writes shards, in the order of its requests."""
    if (shards := (check_output(folder) or {}).get("shards")) is None:
        raise UserError(f"{folder}: not a finished stage (no manifest.json with shards); run the stage that writes it")
    return (row for name in shards for row in read_jsonl(Path(folder) / name))


def is_complete(folder: Path | str, key: str) -> bool:
    """Whether `folder` holds the finished output of exactly this work. Files of an output that are not as they were
    written are removed, with the manifests of the folders that they lie in, so that the work makes them again."""
    manifests = list(Path(folder).rglob(MANIFEST)) if (Path(folder) / MANIFEST).is_file() else []
    changed = [path for manifest in manifests for path in changed_files(manifest.parent)]
    for path in changed:
        print(f"warning: {path}: not as it was written; it is made again", file=sys.stderr)
    for path in [*changed, *(own for own in manifests if any(file.is_relative_to(own.parent) for file in changed))]:
        path.unlink(missing_ok=True)
    return (read_manifest(folder) or {}).get("key") == key


def write_manifest(folder: Path | str, stage: str, key: str, outputs: Iterable[Path], **facts: Any) -> None:
    """Mark a stage complete. The digest covers the files `outputs`; `facts` are for readers."""
    folder, outputs = Path(folder), sorted(outputs)  # file systems list a folder in orders of their own
    written = {str(file.relative_to(folder)): _sha256(file) for file in outputs}
    manifest = {"stage": stage, "key": key, "digest": _digest_of_files(folder, outputs), "files": written} | facts
    write_sealed(folder / MANIFEST, manifest)
