"""Rows of users' files with any one value wrong or missing: used as they are, or one line that names file and row.

What each reader does with a row is tested beside it; here no value may be a traceback.
"""

import copy
import json
import math
from collections.abc import Iterator

import pytest
from questions import written
from readers import READERS

from stages.command import UserError

VALUES = [None, True, -7, math.nan, 1e308, 10**400, "", "x", [], {}, [None], [[]], [{}], {"x": 1}]


def places(value, *above) -> Iterator[tuple]:
    """The path of every value within."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*above, key)
        yield from places(value[key], *above, key)


def damaged(rows: list[dict]) -> Iterator[list]:
    """The rows with any one value replaced by each of `VALUES`, or taken out."""
    for *above, last in places(rows):
        for value in (..., *VALUES):
            changed = copy.deepcopy(rows)
            inner = changed
            for key in above:
                inner = inner[key]
            if value is ...:
                del inner[last]
            else:
                inner[last] = value
            yield changed


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_value_is_one_line(tmp_path, name):
    read, rows = READERS[name]
    path, refusals = written(tmp_path / "rows.jsonl", rows), 0
    read(path)
    for changed in damaged(rows):
        path.write_text("".join(json.dumps(row) + "\n" for row in changed))
        try:
            read(path)
        except UserError as error:
            refusals += 1
            assert "\n" not in str(error) and len(str(error)) < 1000 and "rows.jsonl" in str(error), str(error)
    assert refusals > len(rows) * len(VALUES) / 2
