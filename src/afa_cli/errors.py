"""Which errors are the user's to mend: they print one message and exit with code 2, everything else is a traceback."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

SFT = "datasets", "filelock", "gguf", "matplotlib", "pydantic", "reasoning_gym", "rich", "scipy", "trl", "typer", "yaml"
EXTRA = {**dict.fromkeys(SFT, "sft"), "math_verify": "grpo", "lm_eval": "harness"}
"""The packages that the bare library does without, and the extra that brings them."""


class AdapterFileError(Exception):
    """An adapter folder cannot be read."""


class MissingExtraError(Exception):
    """A verb needs packages that the bare library does without."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The package {name} is missing. Run: pip install 'afa-lora[{EXTRA[name]}]'")


class NoRecipeError(Exception):
    """There is no recipe of that name, neither here nor in the package."""

    def __init__(self, name: str, shipped: Iterable[str]) -> None:
        near = difflib.get_close_matches(name, list(shipped), n=1)
        super().__init__(
            f"There is no recipe {name} (looked for a file in {Path.cwd()})."
            + (f" Did you mean {near[0]!r}?" if near else "")
            + f" With the package come: {', '.join(shipped)}."
        )


@contextmanager
def writing(option: str, path: Path) -> Iterator[None]:
    """Say of a file that cannot be written which option named it; the system may name a temporary file beside it."""
    try:
        yield
    except OSError as error:
        fault = f"{path} cannot be written: {error.strerror or error}. Choose another place."
        raise typer.BadParameter(fault, param_hint=option) from error


def user_errors() -> tuple[type[Exception], ...]:
    """The classes to catch. The library's own are among them only if a verb has imported the library."""
    classes: tuple[type[Exception], ...] = (AdapterFileError, MissingExtraError, NoRecipeError, OSError)
    if "afa_lora" in sys.modules:
        from afa_lora.core.errors import AfaLoraError

        classes += (AfaLoraError,)
    return classes
