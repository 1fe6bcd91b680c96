"""Which arms are compared with each other: those with the same adapter, with and without an activation."""

from __future__ import annotations

from typing import Literal, cast, get_args

from afa_lora.eagle.recipe import EagleMethod
from afa_lora.tuning.recipe import Method

Family = Literal["lora", "dora", "full", "eagle"]
WITHOUT_ADAPTER = ("full", "eagle")
"""The families of one arm that has no adapter: full fine-tuning, and a draft that is trained alone."""

METHODS = {"eagle": get_args(EagleMethod)}
"""The methods of the workflows that have their own; the others share `Method`."""

AnyMethod = Method | EagleMethod


def family_of(method: str) -> Family:
    """``afa-lora`` and ``eagle+afa-lora`` are of the family ``lora``, ``eagle`` is its own."""
    return cast(Family, method.removeprefix("eagle+").removeprefix("afa-"))


def is_baseline(method: str) -> bool:
    """Whether nothing is annealed."""
    return "afa-" not in method
