"""YAML 1.2 with places: scalars, duplicate keys, merges, aliases, and files that are no YAML."""

import pytest

from cdpo.config.problems import ConfigError
from cdpo.config.yaml_reader import MAX_DEPTH, parse_yaml, plain_scalar, read_yaml

SCALARS = {
    "1e-6": 1e-6,
    "1E3": 1000.0,
    "-.5": -0.5,
    "1.": 1.0,
    "+12": 12,
    "0123": 123,
    "0o17": 15,
    "0x1F": 31,
    "true": True,
    "False": False,
    "~": None,
    "null": None,
    "": None,
    ".inf": float("inf"),
    "-.INF": float("-inf"),
    # strings in YAML 1.2, though not in 1.1
    "no": "no",
    "yes": "yes",
    "on": "on",
    "off": "off",
    "y": "y",
    "1_000": "1_000",
    "12:30:45": "12:30:45",
    "2024-01-01": "2024-01-01",
    "0b11": "0b11",
    "1e": "1e",
    "e5": "e5",
    ".": ".",
    "nan": "nan",
    "inf": "inf",
    "tRUE": "tRUE",
}


@pytest.mark.parametrize("text", SCALARS)
def test_scalars_have_the_types_of_yaml_1_2(text: str) -> None:
    value = parse_yaml(f"a: {text}", "f").value["a"]
    assert value == SCALARS[text]
    assert type(value) is type(SCALARS[text])


def test_nan_is_a_number() -> None:
    assert all(plain_scalar(text) != plain_scalar(text) for text in (".nan", ".NaN", ".NAN"))


@pytest.mark.parametrize("text", ["'1'", '"1"', "!!str 1", "'no'", '"true"', "'~'", "|-\n  1"])
def test_quoted_scalars_are_text(text: str) -> None:
    assert isinstance(parse_yaml(f"a: {text}", "f").value["a"], str)


def test_numbers_without_end_do_not_stop_the_reader() -> None:
    """Python refuses to print whole numbers of more than 4300 digits; an error message would have to."""
    for text in ("9" * 5000, "0x" + "f" * 5000, "0o" + "7" * 5000):
        repr(parse_yaml(f"a: {text}", "f").value)


def test_every_key_and_value_has_its_place() -> None:
    document = parse_yaml("# first\na: 1\nb:\n  - {c: 2, d: [3, 4]}\n  -   e\n", "f")
    assert document.value == {"a": 1, "b": [{"c": 2, "d": [3, 4]}, "e"]}
    assert document.keys == {("a",): (2, 1), ("b",): (3, 1), ("b", 0, "c"): (4, 6), ("b", 0, "d"): (4, 12)}
    assert document.values == {
        (): (2, 1),
        ("a",): (2, 4),
        ("b",): (4, 3),
        ("b", 0): (4, 5),
        ("b", 0, "c"): (4, 9),
        ("b", 0, "d"): (4, 15),
        ("b", 0, "d", 0): (4, 16),
        ("b", 0, "d", 1): (4, 19),
        ("b", 1): (5, 7),
    }


def test_anchors_aliases_and_merges_keep_the_places_of_what_was_written() -> None:
    text = "base: &base {a: 1, b: {x: 2}}\nother: &other {b: 3, c: 4}\nboth: {<<: [*base, *other], a: 5}\nsame: *base\n"
    document = parse_yaml(text, "f")
    assert document.value["both"] == {"a": 5, "b": {"x": 2}, "c": 4}
    assert document.value["same"] == {"a": 1, "b": {"x": 2}}
    assert document.values[("both", "a")] == (3, 32)
    assert document.values[("both", "b", "x")] == (1, 27)
    assert document.keys[("both", "b", "x")] == (1, 24)
    assert document.keys[("both", "c")] == (2, 22)
    assert document.keys[("same", "a")] == (1, 14)


def test_a_quoted_merge_key_is_a_key() -> None:
    assert parse_yaml('{"<<": 1}', "f").value == {"<<": 1}


