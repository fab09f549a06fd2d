from pathlib import Path

import pytest
from training import make_inputs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model and 12 pairs."""
    return make_inputs(tmp_path)
