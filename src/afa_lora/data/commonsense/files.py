"""A local folder of the eight tasks: ``<task>/train.json`` and ``<task>/test.json``, or the original files."""

from __future__ import annotations

import bz2
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from afa_lora.data.commonsense.items import CommonsenseItem, read_items
from afa_lora.data.commonsense.tasks import UNKNOWN, Task, accept_any
from afa_lora.data.files import Row, find_files, json_lines, rows
from afa_lora.data.records import DataError, counted

Part = Literal["train", "test"]

RAW = (".jsonl", ".jsonl.gz", ".parquet", ".zip", ".txt.bz2")
"""The kinds of original files, the best first: HellaSwag's ``.txt.bz2`` lacks the marks that LLM-Adapters keeps."""

WORDS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
"""A word in an original file's name, such as ``raw_train_l.jsonl``, for each split."""

MOST_BYTES = 256 * 2**20  # an unpacked file that is larger is none of these data sets

BZ2_LINES = 6  # of an item: "activity label: context", the right ending's number from 0, four endings


def read_set(folder: Path, task: Task, part: Part, report: Callable[[str], None]) -> list[CommonsenseItem] | None:
    """The train or test set of a task, or None where the folder has none; one line about it goes to ``report``.

    The LLM-Adapters form is preferred. Of several original files the first of `RAW` is taken, and the largest of its
    kind: WinoGrande's sizes are subsets of each other.

    Raises:
        DataError: a file that cannot be read, or items in it: which, and the fields.
    """
    where = folder / task.name
    raw = _find_raw(where, _words(task, part))
    ready = where / f"{part}.json"
    if ready.is_file():
        items = read_items(str(ready), rows(ready), task.accept)
        report(f"{ready}: {len(items)} {part} items of {task.name}{_unread(raw)}.")
        return items
    if not raw:
        return None
    items = read_items(str(raw[0]), _raw_rows(raw[0], task, part), task.render)
    alike = sum(_kind(file) == _kind(raw[0]) for file in raw)
    largest = f", the largest of {alike} {_kind(raw[0])} files" if alike > 1 else ""
    rendered = f"rendered from the original records{largest}"
    report(f"{raw[0]}: {len(items)} {part} items of {task.name}, {rendered}{_unread(raw[1:])}.")
    return items


def not_there(folder: Path, tasks: Sequence[Task], part: Part) -> str:
    """A message about sets that a folder does not have: what was looked for."""
    words = "".join(f"\n  {task.name}: {', '.join(_words(task, part))}" for task in tasks)
    return (
        f"{folder} has no {part} set of {', '.join(task.name for task in tasks)}. Looked for TASK/{part}.json, or an "
        f"original file in TASK/ ({', '.join(RAW)}) with one of these words in its name:{words}"
    )


def read_mixed(path: Path, report: Callable[[str], None]) -> list[CommonsenseItem]:
    """A file of items of any of the tasks in the LLM-Adapters form, such as ``commonsense_170k.json``.

    Raises:
        DataError: no such file, one of another kind, a folder, or items that cannot be read.
    """
    if path.is_dir():
        raise DataError(f"data.file={path} is a folder. Name a file; the folder of the tasks is data.folder.")
    (path,) = find_files(path, report)
    items = read_items(str(path), rows(path), accept_any)
    shared = sum(item.task == UNKNOWN for item in items)
    which = f"; {shared} of ARC, OpenBookQA or Social IQA: these share a form, so the task is unknown" if shared else ""
    report(f"{path}: {counted(len(items), 'item(s)')}{which}.")
    return items


def _unread(files: list[Path]) -> str:
    return f"; not read: {', '.join(file.name for file in files)}" if files else ""


def _words(task: Task, part: Part) -> tuple[str, ...]:
    return WORDS["train" if part == "train" else task.test]


def _find_raw(folder: Path, words: Sequence[str]) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [file for file in folder.iterdir() if file.is_file() and _kind(file) in RAW and _has(file.name, words)]
    return sorted(found, key=lambda file: (RAW.index(_kind(file)), -file.stat().st_size, file.name))


