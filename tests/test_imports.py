"""Imports go down: each module knows its own folder and those below it, and no two modules import each other."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
ORDER = ["stages", "kernels", "model", "sampling", "judging", ("prepare", "dpo"), "evaluation", "iterate", "tools"]


def imported(path: Path, modules: set[str]) -> set[str]:
    """The project's modules that a file imports, at its top or within a function."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    names |= {node.module for node in froms} | {f"{node.module}.{alias.name}" for node in froms for alias in node.names}
    return names & modules


def test_imports_go_down_and_never_in_circles():
    level = {name: i for i, entry in enumerate(ORDER) for name in ([entry] if isinstance(entry, str) else entry)}
    paths = [*ROOT.glob("*.py"), *(path for name in level for path in (ROOT / name).rglob("*.py"))]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    imports = {name: imported(path, set(modules)) for name, path in modules.items()}
    folder = {name: name.partition(".")[0] for name in modules}
    pairs = [(a, b) for a, found in imports.items() for b in found if folder[a] != folder[b]]
    assert [f"{a} imports {b}" for a, b in pairs if level[folder[b]] >= level[folder[a]]] == []
    assert [f"{a} and {b}" for a in imports for b in imports[a] if a in imports[b] and a != b] == []
    assert [path.name for path in ROOT.glob("*.py")] == ["iterate.py"]
