"""What stored weights tell without being read. Imports no torch."""

import json
from pathlib import Path

_STORED = {"F64": "fp32", "F32": "fp32", "BF16": "bf16", "F16": "fp16"}
#: what cdpo calls a type, by torch's name
_CONFIGURED = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
#: and the other way round
TORCH_NAMES = {ours: theirs for theirs, ours in _CONFIGURED.items()}


def stored_dtype(folder: Path) -> str:
    """`fp32`, `bf16` or `fp16`: the type that most of the stored weights have, judged by the first file of them."""
    for path in sorted(folder.glob("*.safetensors"))[:1]:
        with open(path, "rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        bytes_of: dict[str, int] = {}
        for name, entry in header.items():
            if name != "__metadata__" and entry["dtype"] in _STORED:
                kind = _STORED[entry["dtype"]]
                bytes_of[kind] = bytes_of.get(kind, 0) + entry["data_offsets"][1] - entry["data_offsets"][0]
        if bytes_of:
            return max(bytes_of, key=lambda kind: bytes_of[kind])
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return _CONFIGURED.get(config.get("dtype") or config.get("torch_dtype") or "", "fp32")