def _kind(path: Path) -> str:
    return next((kind for kind in RAW if path.name.lower().endswith(kind)), "")


def _has(name: str, words: Sequence[str]) -> bool:
    return not set(words).isdisjoint(re.findall("[a-z]+", name.lower()))


def _raw_rows(path: Path, task: Task, part: Part) -> Iterable[Row]:
    kind = _kind(path)
    if kind == ".txt.bz2":
        return _bz2_rows(path)
    if kind == ".zip":
        return _zip_rows(path, task, _words(task, part))
    labels = path.with_name(f"{path.name[: -len(kind)]}-labels.lst")
    if not labels.is_file():
        return rows(path)
    try:
        content = labels.read_bytes()
    except OSError as error:
        raise DataError(f"{labels} cannot be read: {error.strerror}.") from error
    return _with_labels(str(path), rows(path), task.label, str(labels), _decode(str(labels), content))


def _with_labels(origin: str, records: Iterable[Row], column: str, labels_origin: str, text: str) -> Iterator[Row]:
    """Put the n-th label into the n-th record."""
    found = list(records)
    labels = text.split()
    if len(found) != len(labels):
        raise DataError(
            f"{origin} has {counted(len(found), 'item(s)')}, {labels_origin} {counted(len(labels), 'label(s)')}. "
            "There must be one label a line for each item."
        )
    for (place, record), label in zip(found, labels, strict=True):
        yield place, {**record, column: label} if isinstance(record, Mapping) else record


def _zip_rows(path: Path, task: Task, words: Sequence[str]) -> Iterator[Row]:
    """The largest JSON-lines member of the wanted split, and its labels; nothing else of the archive is unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            fitting = [info for name, info in members.items() if _fits(PurePosixPath(name), words)]
            if not fitting:
                raise DataError(f"{path} has no member such as {words[0]}.jsonl. It has: {', '.join(members)}.")
            chosen = max(fitting, key=lambda info: info.file_size)
            records = json_lines(_unpack(path, archive, chosen))
            places = ((f"line {number} of {chosen.filename}", record) for number, record in records)
            labels = members.get(f"{chosen.filename.removesuffix('.jsonl')}-labels.lst")
            if labels is None:
                yield from places
            else:
                origins = f"{path}: {chosen.filename}", labels.filename
                yield from _with_labels(origins[0], places, task.label, origins[1], _unpack(path, archive, labels))
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        # RuntimeError stands for a password
        raise DataError(f"{path}: this is no zip file that can be read: {error}.") from error


def _fits(member: PurePosixPath, words: Sequence[str]) -> bool:
    hidden = "__MACOSX" in member.parts or member.name.startswith(".")
    return member.suffix == ".jsonl" and not hidden and _has(member.name, words)


def _unpack(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> str:
    if member.file_size > MOST_BYTES:
        raise DataError(
            f"{path}: {member.filename} unpacks to {member.file_size} bytes; at most {MOST_BYTES} are read."
        )
    return _decode(f"{path}: {member.filename}", archive.read(member))


def _bz2_rows(path: Path) -> Iterator[Row]:
    """HellaSwag's items, six lines each."""
    try:
        with bz2.open(path) as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: this is no whole bz2 file: {error}.") from error
    if len(content) > MOST_BYTES:
        raise DataError(f"{path} unpacks to more than {MOST_BYTES} bytes, which are the most that are read.")
    lines = _decode(str(path), content).removesuffix("\n").split("\n")
    for start in range(0, len(lines), BZ2_LINES):
        yield f"line {start + 1}", _six_lines(lines[start : start + BZ2_LINES])


def _six_lines(lines: list[str]) -> dict[str, Any] | DataError:
    activity, colon, context = lines[0].partition(": ")
    if len(lines) < BZ2_LINES or not colon:
        return DataError("expected six lines: 'activity: context', the right ending's number, and four endings.")
    return {"activity_label": activity, "ctx": context, "label": lines[1], "endings": lines[2:]}


def _decode(origin: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{origin}: this is not UTF-8 text ({error.reason}).") from error
