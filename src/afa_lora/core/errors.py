"""The errors this library raises. Each message names the key, the value and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AfaLoraError(Exception):
    """Base of every error raised by this library on purpose."""


class InvalidSettingError(AfaLoraError, ValueError):
    """A setting has a value that cannot be used."""


class UnsupportedLayerError(AfaLoraError, ValueError):
    """A layer was targeted whose forward cannot carry an annealed activation."""


class NotLinearError(AfaLoraError, RuntimeError):
    """An operation needs a linear adapter, and β > 0."""


class CorruptedAdapterError(AfaLoraError, ValueError):
    """An adapter file cannot be read, or does not fit the model."""


def closest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'silu'?"`` for a near miss of a known name, and ``""`` otherwise."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {match[0]!r}?" if match else ""


def unknown_name(key: str, value: object, known: Iterable[str]) -> InvalidSettingError:
    """The error for a name that is not among the known ones: key, value, allowed values and the closest of them."""
    names = list(known)
    hint = closest(value, names) if isinstance(value, str) else ""
    return InvalidSettingError(f"{key}={value!r} is not known. Choose one of {', '.join(map(repr, names))}.{hint}")