def test_windows_line_ends_a_byte_order_mark_and_unicode(tmp_path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes("\ufeffä: 1\r\nb: 'é'\r\n".encode())
    document = read_yaml(file)
    assert document.value == {"ä": 1, "b": "é"}
    assert document.keys[("b",)] == (2, 1)


WRONG = {
    "duplicate": ("a: 1\nb: 2\na: 3\n", 3, 1, "a: this key stands twice (first on line 1)"),
    "duplicate, quoted": ('a: 1\n"a": 3\n', 2, 1, "a: this key stands twice"),
    "duplicate deep": ("t:\n- {x: 1,\n   x: 2}\n", 3, 4, "t[0].x: this key stands twice (first on line 2)"),
    "duplicate in a merged mapping": ("b: {<<: {x: 1, x: 2}}\n", 1, 16, "b.x: this key stands twice"),
    "two merges": ("a: &a {x: 1}\nb: {<<: *a, <<: *a}\n", 2, 13, "b.<<: `<<` stands twice"),
    "merge of a list": ("b: {<<: [1]}\n", 1, 10, "b.<<: `<<` merges mappings only"),
    "tab": ("a:\n\tb: 1\n", 2, 1, "(top): not YAML: found character '\\t' that cannot start any token"),
    "unclosed": ("a: [1, 2\n", 2, 1, "(top): not YAML: expected ',' or ']', but got '<stream end>'"),
    "unknown alias": ("a: *nothing\n", 1, 4, "(top): not YAML: found undefined alias 'nothing'"),
    "two documents": ("a: 1\n---\nb: 2\n", 2, 1, "(top): not YAML: but found another document"),
    "control character": ("a: 1\nb: x\x07\n", 2, 5, "(top): not YAML: special characters are not allowed"),
    "half a character": ('a: "\\ud800"\n', 1, 4, "a: an escape that stands for no character"),
    "tagged": ("a: !!float 1\n", 1, 4, "a: the tag tag:yaml.org,2002:float is not allowed here"),
    "python": ("a: !!python/object:os.system {}\n", 1, 4, "a: the tag tag:yaml.org,2002:python/object:os.system"),
    "set": ("a: !!set {x, y}\n", 1, 4, "a: the tag tag:yaml.org,2002:set is not allowed here"),
    "list as key": ("a: {[1, 2]: 3}\n", 1, 5, "a: a key must be a plain word"),
    "empty": ("", 1, 1, "(top): the file is empty"),
    "comments only": ("# nothing\n", 1, 1, "(top): the file is empty"),
    "recursion": ("a: &a\n  b: *a\n", 1, 4, "a.b: an alias that contains itself"),
    "recursion by list": ("a: &a [1, *a]\n", 1, 4, "a[1]: an alias that contains itself"),
    "recursion by merge": ("a: &a {<<: *a}\n", 1, 4, "a: an alias that contains itself"),
    "deep": ("[" * 150 + "]" * 150, 1, MAX_DEPTH + 2, "nested too deeply"),
    "very deep": ("[" * 5000 + "]" * 5000, 1, 1, "(top): nested too deeply"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_stands_at_its_place(name: str) -> None:
    text, line, col, message = WRONG[name]
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "f.yaml")
    (problem,) = caught.value.problems
    assert (problem.line, problem.col) == (line, col), str(problem)
    assert message in str(problem)
    assert str(problem).startswith(f"f.yaml:{line}:{col}: ")
    assert caught.value.exit_code == 2


def test_all_duplicates_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml("a: 1\na: 2\nb: {c: 1, c: 2}\na: 4\n", "f")
    assert [(each.line, each.col) for each in caught.value.problems] == [(2, 1), (3, 11), (4, 1)]


def test_aliases_that_multiply_are_refused_in_time() -> None:
    """Nine lists of nine aliases each would be 9^9 values; merges multiply without making a single value."""
    lists = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
    merges = "a0: &a0 {}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 60))
    for text in (lists, merges):
        with pytest.raises(ConfigError, match="aliases that multiply"):
            parse_yaml(text, "f")


def test_files_that_cannot_be_read(tmp_path) -> None:
    (tmp_path / "latin").write_bytes("a: ä".encode("latin-1"))
    for name, message in (
        ("none", "there is no such file"),
        (".", "this is a folder, not a file"),
        ("latin", "not UTF-8 text (unexpected end of data at byte 3)"),
    ):
        with pytest.raises(ConfigError, match="1:1") as caught:
            read_yaml(tmp_path / name)
        assert message in str(caught.value)


def test_a_problem_shows_its_line_with_a_caret(tmp_path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("x: 1\nlonger: {a: 1, a: 2}\n")
    with pytest.raises(ConfigError) as caught:
        read_yaml(file)
    assert str(caught.value).splitlines()[1:] == ["    longer: {a: 1, a: 2}", "                   ^"]


def test_a_problem_is_one_line_whatever_a_key_holds() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml('"a\\nb\\e": 1\n"a\\nb\\e": 2\n', "f")
    assert "f:2:1: a\\nb\\x1b: this key" in str(caught.value)
    assert len(str(caught.value.problems[0]).splitlines()) == 1
