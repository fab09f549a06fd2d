"""Seeds: each random draw is a function of the run's seed and of the draw's name, and of no earlier draw."""

import hashlib


def request_seed(seed: int, iteration: int, stage: str, item_id: str) -> int:
    """The seed of one request's noise, or of one draw: 63 bits of the SHA-256 of all arguments."""
    text = f"{seed}/{iteration}/{stage}/{item_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
