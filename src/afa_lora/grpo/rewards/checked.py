"""A reward function whose faults are told as they are: which function, which prompt, what it gave."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
import torch

from afa_lora.core.errors import AfaLoraError
from afa_lora.grpo.rewards.text import completion_text

RewardFunction = Callable[..., Any]
"""TRL's signature: ``(prompts, completions, completion_ids, **columns) -> list[float | None]``, or the same async."""

EXCERPT = 60  # characters of a prompt, a completion or a value in a message


class RewardError(AfaLoraError, RuntimeError):
    """A reward function raises, or returns something else than one number for each completion."""


def checked(function: RewardFunction, name: str, options: Mapping[str, Any] | None = None) -> RewardFunction:
    """The function with its options, named ``name`` as TRL logs it, its results made plain floats.

    An async function stays one. The first fault is a `RewardError`; where the function raises, it is called again with
    one completion after the other to find the prompt.
    """
    bound = dict(options or {})

    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):

        async def asynchronous(**columns: Any) -> list[float | None]:
            try:
                found = await function(**columns, **bound)
            except Exception as error:  # whatever a user's function raises
                place = "all of them together"
                for i in range(len(columns["prompts"])):
                    if await _raises_async(function, {**_only(columns, i), **bound}):
                        place = _place(columns, i)
                        break
                raise RewardError(_raised(name, error, place)) from error
            return _numbers(found, name, columns)

        asynchronous.__name__ = name
        return asynchronous

    def synchronous(**columns: Any) -> list[float | None]:
        try:
            found = function(**columns, **bound)
        except Exception as error:  # whatever a user's function raises
            items = range(len(columns["prompts"]))
            raising = (i for i in items if _raises(function, {**_only(columns, i), **bound}))
            first = next(raising, None)
            place = "all of them together" if first is None else _place(columns, first)
            raise RewardError(_raised(name, error, place)) from error
        return _numbers(found, name, columns)

    synchronous.__name__ = name
    return synchronous


def _raises(function: RewardFunction, arguments: Mapping[str, Any]) -> bool:
    try:
        function(**arguments)
    except Exception:  # noqa: BLE001  # whatever a user's function raises; the caller reports it
        return True
    return False


async def _raises_async(function: Callable[..., Awaitable[Any]], arguments: Mapping[str, Any]) -> bool:
    try:
        await function(**arguments)
    except Exception:  # noqa: BLE001  # whatever a user's function raises; the caller reports it
        return True
    return False


def _only(columns: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The columns with one item alone; what is no column, such as ``trainer_state``, stays."""
    count = len(columns["prompts"])
    return {
        key: [value[index]] if isinstance(value, list) and len(value) == count else value
        for key, value in columns.items()
    }


def _numbers(found: Any, name: str, columns: Mapping[str, Any]) -> list[float | None]:
    if isinstance(found, torch.Tensor | np.ndarray) and found.ndim == 1:
        found = found.tolist()
    count = len(columns["prompts"])
    if not isinstance(found, list | tuple):
        raise RewardError(
            f"The reward function {name!r} returned {_excerpt(repr(found))}, no list. "
            f"It must return a list of {count} numbers, one for each completion."
        )
    if len(found) != count:
        raise RewardError(
            f"The reward function {name!r} returned {len(found)} rewards for {count} completions: "
            f"{_excerpt(repr(found))}. It must return one for each, and None where it does not apply."
        )
    return [_number(value, name, columns, i) for i, value in enumerate(found)]


def _number(value: Any, name: str, columns: Mapping[str, Any], index: int) -> float | None:
    if value is None:
        return None
    plain = value.item() if isinstance(value, torch.Tensor | np.ndarray | np.generic) and value.ndim == 0 else value
    if isinstance(plain, numbers.Real) and math.isfinite(plain):
        return float(plain)
    raise RewardError(
        f"The reward function {name!r} returned {_excerpt(repr(value))} for {_place(columns, index)}. A reward must be "
        "a finite number, or None where the function does not apply."
    )


def _raised(name: str, error: Exception, place: str) -> str:
    return (
        f"The reward function {name!r} raised {type(error).__name__}: {error} (for {place}). Let it return a number "
        "for whatever a model may write, and None where it does not apply."
    )


def _place(columns: Mapping[str, Any], index: int) -> str:
    prompt, completion = columns["prompts"][index], columns["completions"][index]
    number = f"prompt {index + 1} of {len(columns['prompts'])}"
    return f"{number}, {_excerpt(completion_text(prompt))!r}, answered {_excerpt(completion_text(completion))!r}"


def _excerpt(text: str) -> str:
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]}…"
