"""The numbers of an evaluation, and the comparison of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from afa_lora.data.commonsense import TASKS
from afa_lora.evaluation.commonsense.folder import WHOSE, Evaluation, EvaluationError, Line
from afa_lora.evaluation.statistics import (
    PairedTest,
    bootstrap_average_interval,
    bootstrap_interval,
    mcnemar,
    paired_test,
)
from afa_lora.running.provenance import environment
from afa_lora.settings import differences

SOURCE = "afa-lora"
SAME = ("protocol", "source")  # what two evaluations that are compared must have in common, beside the items


def summarise(lines: Sequence[Line], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``results.json``.

    Args:
        lines: all items, answered, task by task in the order of the table.
        settings: what was evaluated.
    """
    generated = settings["protocol"] == "paper"
    by_task: dict[str, dict[str, Any]] = {}
    answers = []
    for task in dict.fromkeys(line["task"] for line in lines):
        answered = [line for line in lines if line["task"] == task]
        answers.append(np.array([line["correct"] for line in answered]))
        by_task[task] = {
            "correct": int(answers[-1].sum()),
            "items": len(answered),
            "unparsed": sum(line["given"] is None for line in answered) if generated else None,
            "accuracy": float(answers[-1].mean()),
            "interval_95": bootstrap_interval(answers[-1]),
        }
    seconds = sum(line["seconds"] for line in lines)
    return {
        "protocol": settings["protocol"],
        "source": SOURCE,
        "tasks": by_task,
        "average": {
            "accuracy": float(np.mean([numbers["accuracy"] for numbers in by_task.values()])),
            "interval_95": bootstrap_average_interval(answers),
        },
        "unparsed": sum(numbers["unparsed"] for numbers in by_task.values()) if generated else None,
        "seconds": round(seconds, 3),
        "items_per_second": round(len(lines) / seconds, 3),
        "settings": dict(settings),
        "environment": environment(),
    }


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print a table with a row for each task, and where the files lie."""
    results = evaluation.results
    parsed = results["unparsed"] is not None
    table = Table("", "items", "accuracy", "95 % interval", *(["unparsed"] if parsed else []))
    for column in table.columns[1:]:
        column.justify = "right"
    for task, numbers in results["tasks"].items():
        share = [_percent(numbers["unparsed"] / numbers["items"])] if parsed else []
        table.add_row(_title(task), str(numbers["items"]), *_accuracy(numbers), *share)
    items = sum(numbers["items"] for numbers in results["tasks"].values())
    table.add_section()
    share = [_percent(results["unparsed"] / items)] if parsed else []
    table.add_row("average", str(items), *_accuracy(results["average"]), *share, style="bold")
    console.print(table)
    console.print(
        f"Protocol {results['protocol']}, {items} items in {results['seconds']:.0f} s "
        f"({results['items_per_second']:.2f} a second). Everything is in {evaluation.folder}.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


@dataclass(frozen=True)
class Comparison:
    """Two models on the same items.

    Attributes:
        first: one evaluation.
        second: the other one.
        p_values: McNemar's exact two-sided p-value of each task.
        average: the paired test of the average over tasks; its difference is that of the first over the second.
        different: settings in which the two differ, beside the models.
    """

    first: Evaluation
    second: Evaluation
    p_values: Mapping[str, float]
    average: PairedTest
    different: list[str]


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """Compare two evaluations of the same items by the same protocol.

    Raises:
        EvaluationError: items or protocols differ, or the items are not known; the message says which.
    """
    faults = [
        f"{key}: {first.results.get(key)!r} and {second.results.get(key)!r}"
        for key in SAME
        if first.results.get(key) != second.results.get(key)
    ]
    faults += [f"{one.folder} gives no items" for one in (first, second) if not one.correct]
    if not faults:
        faults = _different_items(first, second)
    if faults:
        raise EvaluationError(
            "\n  ".join([f"{first.folder} and {second.folder} cannot be compared item by item:", *faults])
            + "\nEvaluate both in the same way on the same items."
        )
    ours, theirs = (
        [np.array([one.correct[task][i] for i in sorted(one.correct[task])]) for task in first.correct]
        for one in (first, second)
    )
    p_values = {task: mcnemar(a, b) for task, a, b in zip(first.correct, ours, theirs, strict=True)}
    different = list(differences(first.settings, second.settings, WHOSE))
    return Comparison(first, second, p_values, paired_test(ours, theirs), different)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print a table with a row for each task, and the test of the average."""
    first, second, average = comparison.first, comparison.second, comparison.average
    table = Table("", "items", "A", "B", "A − B", "95 % interval", "p")
    for column in table.columns[1:]:
        column.justify = "right"
    for task, p_value in comparison.p_values.items():
        a, b = (one.results["tasks"][task]["accuracy"] for one in (first, second))
        items = str(first.results["tasks"][task]["items"])
        table.add_row(_title(task), items, _percent(a), _percent(b), _points(a - b), "", _p(p_value))
    table.add_section()
    table.add_row(
        "average",
        str(average.wins + average.losses + average.ties),
        *(_percent(one.results["average"]["accuracy"]) for one in (first, second)),
        _points(average.difference),
        " to ".join(map(_points, average.interval_95)),
        _p(average.p_value),
        style="bold",
    )
    console.print(table)
    notes = [
        f"A is {first.folder}, B is {second.folder}.",
        f"Only A is right on {average.wins} items, only B on {average.losses}.",
        "p of a task: McNemar's exact test, not corrected for the number of tasks. p of the average: a paired "
        "permutation test. Interval: a paired bootstrap over the items.",
        *(f"The settings differ: {text}." for text in comparison.different),
    ]
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def _different_items(first: Evaluation, second: Evaluation) -> list[str]:
    faults = [
        f"tasks: {one.folder} has {task}, the other has not"
        for one, other in ((first, second), (second, first))
        for task in one.correct
        if task not in other.correct
    ]
    for task in first.correct:
        a, b = set(first.correct[task]), set(second.correct.get(task, first.correct[task]))
        if a != b:
            faults.append(f"{task}: {len(a)} and {len(b)} items, {len(a & b)} in common")
    same = first.settings.get("data") == second.settings.get("data")
    return faults or ([] if same else ["data: items of the same numbers have other texts or answers"])


def _accuracy(numbers: Mapping[str, Any]) -> tuple[str, str]:
    low, high = numbers["interval_95"]
    return _percent(numbers["accuracy"]), f"{_percent(low)} to {_percent(high)}"


def _title(task: str) -> str:
    return TASKS[task].title if task in TASKS else task


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"
