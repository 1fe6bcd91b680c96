"""Local files: which there are, and the rows in each. Whatever is wrong with one, the message says where and what."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow.parquet import ParquetFile

from afa_lora.core.errors import closest
from afa_lora.data.forms import list_hint, read_records
from afa_lora.data.records import DataError, Record, counted
from afa_lora.data.sources import FileData

Row = tuple[str, Any]
"""Where a row stands in its file, such as ``line 17``, and what it holds: an object, or the `DataError` about it."""

MOST_NAMES = 10  # files that a line lists

METADATA = ("dataset_info.json", "dataset_infos.json", "state.json")
"""Files that the library `datasets` writes beside the data; they hold no records."""


def read_files(path: Path, source: FileData, report: Callable[[str], None]) -> list[Record]:
    """Read every record of a file, or of all files in a folder; one line a file goes to ``report``.

    Raises:
        DataError: no such file or folder, a file of an unknown kind, not UTF-8, malformed, or records that
            `afa_lora.data.forms.read_record` refuses: the file, the lines (Parquet: the rows, from 1) and the faults.
    """
    files = find_files(path, report)
    records = [record for file in files for record in read_records(str(file), rows(file), source, report)]
    if not records:
        raise DataError(f"{path} holds no records to learn from.")
    return records


def find_files(path: Path, report: Callable[[str], None]) -> list[Path]:
    """The file itself, or all data files below a folder, sorted by name.

    In a folder, hidden files, `METADATA` and files of a kind that is not in `READERS` are passed over; one line to
    ``report`` names them, but for the hidden ones. A ``~`` at the start is the home folder.

    Raises:
        DataError: nothing is there, a folder without data files, or a file that is not of a kind in `READERS`.
    """
    path = Path(os.path.expanduser(path))  # Path.expanduser raises a RuntimeError for the home of nobody
    if path.is_dir():
        return _files_below(path, report)
    if not path.is_file():
        parent = path.parent
        hint = closest(path.name, [file.name for file in parent.iterdir()]) if parent.is_dir() else ""
        raise DataError(f"{path}: there is no such file or folder (looked for it in {Path.cwd()}).{hint}")
    if _kind(path) not in READERS:
        raise DataError(f"{path}: not of a known kind, which are {_KINDS}.{_tabs([path])}")
    return [path]


def _files_below(folder: Path, report: Callable[[str], None]) -> list[Path]:
    shown = sorted(file for file in folder.rglob("*") if file.is_file() and not _hidden(file.relative_to(folder)))
    found = [file for file in shown if _holds_data(file)]
    passed = [file for file in shown if not _holds_data(file)]
    names = ", ".join(str(file.relative_to(folder)) for file in passed[:MOST_NAMES])
    more = f" and {len(passed) - MOST_NAMES} more" if len(passed) > MOST_NAMES else ""
    over = f"passed over {counted(len(passed), 'file(s)')} of other kinds: {names}{more}." if passed else ""
    if not found:
        said = f" {over[0].upper()}{over[1:]}" if over else ""
        raise DataError(f"The folder {folder} has no data files in it. It may hold {_KINDS}.{said}{_tabs(passed)}")
    if over:
        report(f"{folder}: {over}")
    return found


def _holds_data(file: Path) -> bool:
    return _kind(file) in READERS and file.name not in METADATA


def _tabs(files: list[Path]) -> str:
    return f" {_COMMAS}." if any(".tsv" in _kind(file) for file in files) else ""


def rows(path: Path) -> Iterator[Row]:
    """Read a file of a known kind row by row; a row that cannot be read is a `DataError` in its place.

    Raises:
        DataError: the file is malformed, so that no further row can be told.
    """
    try:
        for place, row in READERS[_kind(path)](path):
            if not isinstance(row, dict | DataError):
                row = DataError(f"expected a JSON object, found {json.dumps(row)[:60]}.")
            yield place, row
    except _Malformed as error:
        raise DataError(f"{path}, line {error.line}: {error}.") from error


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:])


class _Malformed(ValueError):
    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if _kind(path).endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}: this is no whole gzip file: {error}.") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _Malformed(line, f"this is not UTF-8 text ({error.reason}); save the file as UTF-8") from error


def _json_rows(path: Path) -> Iterator[Row]:
    """A JSON array, or JSON lines."""
    text = _read_text(path)
    if text.lstrip().startswith("["):
        found = _array_items(text)
    else:
        _refuse_one_object(text)
        found = json_lines(text)
    return ((f"line {line}", record) for line, record in found)


def _refuse_one_object(text: str) -> None:
    """Refuse a file that is one object over several lines; in JSON lines each is in its own."""
    if "\n" not in text.strip():
        return
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:  # two objects or more
        return
    line = 1 + text[: text.index("{")].count("\n")
    raise _Malformed(line, f"one JSON object over several lines; give a list of records, [...]{list_hint(whole)}")


def json_lines(text: str) -> Iterator[tuple[int, Any]]:
    """Decode JSON lines: each that is not empty, with its number from 1; or the `DataError` of one that cannot be."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                yield number, DataError(f"this is not valid JSON: {error.msg} at column {error.colno}.")


