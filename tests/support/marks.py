"""Marks that skip a test where the processor lacks what the test needs."""

import pytest

from model.dtype import int8_is_native

needs_int8 = pytest.mark.skipif(not int8_is_native(), reason="int8 products need VNNI")
