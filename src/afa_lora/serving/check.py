"""Is what was written the function that was trained? Compared by the logits on a probe."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from afa_lora.core.errors import AfaLoraError

# The largest relative difference that rounding may explain. SmolLM2 (30 layers) with merged weights shows 2e-6, 4e-3
# and 3e-2; deeper models, in which roundings add up in squares, a small multiple of that.
ROUNDING = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class ExportError(AfaLoraError):
    """Something cannot be exported, or what was written is not what it should be."""


@dataclass(frozen=True)
class Agreement:
    """How near two sets of logits are, each difference as a share of the expected logits (root mean square).

    Attributes:
        difference: between what was written and base model + adapter.
        allowed: the largest difference that passes.
        effect: between the base model alone and base model + adapter, to judge the difference by.
    """

    difference: float
    allowed: float
    effect: float

    def __str__(self) -> str:
        text = (
            f"its logits are those of base model + adapter to {self.difference:.1e} "
            f"(allowed {self.allowed:.0e}; the adapter itself makes {self.effect:.1e})"
        )
        if self.difference > self.effect / 2:
            text += ". Rounding hides much of what the adapter has learnt: prefer a wider dtype"
        return text


def compare(expected: Tensor, found: Tensor, base: Tensor, dtype: torch.dtype) -> Agreement:
    """Compare logits, (tokens, vocabulary) each, on the probe.

    Args:
        expected: of base model + adapter.
        found: of what was written.
        base: of the base model alone.
        dtype: the narrowest one among the weights, from which follows what rounding may change.

    Raises:
        ExportError: the difference is too large, or not a number.
    """
    if found.shape != expected.shape:
        raise ExportError(
            f"what was written has logits of shape {tuple(found.shape)} on the probe, where base model + adapter have "
            f"{tuple(expected.shape)}. Nothing was kept."
        )
    agreement = Agreement(_relative(found, expected), ROUNDING[dtype], _relative(base, expected))
    if not agreement.difference <= agreement.allowed:  # NaN is not
        raise ExportError(
            f"what was written is another function than base model + adapter: its logits on the probe differ by "
            f"{agreement.difference:.1e}, and rounding to {str(dtype).removeprefix('torch.')} explains "
            f"{agreement.allowed:.0e} at most. Nothing was kept."
        )
    return agreement


def _relative(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖."""
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm())
