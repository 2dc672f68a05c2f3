"""Reading sources: every format gives the same rows, and every problem names file, row and reason."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdpo.data.sources import read_rows
from cdpo.errors import StepError

ROWS = [
    {"prompt": "Äpfel?", "chosen": 'a "b"\nc', "rejected": "x,y"},
    {"prompt": "鳥", "chosen": "\u2028", "rejected": "z"},
]


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")


def write_json(path: Path) -> None:
    path.write_text(json.dumps(ROWS, indent=2), encoding="utf-8")


def write_csv(path: Path) -> None:
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)


def write_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "jsonl": write_jsonl,
    "ndjson": write_jsonl,
    "json": write_json,
    "csv": write_csv,
    "parquet": write_parquet,
}


def values(*paths: Path) -> list[dict[str, Any]]:
    return [row.values for row in read_rows(paths)]


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows.v1.{kind}"
    WRITERS[kind](path)
    assert values(path) == ROWS
    assert values(path, path) == ROWS * 2
    if kind != "parquet":
        packed = path.with_name(path.name + ".gz")
        packed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        assert values(packed) == ROWS


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
@pytest.mark.parametrize("change", ["bom", "crlf", "blank lines"])
def test_marks_and_line_ends_of_other_systems(tmp_path: Path, kind: str, change: str) -> None:
    path = tmp_path / f"rows.{kind}"
    plain = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "d", "chosen": "e", "rejected": "f"}]
    lines = {
        "jsonl": [json.dumps(row) for row in plain],
        "json": json.dumps(plain, indent=1).split("\n"),
        "csv": ["prompt,chosen,rejected", "a,b,c", "d,e,f"],
    }[kind]
    text = {"bom": "\ufeff" + "\n".join(lines), "crlf": "\r\n".join(lines) + "\r\n", "blank lines": "\n\n".join(lines)}
    path.write_bytes(text[change].encode())
    assert values(path) == plain


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20)), min_size=1, max_size=5))
def test_json_lines_come_back_as_written(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    path = tmp_path / "any.jsonl"
    path.write_bytes(b"\n".join(json.dumps(row).encode() for row in rows))
    assert values(path) == rows


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", b'{"a": 1}\n\n{"a": \n', "a.jsonl, line 3: malformed JSON: Expecting value (column"),
        ("a.jsonl", b'{"a": 1}\n{"a": 1} x\n', "a.jsonl, line 2: malformed JSON: Extra data (column 10)"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', "a.jsonl, line 2: expected an object with named columns, got list"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "a.jsonl, line 2: not UTF-8 text"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl, line 1: malformed JSON"),
        ("a.jsonl", b"", "a.jsonl: holds no rows"),
        ("a.jsonl", b"\n \n", "a.jsonl: holds no rows"),
        ("a.json", b"", "a.json: holds no rows"),
        ("a.json", b"[]", "a.json: holds no rows"),
        ("a.json", b'{"a": 1}', "a.json: expected a list of objects, got dict; one object a line is .jsonl"),
        ("a.json", b'[{"a": 1},\n {"a" 1}]', "a.json: malformed JSON: Expecting ':' delimiter (line 2, column 7)"),
        ("a.json", b'[{"a": 1}, 3]', "a.json, row 2: expected an object"),
        ("a.json", b'[\n"\xff"]', "a.json, line 2: not UTF-8 text"),
        ("a.csv", b"a,b\n", "a.csv: holds no rows"),
        ("a.csv", b"a,b\n1,2\n\n3\n", "a.csv, row 2 (line 4): 1 fields, the header has 2"),
        ("a.csv", b'a,b\n1,"2\n', "a.csv, row 1 (line 2): malformed CSV"),
        ("a.csv", b"a,a\n1,2\n", "a.csv: the column 'a' is there twice"),
        ("a.parquet", b"PAR1 not", "a.parquet: not a readable parquet file"),
        ("a.jsonl.gz", b"not gzip", "a.jsonl.gz: not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 999, mtime=0)[:40], "a.jsonl.gz: not a whole gzip file"),
        ("a.txt", b"a", "a.txt: unknown kind of file; cdpo reads .jsonl, .json, .csv, .parquet"),
        ("a", b"a", "a: unknown kind of file"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StepError) as caught:
        values(tmp_path / name)
    assert f"{tmp_path}/{message}" in str(caught.value)


def test_a_missing_file_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"gone\.jsonl: no such file"):
        values(tmp_path / "gone.jsonl")
    with pytest.raises(StepError, match="names no file"):
        values()


def test_a_missing_column_says_which_are_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path)
    with pytest.raises(StepError) as caught:
        list(read_rows([path], ["prompt", "choosen", "label"]))
    assert f"{path}: no column 'choosen', 'label'; there are: 'prompt', 'chosen', 'rejected'" in str(caught.value)


def test_places_count_lines_and_records(tmp_path: Path) -> None:
    lines = tmp_path / "rows.jsonl"
    lines.write_text('\n{"a": 1}\n\n{"a": 2}\n')
    assert [row.place for row in read_rows([lines])] == [f"{lines}, line 2", f"{lines}, line 4"]
    table = tmp_path / "rows.csv"
    table.write_text("a\n1\n2\n")
    assert [row.place for row in read_rows([table])] == [f"{table}, row 1", f"{table}, row 2"]
