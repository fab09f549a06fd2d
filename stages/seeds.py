"""Seeds: what is drawn at random is a function of the run's seed and of what is drawn, and of nothing drawn before."""

import hashlib


def request_seed(seed: int, iteration: int, stage: str, item_id: str) -> int:
    """The seed of one request's noise, or of one draw: 63 bits of the SHA-256 of all arguments."""
    text = f"{seed}/{iteration}/{stage}/{item_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
