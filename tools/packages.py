"""The packages that are installed, against what pyproject.toml, torch and constraints.txt ask for."""

import re
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]


def installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def compare_packages() -> tuple[list[str], list[str], list[str]]:
    """Faults, with what to do; packages in other versions than constraints.txt's; and all that meet their requirement.

    Requirements are those of pyproject.toml, and of torch for triton.
    """
    import tomllib  # Python 3.10, on which `tools.doctor` fails with advice, has none

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tested = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    of_torch = (metadata.requires("torch") if installed("torch") else None) or []
    faults, untested, good = [], [], []
    for requirement in [*project["dependencies"], *(need for need in of_torch if re.match(r"triton\b", need))]:
        name, wanted = re.split(r"[^\w-]", requirement)[0], requirement.split(";")[0].strip()
        if not installed(name):
            faults.append(f"{name} is not installed: make setup")
            continue
        version = metadata.version(name)
        if not satisfies(version, requirement):
            needed = f"this torch's {wanted} is needed: pip install it" if name == "triton" else ""
            faults.append(f"{name} {version} is installed, but {needed or f'{wanted} is needed: make setup'}")
            continue
        good.append(f"{name} {version}")
        if name in tested and not satisfies(version, f"{name}=={tested[name]}"):
            untested.append(f"{name} {version} ({tested[name]})")
    return faults, untested, good


def satisfies(version: str, requirement: str) -> bool:
    """Whether a version, such as 2.13.0+cpu, meets a requirement; `ValueError` for one beyond a single == or >=."""
    bound = re.fullmatch(r"\s*[\w-]+\s*(?:([=<>!~]+)\s*([\w.+]+))?\s*(?:;.*)?", requirement)
    if bound is None or bound[1] not in (None, "==", ">="):
        raise ValueError(f"requirement {requirement!r} is beyond this check")
    if bound[1] is None:
        return True
    ours, theirs = ([int(part) for part in re.findall(r"\d+", text.split("+")[0])] for text in (version, bound[2]))
    width = max(len(ours), len(theirs))
    ours, theirs = (numbers + [0] * (width - len(numbers)) for numbers in (ours, theirs))
    return ours == theirs if bound[1] == "==" else ours >= theirs
