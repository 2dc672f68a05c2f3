"""Raw rows from local files: JSON lines, JSON, CSV and parquet, the text formats also gzipped.

Every problem names file and row.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cdpo.errors import StepError


class SourceRow(NamedTuple):
    file: Path
    #: 1-based: the line of a JSON-lines file, the record of any other
    number: int
    values: dict[str, Any]

    @property
    def place(self) -> str:
        return f"{self.file}, {'line' if _suffix(self.file) == '.jsonl' else 'row'} {self.number}"


def read_rows(files: Sequence[Path], columns: Sequence[str] = ()) -> Iterator[SourceRow]:
    """The rows of all files in order.

    Raises StepError for a file that is absent, empty, of an unknown kind or malformed, and for one whose first row
    lacks one of `columns`.
    """
    if not files:
        raise StepError("the dataset names no file")
    for path in files:
        reader = READERS.get(_suffix(path))
        if reader is None:
            raise StepError(f"{path}: unknown kind of file; cdpo reads {', '.join(READERS)} (text formats also as .gz)")
        if not path.is_file():
            raise StepError(f"{path}: no such file")
        empty = True
        for number, values in reader(path):
            if empty:
                _require_columns(path, values, columns)
                empty = False
            yield SourceRow(path, number, values)
        if empty:
            raise StepError(f"{path}: holds no rows")


def _require_columns(path: Path, values: dict[str, Any], columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in values]
    if missing:
        raise StepError(
            f"{path}: no column {', '.join(map(repr, missing))}; there are: "
            f"{', '.join(map(repr, values)) or 'none'}. Name another rule, or rename the columns"
        )


def _suffix(path: Path) -> str:
    parts = [part.lower() for part in path.suffixes]
    if parts and parts[-1] == ".gz":
        parts.pop()
    last = parts[-1] if parts else ""
    return ".jsonl" if last == ".ndjson" else last


def _bytes(path: Path) -> bytes:
    if path.suffix.lower() != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as stream:
            return stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise StepError(f"{path}: not a whole gzip file ({error})") from error


def _decoded(path: Path, data: bytes, first_line: int = 1) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        raise StepError(f"{path}, line {line}: not UTF-8 text ({error.reason}); convert the file") from error


def _without_bom(data: bytes) -> bytes:
    return data.removeprefix(b"\xef\xbb\xbf")


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # lines end in \n only: str.splitlines would also cut at U+2028, which JSON strings may hold
    for number, line in enumerate(_without_bom(_bytes(path)).split(b"\n"), start=1):
        if line.strip():
            value = _parsed(_decoded(path, line, number), f"{path}, line {number}")
            yield number, _object(value, f"{path}, line {number}")


def _json_list(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    data = _decoded(path, _without_bom(_bytes(path)))
    if not data.strip():
        return
    value = _parsed(data, str(path))
    if not isinstance(value, list):
        raise StepError(f"{path}: expected a list of objects, got {type(value).__name__}; one object a line is .jsonl")
    for number, each in enumerate(value, start=1):
        yield number, _object(each, f"{path}, row {number}")


def _parsed(data: str, place: str) -> Any:
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise StepError(f"{place}: malformed JSON: {error.msg} ({where})") from error
    except RecursionError as error:
        raise StepError(f"{place}: malformed JSON: nested too deeply") from error


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise StepError(f"{place}: expected an object with named columns, got {type(value).__name__}")
    return value


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    data = _decoded(path, _without_bom(_bytes(path)))
    reader = csv.reader(io.StringIO(data, newline=""), strict=True)
    csv.field_size_limit(2**31 - 1)  # a field may be a whole conversation; the default ends at 131,072 characters
    number = 0
    header: list[str] | None = None
    try:
        for fields in reader:
            if not fields:
                continue
            if header is None:
                header = fields
                twice = sorted({name for name in header if header.count(name) > 1})
                if twice:
                    raise StepError(f"{path}: the column {twice[0]!r} is there twice")
                continue
            number += 1
            if len(fields) != len(header):
                raise StepError(
                    f"{path}, row {number} (line {reader.line_num}): {len(fields)} fields, the header has {len(header)}"
                )
            yield number, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise StepError(f"{path}, row {number + 1} (line {reader.line_num}): malformed CSV: {error}") from error


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield number, values
    except (pa.ArrowException, OSError) as error:
        raise StepError(f"{path}: not a readable parquet file after row {number}: {error}") from error


READERS: dict[str, Callable[[Path], Iterator[tuple[int, dict[str, Any]]]]] = {
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".csv": _csv,
    ".parquet": _parquet,
}
