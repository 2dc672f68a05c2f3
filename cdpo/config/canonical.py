"""One text for one value: what keys are hashed from, and what makes `1`, `1.0` and `1e0` the same setting."""

import hashlib
import json
from typing import Any

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def canonical(value: Any) -> Any:
    """`value` with every whole float as an integer, so that equal numbers are written alike; ValueError on NaN."""
    if isinstance(value, bool) or value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"{value} has no place in a key")
        return int(value) if value.is_integer() else value
    if isinstance(value, dict):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    raise TypeError(f"a {type(value).__name__} cannot be part of a key")


def canonical_json(value: Any) -> str:
    """Sorted keys, no spaces, floats by repr.

    >>> canonical_json({"b": 1.0, "a": [1e0, 0.5, True]})
    '{"a":[1,0.5,true],"b":1}'
    """
    return _ENCODER.encode(canonical(value))


def digest(value: Any) -> str:
    """sha256 of the canonical text, 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
