"""Mathematical equality, judged by math-verify."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Any

from afa_lora.core.errors import InvalidSettingError
from afa_lora.grpo.rewards.text import Completion, completion_text

SECONDS = 5  # for reading one answer, and for comparing it
LATEX = re.compile(r"\$|\\boxed|\\\(|\\\[")  # what marks LaTeX for math-verify


def math_reward(
    prompts: Sequence[Any], completions: Sequence[Completion], answer: Sequence[str], **columns: Any
) -> list[float | None]:
    """1 where math-verify finds the right answer in the completion, in whatever form; 0 elsewhere.

    Args:
        prompts: not read.
        completions: one for each prompt; math-verify takes the last answer that it can read, a boxed one first.
        answer: the right ones, in LaTeX with or without ``$``, or numbers.
        columns: not read.

    Returns:
        One reward for each completion: 0 for one in which nothing can be read; None, for not applicable, where the
        right answer itself cannot be read.

    math-verify limits its time by a signal, which only the main thread can receive: elsewhere there is no limit.

    Raises:
        InvalidSettingError: math-verify is not installed.
    """
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise InvalidSettingError("The reward 'math' needs math-verify. Run: pip install 'afa-lora[grpo]'") from error
    limit = SECONDS if threading.current_thread() is threading.main_thread() else None
    rewards: list[float | None] = []
    for completion, right in zip(completions, answer, strict=True):
        wanted = parse(right if LATEX.search(right) else f"${right}$", parsing_timeout=limit)
        found = parse(completion_text(completion), parsing_timeout=limit)
        rewards.append(float(verify(wanted, found, timeout_seconds=limit)) if wanted else None)
    return rewards
