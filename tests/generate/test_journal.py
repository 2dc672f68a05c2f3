"""The file that a step goes on from."""

import pytest

from cdpo.journal import Journal, item_key


@pytest.mark.parametrize("torn", [b"", b"[", b'["k2", {"a": 1', b'["k2", 1]', b'["k2", 1]x\n["k3", 1]\n', b"\xff\xfe"])
def test_whole_lines_are_kept_and_nothing_else(tmp_path, torn):
    path = tmp_path / "ckpt" / "items.jsonl"
    with Journal(path) as journal:
        journal.append("k0", {"text": "two\nlines \u2028 ünïcode"})
        journal.append("k1", 0.1)
    with open(path, "ab") as stream:
        stream.write(torn)
    with Journal(path) as journal:
        assert journal.items == {"k0": {"text": "two\nlines \u2028 ünïcode"}, "k1": 0.1}
        journal.append("k4", None)
    with Journal(path) as journal:
        assert list(journal.items) == ["k0", "k1", "k4"]
        assert "k4" in journal


def test_keys_tell_items_apart():
    prompt = [{"role": "user", "content": "a"}]
    keys = {
        item_key("eval", 0, prompt, "x"),
        item_key("tune", 0, prompt, "x"),
        item_key("eval", 1, prompt, "x"),
        item_key("eval", 0, prompt, "y"),
    }
    assert len(keys) == 4
    assert item_key("eval", 0, prompt, "x") == item_key("eval", 0, [{"content": "a", "role": "user"}], "x")
