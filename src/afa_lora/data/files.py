"""Local JSON and JSONL files. Whatever is wrong with one, the message names the file, the line and the fault."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from afa_lora.data.records import DataError, Sample, read_record

_BETWEEN = re.compile(r"[\s,]*")


def read_samples(path: Path, system: str | None = None) -> list[Sample]:
    """Read every record of a JSON array or of JSON lines.

    Raises:
        DataError: no such file, not UTF-8, not JSON, or a record that `read_record` refuses.
    """
    samples: list[Sample] = []
    for line, record in _records(path):
        try:
            samples += read_record(record, system)
        except DataError as error:
            raise DataError(f"{path}, line {line}: the record {error}.") from error
    if not samples:
        raise DataError(f"{path} holds no records.")
    return samples


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each record with the number of the line on which it starts."""
    text = _read_text(path)
    found = _array_items(text) if text.lstrip().startswith("[") else _lines(text)
    try:
        for line, record in found:
            if not isinstance(record, dict):
                raise DataError(f"{path}, line {line}: expected a JSON object, found {json.dumps(record)[:60]}.")
            yield line, record
    except _Malformed as error:
        raise DataError(f"{path}, line {error.line}: this is not valid JSON: {error}.") from error


class _Malformed(ValueError):
    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def _lines(text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise _Malformed(number, f"{error.msg} at column {error.colno}") from error


def _array_items(text: str) -> Iterator[tuple[int, Any]]:
    """Decode a JSON array item by item, so that each item's line is known."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise _Malformed(error.lineno, f"{error.msg} at column {error.colno}") from error
    decoder = json.JSONDecoder()
    position, line = text.index("[") + 1, 1 + text.count("\n", 0, text.index("["))
    while True:
        start = _skip(text, position)
        line += text.count("\n", position, start)
        if text[start] == "]":
            return
        item, position = decoder.raw_decode(text, start)
        yield line, item
        line += text.count("\n", start, position)


def _skip(text: str, position: int) -> int:
    match = _BETWEEN.match(text, position)
    return match.end() if match else position


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path}: there is no such file (looked for it in {Path.cwd()}).")
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: this is not UTF-8 text ({error.reason}).") from error
