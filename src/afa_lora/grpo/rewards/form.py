"""Credit for the form of a completion, whatever it answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from afa_lora.core.errors import InvalidSettingError
from afa_lora.grpo.rewards.text import Completion, completion_text

_INSIDE = r"(?:(?!</?(?:think|answer)>).)*"  # each tag stands once
THINK_ANSWER = rf"<think>{_INSIDE}</think>\s*<answer>{_INSIDE}</answer>"
"""First the thoughts, then the answer, nothing else."""


def format_reward(
    prompts: Sequence[Any], completions: Sequence[Completion], pattern: str = THINK_ANSWER, **columns: Any
) -> list[float | None]:
    """1 for a completion of the required form, 0 for any other.

    Args:
        prompts: not read.
        completions: one for each prompt.
        pattern: a regular expression that the whole completion must match, white space around it aside; a full stop
            stands for line breaks too. The default is `THINK_ANSWER`.
        columns: not read.

    Raises:
        InvalidSettingError: ``pattern`` is no regular expression.
    """
    try:
        form = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise InvalidSettingError(f"pattern={pattern!r} is no regular expression: {error}.") from error
    return [float(form.fullmatch(completion_text(completion).strip()) is not None) for completion in completions]
