"""Tasks of reasoning-gym: made on the spot, checked by their own scorer, nothing to download."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import reasoning_gym
from reasoning_gym.factory import DATASETS

from afa_lora.core.errors import closest
from afa_lora.data.records import DataError, Sample, counted


def make_samples(
    task: str, options: dict[str, Any], count: int, seed: int, system: str | None, exclude: set[str]
) -> list[Sample]:
    """Make ``count`` different items of a task, none of whose questions is in ``exclude``.

    Args:
        task: the task's name in reasoning-gym, such as ``chain_sum``.
        options: the task's own settings, such as ``min_terms``.
        count: how many items.
        seed: the same seed gives the same items.
        system: a system message to put first.
        exclude: questions to leave out; the new ones are added to it.

    Raises:
        DataError: unknown task or option, a value that the task refuses, a task without a single right answer, or
            fewer than ``count`` different items.
    """
    _check(task, options)
    samples: list[Sample] = []
    for entry in _entries(task, {**options, "size": 4 * count, "seed": seed}):
        if len(samples) == count:
            break
        if not isinstance(entry["answer"], str):
            raise DataError(f"data.task={task!r} has no single right answer to learn. Choose another.")
        if entry["question"] in exclude:
            continue
        exclude.add(entry["question"])
        user = {"role": "user", "content": entry["question"]}
        prompt = (user,) if system is None else ({"role": "system", "content": system}, user)
        samples.append(Sample(prompt, entry["answer"], entry))
    if len(samples) < count:
        there = counted(len(samples), "different item(s)")
        raise DataError(
            f"data.task={task!r} has only {there} with these options, {count} were asked for. "
            "Ask for fewer items, or widen data.options."
        )
    return samples


def _check(task: str, options: dict[str, Any]) -> None:
    if task not in DATASETS:
        raise DataError(
            f"data.task={task!r} is no task of reasoning-gym.{closest(task, DATASETS)} "
            f"It has {len(DATASETS)}: {', '.join(sorted(DATASETS))}."
        )
    known = {field.name for field in fields(DATASETS[task][1])} - {"seed", "size"}
    for key in options:
        if key not in known:
            raise DataError(
                f"data.options.{key} is no option of {task}.{closest(key, known)} It has: {', '.join(sorted(known))}."
            )


def _entries(task: str, settings: dict[str, Any]) -> Any:
    try:
        return reasoning_gym.create_dataset(task, **settings)
    except (AssertionError, TypeError, ValueError) as error:  # the ways in which a task's settings refuse a value
        raise DataError(f"data.options: {task} refuses these values: {error}.") from error
