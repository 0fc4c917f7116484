"""Seeds as pure functions of what they are for, so that no random state has to be carried along or saved."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from a purpose and its coordinates, e.g. ``derive_seed(seed, "order", epoch)``.

    Hashed, because neighbouring seeds added together collide: (seed 0, epoch 1) would be (seed 1, epoch 0).
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
