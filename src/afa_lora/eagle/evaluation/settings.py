"""What an evaluation of drafts is asked to do."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from afa_lora.eagle.evaluation.questions import SETS
from afa_lora.settings import Section


class DraftEvaluationSettings(Section):
    """How drafts are measured."""

    sets: list[str] = Field(default_factory=lambda: [*SETS])
    """The sets of questions."""
    limit: PositiveInt | None = None
    """At most so many questions of each set, evenly spaced; all unless given."""
    max_new_tokens: PositiveInt = 128
    """The longest answer of the target, in tokens."""
    shapes: list[str] = Field(default_factory=lambda: ["chain:5", "tree"])
    """What a draft proposes in each cycle: ``chain:5``, ``tree``, ``dynamic:total=60,depth=5,top_k=10``."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the target and of the drafts; ``auto`` is what the hardware computes in."""
    live: bool = False
    """Whether the target and every draft decode together, for the wall-clock speed-up."""
