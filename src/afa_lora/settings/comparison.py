"""Where two settings differ."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any


def differences(old: Any, new: Any, ignored: Container[str], key: str = "") -> Iterator[str]:
    """One line for each dotted key whose values differ: the key, the old and the new value.

    Args:
        old: settings, in sections within sections.
        new: the same at another time.
        ignored: dotted keys that may differ.
        key: where in the settings ``old`` and ``new`` are.
    """
    if key in ignored:
        return
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys([*old, *new]):
            yield from differences(old.get(name), new.get(name), ignored, f"{key}.{name}" if key else name)
    elif old != new:
        yield f"{key}: {_shown(old)} → {_shown(new)}"


def _shown(value: Any) -> str:
    return "(not set)" if value is None else repr(value)
