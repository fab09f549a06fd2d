"""The campaign's cases, their results, and the figures of all.

Results are JSON lines in OUT/results.jsonl, a line a case; the same command goes on where it was stopped.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.chaos import damage, fuzz, kills, limits, place

Case = Callable[[], list[str]]


def cases(given: argparse.Namespace) -> Iterator[tuple[str, str, Case]]:
    """(part, name, case) of all cases."""
    base, work = given.out / "base", given.out / "work"
    plans = {
        "kills": lambda: kills.every_operation(base) if given.every else kills.cases(base, given.kills, given.seed),
        "damage": lambda: damage.cases(base, given.out / "half", given.damaged, given.seed),
        "limits": lambda: limits.cases(base, given.limits, given.seed),
    }
    for part, plan in plans.items():
        if part in given.only:
            for name, case in plan():
                yield part, name, lambda case=case: case(base, work)
    for name, reader in fuzz.readers(base).items() if "fuzz" in given.only else ():
        seed = f"{given.seed}/{name}"
        yield "fuzz", f"{name}, {given.fuzz}", lambda r=reader, s=seed: list(fuzz.fuzz(r, work, given.fuzz, s))


def figures(rows: list[dict], given: argparse.Namespace) -> str:
    """One line about all cases."""

    def own(part: str, word: str) -> int:
        return sum(any(fault.startswith(word) for fault in row["faults"]) for row in rows if row["part"] == part)

    def clean(part: str) -> str:
        of_part = [row for row in rows if row["part"] == part]
        return f"{sum(not row['faults'] for row in of_part)} of {len(of_part)}"

    found = []
    if "kills" in given.only:
        found.append(f"kills {clean('kills')} same bytes, nothing left over")
    if "damage" in given.only:
        kinds = {"tracebacks": "traceback", "used silently": "used silently", "hangs": "hang"}
        kinds |= {"not one line": "exit code", "not named": "not named"}
        counts = [f"{own('damage', word)} {name}" for name, word in kinds.items()]
        found.append(f"damaged {sum(row['part'] == 'damage' for row in rows)}: {', '.join(counts)}")
    if "limits" in given.only:
        found.append(f"limits {clean('limits')} one line, then the same bytes")
    if "fuzz" in given.only:
        readers = [row for row in rows if row["part"] == "fuzz"]
        wrong = sum(len(row["faults"]) for row in readers)
        result = (
            f"{wrong} other ends, of {sum(bool(row['faults']) for row in readers)}" if wrong else "typed error only"
        )
        found.append(f"fuzz {given.fuzz:,} a reader, {len(readers)} readers: {result}")
    return "; ".join(found)


def campaign(given: argparse.Namespace) -> int:
    given.out, place.patience = given.out.resolve(), given.patience
    given.out.mkdir(parents=True, exist_ok=True)
    results, done = given.out / "results.jsonl", dict[tuple[str, str], dict]()
    place.make(given.out / "base")
    if results.is_file():
        rows = (json.loads(line) for line in results.read_text().splitlines())
        done = {(row["part"], row["case"]): row for row in rows if row["seed"] == given.seed}
    rows, started = [], dict[str, float]()
    with results.open("a", buffering=1) as file:
        for part, name, case in cases(given):
            if (row := done.get((part, name))) is None:
                begun = time.monotonic()
                spent = begun - started.setdefault(part, begun)
                if given.seconds and spent > given.seconds / len(given.only):
                    continue
                faults = case()
                row = {"part": part, "case": name, "seed": given.seed, "faults": faults}
                file.write(json.dumps(row | {"seconds": round(time.monotonic() - begun, 1)}) + "\n")
                shown = "; ".join(faults[:3])[:300] if faults else "as it should be"
                print(f"[{time.strftime('%H:%M:%S')}] {part} {name}: {shown}", flush=True)
            rows.append(row)
    print(figures(rows, given))
    return int(any(row["faults"] for row in rows))


def parser() -> argparse.ArgumentParser:
    parts = ("kills", "damage", "limits", "fuzz")
    options = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    options.add_argument("--out", type=Path, required=True, help="folder for the results and the runs")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--kills", type=int, default=100)
    options.add_argument("--every", action="store_true", help="kill at every single file operation instead")
    options.add_argument("--damaged", type=int, default=400)
    options.add_argument("--limits", type=int, default=35)
    options.add_argument("--fuzz", type=int, default=5000, help="readings a reader")
    options.add_argument("--patience", type=float, default=1.0, help="how many times as long commands may take")
    options.add_argument("--only", nargs="+", choices=parts, default=parts)
    options.add_argument("--seconds", type=float, help="in all; each part begins no case after its share")
    return options
