"""Files between stages: JSON lines, atomic writes, digests, the manifest of a complete stage, and the lock of a run.

A stage's folder is complete when it holds `manifest.json`, which is written last. The manifest's `key` identifies the
inputs and settings, its `digest` the output.
"""

import argparse
import fcntl
import gzip
import hashlib
import json
import os
import platform
import shlex
import shutil
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

MANIFEST = "manifest.json"


class UserError(Exception):
    """An error that the user can mend. The message is one line: what, where (file, line, key), what to do."""


class Terminated(SystemExit):
    """A SIGTERM that does not end the process at once (`on_sigterm_raise`)."""


def on_sigterm_raise() -> None:
    """Make the first SIGTERM raise `Terminated`, so that child processes can be ended; later ones do nothing."""

    def raise_terminated(number: int, _frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise Terminated(128 + number)

    signal.signal(signal.SIGTERM, raise_terminated)


def command(main: Callable[[], None]) -> None:
    """Run a command's `main`; a `UserError` is one line on stderr and exit code 2, Ctrl-C is 130, `Terminated` 143."""
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (KeyboardInterrupt, Terminated) as error:
        what, code = ("interrupted", 130) if isinstance(error, KeyboardInterrupt) else ("terminated", error.code)
        print(f"{what}: run the same command again to continue", file=sys.stderr)
        raise SystemExit(code) from None


def arguments(doc: str | None, *paths: str, **others: Any) -> argparse.Namespace:
    """A command's options: required `paths`, and `others` with argparse's keywords; `doc` is the help's description."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, keywords in ({path: {"required": True, "type": Path} for path in paths} | others).items():
        parser.add_argument(f"--{name}", **keywords)
    return parser.parse_args()


def read_numbered_jsonl(path: Path | str, required: Iterable[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    """The line numbers, from 1, and objects of a JSON-lines file, which may be compressed (`.gz`). Blank lines are
    skipped. Raises `UserError` naming file and line for a missing or damaged file, a line that is not a JSON object,
    and a missing key of `required`."""
    path, number = Path(path), 0
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path in the config or run the stage that writes it")
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _row(line, f"{path}, line {number}", required)
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path}, after line {number}: damaged ({error}); fetch the file again") from None


def _row(line: str, where: str, required: Iterable[str]) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg}); mend or remove the line") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object; mend or remove the line")
    if missing := [key for key in required if key not in row]:
        raise UserError(f"{where}: key {missing[0]!r} is missing; add it")
    return row


def read_jsonl(path: Path | str, required: Iterable[str] = ()) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file, as `read_numbered_jsonl` gives them."""
    return (row for _, row in read_numbered_jsonl(path, required))


def read_json_list(path: Path, wanted: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON list, each with its place, "PATH, entry I"; errors tell users to name `wanted`."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file; name {wanted}") from None
    except ValueError as error:  # from JSON, with the line, or from UTF-8
        raise UserError(f"{path}: damaged ({error}); name {wanted}") from None
    if isinstance(entries, dict):
        entries = entries.get("examples")  # of a task of BIG-bench
    if not isinstance(entries, list):
        raise UserError(f"{path}: not a JSON list; name {wanted}")
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UserError(f"{path}, entry {index}: expected a JSON object; mend or remove the entry")
        yield f"{path}, entry {index}", entry


def read_json(path: Path | str) -> Any:
    """The content of a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def _temporary(path: Path) -> Path:
    """A name beside `path`, in a folder that exists then; nodes share folders, and process numbers repeat on them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")


def write_atomic(path: Path | str, data: str | bytes) -> None:
    """Write a file whole or not at all."""
    temporary = _temporary(Path(path))
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_jsonl(path: Path | str, rows: Iterable[dict[str, Any]]) -> None:
    """Write objects as JSON lines, atomically."""
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_json(path: Path | str, value: Any) -> None:
    """Write an indented JSON document, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def copy_folder(source: Path, target: Path) -> None:
    """Replace a folder by a copy of another, whole or not at all."""
    temporary = _temporary(target)
    try:
        shutil.copytree(source, temporary)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the operating system's lock on `folder`/lock, so that one `iterate.py` at a time works in a run's folder.
    Stages inherit the open file: one that outlives a killed `iterate.py` keeps the lock. It holds between the nodes of
    an NFS; Lustre needs the mount option `flock`. Raises `UserError` where another holds it, or where no locks
    exist."""
    path = folder / "lock"
    while True:
        file = path.open("a+", encoding="utf-8", errors="replace")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(f"{path}: in use by {holder}; wait for it or stop it") from None
        except OSError as error:
            raise UserError(f"{path}: no lock on this file system ({error.strerror}); use one with locks") from None
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # the process that held the lock has removed this file meanwhile
    who, since = f"{os.getpid()} on {platform.node()} ({shlex.join(sys.argv)})", time.strftime("%Y-%m-%d %H:%M:%S %z")
    file.truncate(0)
    file.write(f"process {who} or its stages, since {since}\n")
    file.flush()
    os.set_inheritable(file.fileno(), True)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def digest(path: Path | str) -> str:
    """The digest of an input: a file's SHA-256; a folder's manifest's digest or, without one, that of all its files."""
    path = Path(path)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; check the path or run the stage that writes it")
    if manifest := read_manifest(path):
        return manifest["digest"]
    # Hidden files and folders belong to tools: a download's notes, an unfinished write.
    shown = (file for file in path.rglob("*") if "/." not in f"/{file.relative_to(path).as_posix()}")
    return _digest_of_files(path, filter(Path.is_file, shown))


def _digest_of_files(folder: Path, files: Iterable[Path]) -> str:
    """The SHA-256 of the names and digests of files in a folder."""
    lines = (f"{file.relative_to(folder)} {digest(file)}\n" for file in sorted(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def stage_key(stage: str, settings: Any, inputs: Mapping[str, Path | str] = MappingProxyType({})) -> str:
    """The identity of a stage's work: its name, the settings it reads, and the content of its inputs."""
    content = {name: digest(path) for name, path in sorted(inputs.items())}
    text = json.dumps({"stage": stage, "settings": settings, "inputs": content}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(folder: Path | str) -> dict[str, Any] | None:
    """The manifest of a complete stage, or None."""
    path = Path(folder) / MANIFEST
    return read_json(path) if path.is_file() else None


def read_shards(folder: Path | str) -> Iterator[Any]:
    """All records of a finished stage that writes shards, in the order of its requests."""
    if (manifest := read_manifest(folder)) is None:
        raise UserError(f"{folder}: not a finished stage (no manifest.json); run the stage that writes it")
    for name in manifest["shards"]:
        yield from read_jsonl(Path(folder) / name)


def is_complete(folder: Path | str, key: str) -> bool:
    """Whether `folder` holds the finished output of exactly this work."""
    return (read_manifest(folder) or {}).get("key") == key


def write_manifest(folder: Path | str, stage: str, key: str, outputs: Iterable[Path], **facts: Any) -> None:
    """Mark a stage complete. The digest covers the files `outputs`; `facts` are for readers."""
    marks = {"stage": stage, "key": key, "digest": _digest_of_files(Path(folder), outputs)}
    write_json(Path(folder) / MANIFEST, marks | facts)
