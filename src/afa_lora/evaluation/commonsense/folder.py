"""The folder of an evaluation: whose it is, the items answered so far, and the numbers at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from afa_lora.core.errors import AfaLoraError
from afa_lora.files import remove_leftovers, write_atomic
from afa_lora.settings import differences

SETTINGS, ITEMS, RESULTS = "settings.json", "items.jsonl", "results.json"
WHOSE = {"model", "adapter", "weights"}  # the model's names, which may change, and its fingerprint

Line = dict[str, Any]
"""One answered item, as `EvaluationFolder.items` holds it."""


class EvaluationError(AfaLoraError, ValueError):
    """An evaluation cannot be made, continued, read or compared."""


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        folder: where it lies.
        settings: what was evaluated, how, and on what.
        results: accuracies and intervals.
        correct: for each task, whether each item (by its index in the task's set) was answered right; empty if the
            evaluation was another program's, which gives no items.
    """

    folder: Path
    settings: Mapping[str, Any]
    results: Mapping[str, Any]
    correct: Mapping[str, Mapping[int, bool]]


@dataclass(frozen=True)
class EvaluationFolder:
    """Where the parts of an evaluation lie below ``path``."""

    path: Path

    @property
    def settings(self) -> Path:
        """What is evaluated, how, and on what."""
        return self.path / SETTINGS

    @property
    def items(self) -> Path:
        """The answered items, one JSON object a line, in the order in which they were answered."""
        return self.path / ITEMS

    @property
    def results(self) -> Path:
        """The numbers; an evaluation counts as finished once they are here."""
        return self.path / RESULTS

    @contextmanager
    def claimed(self, settings: Mapping[str, Any]) -> Iterator[list[Line]]:
        """Hold the folder for an evaluation with these settings; yields the items that are answered already.

        Raises:
            EvaluationError: the folder holds something else, or another process is at it.
        """
        self._check(settings)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise EvaluationError(
                f"{self.path} cannot be made: a file is in its place. Choose another folder."
            ) from error
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise EvaluationError(f"Another process is evaluating into {self.path} now.") from None
        with lock:
            self._check(settings)  # another process may have begun here a moment ago
            remove_leftovers(self.path)
            if not self.settings.is_file():
                write_atomic(self.settings, _dumped(settings))
            self._drop_partial_line()
            yield read_lines(self.items)

    def append(self, lines: Sequence[Line]) -> None:
        """Add answered items; they are on disk when this returns."""
        with self.items.open("ab") as stream:
            stream.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
            stream.flush()
            os.fsync(stream.fileno())

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write the numbers."""
        write_atomic(self.results, _dumped(results))

    def _check(self, settings: Mapping[str, Any]) -> None:
        if not self.settings.is_file():
            foreign = sorted(file.name for file in self.path.glob("[!.]*"))
            if foreign:
                raise EvaluationError(
                    f"{self.path} holds files that are not of an evaluation ({', '.join(foreign[:3])}"
                    f"{', …' if len(foreign) > 3 else ''}). Choose another folder (--out)."
                )
            return
        before = _read_json(self.settings)
        if changes := _changes(before, settings):
            raise EvaluationError(
                "\n  ".join([f"{self.path} holds another evaluation. There it is, here it is:", *changes])
                + "\nChoose another folder (--out), or remove that one. Nothing in it was changed."
            )

    def _drop_partial_line(self) -> None:
        """Cut off what a kill has left of a line."""
        if self.items.is_file():
            content = self.items.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(self.items, whole)


def read_evaluation(folder: Path) -> Evaluation:
    """Read a finished evaluation.

    Raises:
        EvaluationError: there is none in ``folder``, or it is not finished, or a file of it is damaged, or the items
            are not those of the numbers.
    """
    files = EvaluationFolder(folder)
    if not files.results.is_file():
        if files.settings.is_file():
            count = len(read_lines(files.items))
            raise EvaluationError(
                f"{folder} holds an evaluation that is not finished: {count} items are answered, and there is no "
                f"{RESULTS}. The command that began it goes on with it."
            )
        raise EvaluationError(f"{folder} holds no evaluation: there is no {RESULTS}.")
    results = _read_json(files.results)
    tasks = results.get("tasks")
    if not isinstance(tasks, dict) or not all(isinstance(numbers, dict) for numbers in tasks.values()):
        raise EvaluationError(f"{files.results} is not of an evaluation of the eight tasks.")
    settings = _read_json(files.settings) if files.settings.is_file() else results.get("settings", {})
    correct: dict[str, dict[int, bool]] = {task: {} for task in tasks} if files.items.is_file() else {}
    for line in read_lines(files.items):
        correct.setdefault(line["task"], {})[line["index"]] = line["correct"]
    for task in {**tasks, **correct}:
        _check_counts(files, task, tasks.get(task, {}), correct.get(task, {}))
    return Evaluation(folder, settings, results, correct)


def _check_counts(files: EvaluationFolder, task: str, numbers: Mapping[str, Any], correct: Mapping[int, bool]) -> None:
    """Refuse items of a task that are not those of its numbers; another program's count no right answers."""
    if "correct" not in numbers and not correct:
        return
    remedy = f"Restore it, or remove {files.results} and evaluate again: only what is missing is answered anew."
    if not files.items.is_file():
        raise EvaluationError(f"{files.path} gives no items: {files.items} is not there. {remedy}")
    items, right = len(correct), sum(value is True for value in correct.values())
    if (items, right) != (numbers.get("items", 0), numbers.get("correct", 0)):
        raise EvaluationError(
            f"{files.items} holds {items} item{'s' * (items != 1)} of {task}, {right} of them right, but {RESULTS} "
            f"tells of {numbers.get('items', 0)} and {numbers.get('correct', 0)}. {remedy}"
        )


def read_lines(path: Path) -> list[Line]:
    """The items in a file, a last line without its end left out.

    Raises:
        EvaluationError: a line is no such item.
    """
    if not path.is_file():
        return []
    lines = []
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise EvaluationError(f"{path}, line {number}: {error}. Remove that line.") from error
        if not isinstance(line, dict) or not {"task", "index", "answer", "given", "correct"} <= line.keys():
            raise EvaluationError(f"{path}, line {number} is not an answered item. Remove that line.")
        lines.append(line)
    return lines


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Where two evaluations differ in what decides the answers, names beside the fingerprints of weights."""
    changes = list(differences(old, new, WHOSE))
    if old.get("weights") != new.get("weights"):
        changes.append(f"weights: {_named(old)} → {_named(new)}")
    return changes


def _named(settings: Mapping[str, Any]) -> str:
    names = [str(settings[name]) for name in ("model", "adapter") if settings.get(name)]
    return repr(settings.get("weights")) + (f" ({' + '.join(names)})" if names else "")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise EvaluationError(f"{path} is damaged: {error}. Restore it, or choose another folder.") from error
    if not isinstance(content, dict):
        raise EvaluationError(f"{path} is damaged: it holds no JSON object. Restore it, or choose another folder.")
    return content


def _dumped(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
