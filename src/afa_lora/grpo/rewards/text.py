"""The text of a completion, in either of the forms that TRL gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Completion = str | Sequence[Mapping[str, Any]]
"""Plain text, or messages of which the last is the answer."""


def completion_text(completion: Completion) -> str:
    """What the model has answered; nothing, where it only called a tool."""
    if isinstance(completion, str):
        return completion
    return str(completion[-1].get("content") or "") if completion else ""
