"""SECURITY.md: each promise names tests, and these exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAME = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
PROMISES, _, LIMITS = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("## Not protected")


def test_each_promise_names_a_test():
    promises = [part.split("\n\n")[0] for part in PROMISES.split("\n- ")[1:]]
    assert len(promises) > 15 and [text for text in promises if not NAME.search(text)] == []
    assert LIMITS.count("\n- ") > 3


def test_each_test_that_is_named_exists():
    found = NAME.findall(PROMISES + LIMITS)
    trees = {path: ast.parse((ROOT / path).read_text(encoding="utf-8")) for path, _ in found}
    tests = {(path, node.name) for path in trees for node in trees[path].body if isinstance(node, ast.FunctionDef)}
    assert PROMISES.count("::") == len(found) and all(name.startswith("test_") for _, name in found)
    assert {*found} - tests == set()
