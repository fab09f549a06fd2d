"""Kills and signals: at file operations, at random moments, twice in a run; of iterate.py alone; of one rank of two.

Each case undoes some steps of a finished run, disturbs the command that makes them again, and repeats the command: the
bytes must be those of the undisturbed run, with nothing left over.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.chaos.place import (
    CONFIG,
    RUN,
    Ended,
    Step,
    contents,
    copied,
    differences,
    end,
    finish,
    members,
    operations,
    run,
    start,
    steps,
)

Case = Callable[[Path, Path], list[str]]  # (base, place to work in) -> what was wrong

SENT = [(signal.SIGKILL, "self"), (signal.SIGKILL, "all"), (signal.SIGTERM, "all"), (signal.SIGINT, "all")]


def cases(base: Path, count: int, seed: int) -> Iterator[tuple[str, Case]]:
    """`count` cases by name: three of five at a file operation, one of five at a moment, the rest of other kinds."""
    draw, known = random.Random(seed), steps(base)
    kinds = [_at_operation] * 12 + [_at_moment] * 3 + [_early] + [_twice] * 2 + [_orphan, _two_ranks]
    for number in range(count):
        kind = kinds[number % len(kinds)]
        first = draw.randrange(len(known))
        chosen = known[first : first + draw.choice((1, 1, 2, 3))] if draw.random() < 0.95 else known
        yield kind(base, chosen, random.Random(f"{seed}/{number}"), number)


def every_operation(base: Path) -> Iterator[tuple[str, Case]]:
    """A kill at every single file operation of every step."""
    for step in steps(base):
        for place in range(1, len(operations(base, [step])) + 1):
            yield f"kill at operation {place} of {step.name}", disturbed([step], [(place, signal.SIGKILL, "self")])


def _at_operation(base: Path, chosen: list[Step], draw: random.Random, number: int) -> tuple[str, Case]:
    place, (sent, whom) = draw.randint(1, len(operations(base, chosen)) + 6), draw.choice(SENT)
    name = f"{number}: {sent.name} to {whom} at operation {place} of {_names(chosen)}"
    return name, disturbed(chosen, [(place, sent, whom)])


def _twice(base: Path, chosen: list[Step], draw: random.Random, number: int) -> tuple[str, Case]:
    count = len(operations(base, chosen)) + 6
    places = [draw.randint(1, count), draw.randint(1, max(count // 2, 1))]
    name = f"{number}: SIGKILL twice, at operations {places[0]} and {places[1]} of {_names(chosen)}"
    return name, disturbed(chosen, [(place, signal.SIGKILL, "self") for place in places])


def _at_moment(base: Path, chosen: list[Step], draw: random.Random, number: int) -> tuple[str, Case]:
    moments = operations(base, chosen)
    seconds, (sent, whom) = draw.uniform(0, 1 + (moments or [0])[-1]), draw.choice(SENT)

    def strike(session: int) -> None:
        _wait_for(lambda: members(session) == [] or list(Path(f"/proc/{session}/cwd").glob(f"{RUN}/lock")))
        time.sleep(seconds)
        present = members(session)
        with suppress(ProcessLookupError):
            if whom == "all":
                os.killpg(session, sent)
            elif present:
                os.kill(draw.choice(present), sent)

    def case(base: Path, place: Path) -> list[str]:
        _undo(base, place, chosen)
        return _again(base, place, run(place, during=strike))

    return f"{number}: {sent.name} to {whom} after {seconds:.2f} s of {_names(chosen)}", case


def _early(base: Path, chosen: list[Step], draw: random.Random, number: int) -> tuple[str, Case]:
    """Ctrl-C while the first stage that iterate.py has started is importing."""
    seconds = draw.uniform(0, 3)

    def case(base: Path, place: Path) -> list[str]:
        _undo(base, place, chosen)
        process = start(place)
        _wait_for(lambda: process.poll() is not None or len(members(process.pid)) > 1)
        time.sleep(seconds)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        return _again(base, place, finish(place, process))

    return f"{number}: Ctrl-C {seconds:.2f} s into the imports of a stage, to make {_names(chosen)}", case


def disturbed(chosen: list[Step], strikes: list[tuple[int, int, str]]) -> Case:
    def case(base: Path, place: Path) -> list[str]:
        _undo(base, place, chosen)
        for at in strikes:
            ended = run(place, at=at)
            if faults := ended.faults:
                return faults
        return _again(base, place, ended)

    return case


def _orphan(base: Path, chosen: list[Step], draw: random.Random, number: int) -> tuple[str, Case]:
    """iterate.py alone is killed within a training; the same command follows at once."""
    wait = draw.uniform(0, 0.5)

    def case(base: Path, place: Path) -> list[str]:
        training = next(step for step in steps(base) if step.name == "iter1/checkpoint")
        _undo(base, place, [training])
        process = start(place)
        _wait_for(lambda: list((place / RUN / "iter1" / "train").glob("*")))
        time.sleep(wait)
        process.kill()
        process.wait()
        again = start(place)
        ended = finish(place, again)
        if ended.code == 2 and "in use by" in ended.err:  # the trainer still holds the lock: it must end on its own
            _wait_for(lambda: not members(process.pid))
            ended = finish(place, start(place))
        left = members(process.pid)
        end(process.pid)
        return [f"{len(left)} orphans"] * bool(left) + _judged(base, place, ended)

    return f"{number}: SIGKILL to iterate.py alone within a training, and {wait:.2f} s", case


def _two_ranks(base: Path, chosen: list[Step], draw: random.Random, number: int) -> tuple[str, Case]:
    """One of the processes of a run on two ranks is killed while they judge, or whichever changes a file."""
    seconds, victim = draw.uniform(0, 3), draw.choice(("rank 0", "rank 1", "iterate.py", "all", "who writes"))
    at = (draw.randint(1, 26), signal.SIGKILL, "self") if victim == "who writes" else None

    def case(base: Path, place: Path) -> list[str]:
        judging = next(step for step in steps(base) if step.name == "iter1/judgments")
        _undo(base, place, [judging])
        config = place / CONFIG
        alone = config.read_text()
        config.write_text(alone.replace("seed = 0\n", "seed = 0\nnproc_per_node = 2\n", 1))
        process = start(place, at=at)
        if at is None:
            _wait_for((place / RUN / "iter1" / "judgments").exists)
            time.sleep(seconds)
            with suppress(ProcessLookupError, IndexError):
                ranks = [member for member in members(process.pid) if member != process.pid]
                known = {"rank 0": ranks[0], "rank 1": ranks[-1], "iterate.py": process.pid, "all": -process.pid}
                os.kill(known[victim], signal.SIGKILL)
        faults = finish(place, process).faults
        ended = finish(place, start(place))
        shutil.copy(base / RUN / "settings.json", place / RUN)  # which has the number of ranks
        return faults + _judged(base, place, ended)

    when = f"at operation {at[0]}" if at else f"{seconds:.2f} s into judging"
    return f"{number}: SIGKILL to {victim} of two ranks, {when}", case


def _wait_for(done: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.02)


def _undo(base: Path, place: Path, chosen: list[Step]) -> None:
    copied(base, place)
    for step in chosen:
        step.undo(place)


def _again(base: Path, place: Path, struck: Ended) -> list[str]:
    return struck.faults + _judged(base, place, run(place))


def _judged(base: Path, place: Path, ended: Ended) -> list[str]:
    faults = list(ended.faults)
    if ended.code != 0:
        return [*faults, f"exit code {ended.code}: {ended.last_line}"]
    return faults + differences(place, contents(base))


def _names(chosen: list[Step]) -> str:
    return chosen[0].name + (f" to {chosen[-1].name}" if len(chosen) > 1 else "")
