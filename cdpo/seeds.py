"""Every random stream has a name, and its seed is derived from the experiment's seed and that name.

Two streams with different names are independent; the same name gives the same stream on every machine.
"""

import hashlib


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed in [0, 2**63) for the stream called `names` of the experiment seeded with `seed`.

    >>> derive_seed(0, "sft", "shuffle") == derive_seed(0, "sft", "shuffle")
    True
    """
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def derive_seed32(seed: int, *names: str | int) -> int:
    """The same in [0, 2**31), for libraries that take no larger seed (transformers' `set_seed`, numpy's legacy one)."""
    return derive_seed(seed, *names) >> 32
