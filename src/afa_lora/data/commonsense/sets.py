"""Test sets and the training mix, from a folder or the hub."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from afa_lora.data.commonsense.files import Part, not_there, read_mixed, read_set
from afa_lora.data.commonsense.hub import read_split
from afa_lora.data.commonsense.items import CommonsenseItem
from afa_lora.data.commonsense.tasks import Task, find_tasks
from afa_lora.data.records import DataError, counted, leaving_out

Report = Callable[[str], None]


def read_tests(
    folder: Path | None, tasks: Sequence[str] | None = None, limit: int | None = None, report: Report = print
) -> list[CommonsenseItem]:
    """The test items of the named tasks, task by task in the paper's order.

    PIQA, Social IQA, WinoGrande, HellaSwag and BoolQ are tested on their validation sets, as in LLM-Adapters: the
    labels of their test sets are not public.

    Args:
        folder: holds the data in the form that `afa_lora.data.commonsense.files.read_set` reads; None takes the hub's.
        tasks: keys of `TASKS`; all eight unless given.
        limit: so many of each task, or all where there are fewer, drawn with a seed that is the task's: a smaller draw
            is the beginning of a larger one, whichever tasks are drawn beside it.
        report: takes one line for each set that is read, and one for the draw.

    Raises:
        DataError: an unknown task, a set that is not there, or items that cannot be read.
    """
    chosen = find_tasks(tasks)
    sets = _read_sets(folder, chosen, "test", report)
    missing = [task for task in chosen if task.name not in sets]
    if folder is not None and missing:
        rest = f"\nTo test on the others alone, name them: {', '.join(sets)}." if sets else ""
        raise DataError(not_there(folder, missing, "test") + rest)
    if limit is None:
        return [item for items in sets.values() for item in items]
    drawn = [item for name, items in sets.items() for item in _draw(name, items)[:limit]]
    report(f"{counted(len(drawn), 'test item(s)')}: {limit} of each task, or all it has, drawn by a fixed seed.")
    return drawn


def read_mix(folder: Path | None, tasks: Sequence[str] | None = None, report: Report = print) -> list[CommonsenseItem]:
    """The train sets of the named tasks, task by task, without the items that are in a test set.

    Args:
        folder: as for `read_tests`. Items of all its test sets are left out; from the hub, of the named tasks'.
        tasks: keys of `TASKS`; unless given, all whose train set is there, and the others are reported.
        report: takes one line for each train set that is read, and one or two for the whole.

    Raises:
        DataError: an unknown task, a named task without a train set, none at all, or items that cannot be read.
    """
    chosen = find_tasks(tasks)
    sets = _read_sets(folder, chosen, "train", report)
    missing = [task for task in chosen if task.name not in sets]
    if folder is not None and missing and (tasks is not None or not sets):
        raise DataError(not_there(folder, missing, "train"))
    if missing:
        report(f"{folder}: no train set of {', '.join(task.name for task in missing)}.")
    tests = _read_sets(folder, chosen if folder is None else find_tasks(None), "test", lambda line: None)
    return _untested((item for items in sets.values() for item in items), tests, report)


def read_mix_file(path: Path, folder: Path | None, report: Report = print) -> list[CommonsenseItem]:
    """The items of a file such as ``commonsense_170k.json``, without those that are in a test set.

    Args:
        path: a list of items in the LLM-Adapters form; the same item may be in it twice.
        folder: as for `read_tests`; None takes the hub's test sets.
        report: takes one line for the file, and one for the whole.

    Raises:
        DataError: no such file or folder, the hub cannot be reached, or items that cannot be read.
    """
    items = read_mixed(Path(os.path.expanduser(path)), report)
    return _untested(items, _read_sets(folder, find_tasks(None), "test", lambda line: None), report)


def items_fingerprint(items: Sequence[CommonsenseItem]) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over all that is in the items, in order."""
    text = json.dumps([asdict(item) for item in items], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read_sets(
    folder: Path | None, tasks: Sequence[Task], part: Part, report: Report
) -> dict[str, list[CommonsenseItem]]:
    """What there is of the tasks' sets, by name."""
    if folder is None:
        return {task.name: read_split(task, "train" if part == "train" else task.test, report) for task in tasks}
    folder = Path(os.path.expanduser(folder))
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder (looked for it in {Path.cwd()}).")
    found = {task.name: read_set(folder, task, part, report) for task in tasks}
    return {name: items for name, items in found.items() if items is not None}


def _draw(name: str, items: Sequence[CommonsenseItem]) -> list[CommonsenseItem]:
    return random.Random(f"test items of {name}").sample(items, len(items))


def _untested(
    items: Iterable[CommonsenseItem], tests: dict[str, list[CommonsenseItem]], report: Report
) -> list[CommonsenseItem]:
    """Leave out the items whose instruction is in a test set, and report the counts and how many are there twice."""
    tested = {item.instruction for test in tests.values() for item in test}
    read = list(items)
    kept = [item for item in read if item.instruction not in tested]
    if not kept:
        raise DataError(f"There is nothing to train on: all {len(read)} train items are also in a test set.")
    leaks = Counter(item.task for item in read if item.instruction in tested)
    left_out = {f"{task} item(s) found in a test set": count for task, count in leaks.items()}
    repeated = len(kept) - len({item.instruction for item in kept})
    twice = f", {repeated} of them with the instruction of an earlier one" if repeated else ""
    counts = ", ".join(f"{task} {count}" for task, count in Counter(item.task for item in kept).items())
    report(
        f"{counted(len(kept), 'train item(s)')}{twice} ({counts}), compared with {counted(len(tests), 'test set(s)')}"
        f"{leaving_out(left_out)}."
    )
    return kept
