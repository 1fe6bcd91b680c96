"""The scorer that a task of reasoning-gym brings along."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import reasoning_gym

from afa_lora.data.prompts import unpack_entry
from afa_lora.grpo.rewards.text import Completion, completion_text

TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def task_reward(
    prompts: Sequence[Any], completions: Sequence[Completion], entry: Sequence[str], **columns: Any
) -> list[float | None]:
    """What reasoning-gym's own scorer of the task gives, in [0, 1]; some tasks give a part of it for a part.

    Args:
        prompts: not read.
        completions: one for each prompt; the last ``<answer>…</answer>`` is judged, or the whole text without any.
        entry: the items, as `afa_lora.data.prompts.pack_entry` writes them; each says its task.
        columns: not read.

    Returns:
        One reward for each completion; None, for not applicable, where the entry is of no task.
    """
    return [
        _score(completion_text(completion), unpack_entry(text))
        for completion, text in zip(completions, entry, strict=True)
    ]


def _score(text: str, entry: dict[str, Any]) -> float | None:
    task = entry.get("metadata", {}).get("source_dataset")
    if task is None:
        return None
    tagged = TAGGED.findall(text)
    answer = (tagged[-1] if tagged else text).strip()
    return float(_scorer(task)(answer, entry))


@cache
def _scorer(task: str) -> Callable[[str, dict[str, Any]], float]:
    scorer: Callable[[str, dict[str, Any]], float] = reasoning_gym.get_score_answer_fn(task)
    return scorer