def _array_items(text: str) -> Iterator[tuple[int, Any]]:
    """Decode a JSON array item by item, so that each item's line is known."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise _Malformed(error.lineno, f"this is not valid JSON: {error.msg} at column {error.colno}") from error
    line, before = 1, 0
    for start, item in array_entries(text):
        line, before = line + text.count("\n", before, start), start
        yield line, item


_BETWEEN = re.compile(r"[\s,]*")


def array_entries(text: str) -> Iterator[tuple[int, Any]]:
    """Decode a JSON array entry by entry, each with the character that it begins at.

    Raises:
        json.JSONDecodeError: it breaks off.
    """
    decoder, position = json.JSONDecoder(), text.index("[") + 1
    while True:
        between = _BETWEEN.match(text, position)
        assert between is not None  # it matches nothing, too
        start = between.end()
        if text[start : start + 1] == "]":
            return
        entry, position = decoder.raw_decode(text, start)
        yield start, entry


def _csv_rows(path: Path) -> Iterator[Row]:
    """Comma-separated values below a line of column names."""
    text = _read_text(path)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # no field is longer, and the default is 128 KiB
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] = []
    line = 1
    try:
        for values in reader:
            if values and not columns:
                columns = _header(values, line)
            elif values:
                if len(values) != len(columns):
                    fault = f"{counted(len(values), 'value(s)')} for the {counted(len(columns), 'column(s)')}"
                    yield f"line {line}", DataError(f"{fault} {', '.join(columns)}.")
                else:
                    yield f"line {line}", dict(zip(columns, values, strict=True))
            line = reader.line_num + 1  # a row may go over several lines: this one is its first
    except csv.Error as error:
        raise _Malformed(line, f"this is not valid CSV: {error}") from error


def _header(columns: list[str], line: int) -> list[str]:
    if len(columns) == 1 and re.search("[;\t]", columns[0]):
        raise _Malformed(line, f"the only column is {columns[0]!r}. {_COMMAS}")
    if len(set(columns)) < len(columns) or not all(column.strip() for column in columns):
        raise _Malformed(line, f"the first line must hold a different name for each column, not {', '.join(columns)}")
    return columns


def _parquet_rows(path: Path) -> Iterator[Row]:
    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}, after row {number}: this is no readable Parquet file: {error}.") from error


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".json": _json_rows,
    ".json.gz": _json_rows,
    ".jsonl": _json_rows,
    ".jsonl.gz": _json_rows,
    ".csv": _csv_rows,
    ".csv.gz": _csv_rows,
    ".parquet": _parquet_rows,
}
_KINDS = ", ".join(READERS)
_COMMAS = "Save it as .csv with commas between the columns"
