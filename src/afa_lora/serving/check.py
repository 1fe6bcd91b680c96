"""Is what was written the function that was trained? Compared by the logits on a probe."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from afa_lora.core.errors import AfaLoraError

# The largest relative difference that rounding may explain. SmolLM2 (30 layers) with merged weights shows 2e-6, 4e-3
# and 3e-2; deeper models, in which roundings add up in squares, a small multiple of that.
ROUNDING = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
NOISE = 2e-6  # below this, float32 cannot tell two functions apart


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
    """Compare logits, (tokens, vocabulary) each, on the probe, once the weights are known to be the merged ones.

    What rounding may change can be more than what the adapter does: `compare_exactly` and `check_weight` show that
    nothing of it is lost, this that everything else around the weights is right.

    Args:
        expected: of base model + adapter.
        found: of what was written.
        base: of the base model alone.
        dtype: that of the written weights, from which follows what rounding may change.

    Raises:
        ExportError: the difference is too large, or not a number.
    """
    return _bounded(expected, found, base, ROUNDING[dtype], f"rounding to {str(dtype).removeprefix('torch.')}")


def compare_exactly(expected: Tensor, found: Tensor, base: Tensor) -> Agreement:
    """Compare logits that were computed in one dtype from weights of which none was rounded; a lost adapter fails.

    Args:
        expected: of base model + adapter.
        found: of what was made of them.
        base: of the base model alone.

    Raises:
        ExportError: the difference is more than half the adapter's own effect, or than float32 explains.
    """
    allowed = min(ROUNDING[torch.float32], max(_relative(base, expected) / 2, NOISE))
    return _bounded(expected, found, base, allowed, "an unrounded merge")


def check_weight(name: str, expected: Tensor, found: Tensor | None, dtype: torch.dtype) -> None:
    """Compare a weight that was written with the merged one, rounded once to ``dtype``.

    Raises:
        ExportError: it is missing or another, be it by one bit.
    """
    if found is None or not torch.equal(found, expected):
        raise ExportError(
            f"the weight {name} that was written is not the merged one, rounded once to "
            f"{str(dtype).removeprefix('torch.')}. Nothing was kept."
        )


def _bounded(expected: Tensor, found: Tensor, base: Tensor, allowed: float, reason: str) -> Agreement:
    if found.shape != expected.shape:
        raise ExportError(
            f"what was written has logits of shape {tuple(found.shape)} on the probe, where base model + adapter have "
            f"{tuple(expected.shape)}. Nothing was kept."
        )
    agreement = Agreement(_relative(found, expected), allowed, _relative(base, expected))
    if not agreement.difference <= agreement.allowed:  # NaN is not
        raise ExportError(
            f"what was written is another function than base model + adapter: its logits on the probe differ by "
            f"{agreement.difference:.1e}, and {reason} explains {agreement.allowed:.0e} at most (the adapter itself "
            f"makes {agreement.effect:.1e}). Nothing was kept."
        )
    return agreement


def _relative(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖."""
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm())
