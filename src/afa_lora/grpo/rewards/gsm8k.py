"""GSM8K's rule: the number behind ``####``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from afa_lora.core.errors import unknown_name
from afa_lora.grpo.rewards.text import Completion, completion_text

CLIP = 300  # characters at the end of a completion that are searched
STRICT = re.compile(r"#### (-?[0-9.,]+)")
FLEXIBLE = re.compile(r"-?[0-9.,]+")
METHODS = ("strict", "flexible")


def gsm8k_reward(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    answer: Sequence[str],
    method: Literal["strict", "flexible"] = "strict",
    format_score: float = 0.0,
    **columns: Any,
) -> list[float | None]:
    """1 for the right number, ``format_score`` for another one, 0 for none.

    Args:
        prompts: not read.
        completions: one for each prompt.
        answer: the right numbers, as `afa_lora.data.gsm8k.final_number` gives them.
        method: ``strict`` takes the number after the last ``####`` and one space, and removes its commas; ``flexible``
            the last number of the text, as it stands.
        format_score: the credit for a number that is not the right one.
        columns: not read.

    Numbers are compared as texts: 18.0, and 18 with a full stop after it, are not 18. The last 300 characters alone
    are searched.

    Raises:
        InvalidSettingError: an unknown ``method``.

    Source: ``verl/utils/reward_score/gsm8k.py`` of https://github.com/volcengine/verl, whose rules these are.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    find = _strict if method == "strict" else _flexible
    found = [find(completion_text(completion)[-CLIP:]) for completion in completions]
    return [
        0.0 if number is None else 1.0 if number == right else format_score
        for number, right in zip(found, answer, strict=True)
    ]


def _strict(text: str) -> str | None:
    numbers = STRICT.findall(text)
    return numbers[-1].replace(",", "") if numbers else None


def _flexible(text: str) -> str | None:
    """The last number that is more than a full stop; if there is none, such a stop, which is never right."""
    numbers: list[str] = FLEXIBLE.findall(text)
    return next((number for number in reversed(numbers) if number != "."), "." if numbers else None)
