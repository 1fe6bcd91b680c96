"""Which errors are the user's to mend: they print one message and exit with code 2, everything else is a traceback."""

from __future__ import annotations

import sys

EXTRA = frozenset(
    {"datasets", "filelock", "gguf", "matplotlib", "pydantic", "reasoning_gym", "rich", "trl", "typer", "yaml"}
)


class AdapterFileError(Exception):
    """An adapter folder cannot be read."""


class MissingExtraError(Exception):
    """A verb needs packages that the bare library does without."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The package {name} is missing. Run: pip install 'afa-lora[sft]'")


def user_errors() -> tuple[type[Exception], ...]:
    """The classes to catch. The library's own are among them only if a verb has imported the library."""
    classes: tuple[type[Exception], ...] = (AdapterFileError, MissingExtraError, OSError)
    if "afa_lora" in sys.modules:
        from afa_lora.core.errors import AfaLoraError

        classes += (AfaLoraError,)
    return classes
