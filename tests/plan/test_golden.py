"""Keys and defaults stay what they are until somebody changes them on purpose (see golden.py)."""

import json

from golden import FILE, as_text, golden


def test_keys_and_defaults_are_the_golden_ones() -> None:
    wanted, now = json.loads(FILE.read_text(encoding="utf-8")), json.loads(as_text(golden()))
    assert len(wanted["keys"]) >= 12
    changed = [name for name, key in wanted["keys"].items() if now["keys"].get(name) != key]
    assert now["defaults"] == wanted["defaults"], "a default changed: raise the pipeline's version, then golden.py"
    assert not changed, "keys changed: finished steps of these kinds would be done again; see golden.py"
    assert now["keys"] == wanted["keys"]
