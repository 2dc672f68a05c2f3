"""A step's key: the hash of what it computes.

    key = sha256(canonical JSON of {pipeline, version, params, inputs, seed})

`params` leaves out what equals the default in the code, so that a new field keeps old keys. An input counts as what it
holds (a parent's key, a commit, a hash of files), never as where it lies. Devices, tags, names and order are left out.
"""

from typing import Any

from cdpo.config.canonical import digest
from cdpo.plan.graph import Input


def input_identity(given: Input) -> Any:
    """What an input counts as in a key. With code of its own a model may compute something else than without."""
    identity = _content(given)
    return {"trusted": identity} if given.get("trusted") else identity


def _content(given: Input) -> Any:
    if "step" in given:
        return given["step"]
    if "sha256" in given:
        return given["sha256"]
    if "built" in given:
        return {"built": given["built"]}
    part = {name: given[name] for name in ("config", "split") if given.get(name) is not None}
    if given.get("revision"):
        return {"commit": given["revision"], **part} if part else given["revision"]
    return f"unresolved:{digest([given['kind'], given['hub'], given.get('asked'), part])}"


def step_key(pipeline: str, version: int, params: dict[str, Any], inputs: dict[str, Input], seed: int | None) -> str:
    """64 hex digits. `params` holds only what differs from the defaults in the code."""
    return digest(
        {
            "pipeline": pipeline,
            "version": version,
            "params": params,
            "inputs": {role: input_identity(given) for role, given in inputs.items()},
            "seed": seed,
        }
    )
