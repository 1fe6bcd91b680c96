"""φ_β around vLLM's shrink and expand, for each token with the β of its adapter.

vLLM keeps the A and B of the loaded adapters in slots and computes y += B A x with the slot of each token, in two
calls: ``add_shrink`` (x -> A x, in float32) and ``add_expand`` (A x -> B A x, added to y). φ_β goes before the first,
between the two and after the second. It acts on each element alone, so it does not matter whether x and y are whole or
a rank's part of them; A x must be whole where ``add_expand`` takes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from afa_lora.core.activation import phi
from afa_lora.grpo.rollout.annealing import Sites
from afa_lora.grpo.rollout.cpu import Indices


class Slots:
    """β and s of each adapter slot, on the device, and what to compute with them.

    Linear adapters and tokens of the base model have β = 0, at which φ is the identity, to the bit.

    Args:
        sites: σ and placement of this engine.
        count: the number of slots.
        device: where the engine computes.
        indices: the slot of each of the first n tokens of the present batch, (n,), -1 for the base model.
    """

    def __init__(self, sites: Sites, count: int, device: torch.device | str, indices: Indices) -> None:
        self.sites = sites
        self.indices = indices
        # One more than there are slots: index -1, the base model, finds the last.
        self.beta = torch.zeros(count + 1, dtype=torch.float32, device=device)
        self.scaling = torch.ones(count + 1, dtype=torch.float32, device=device)

    def set(self, index: int, beta: float, scaling: float) -> None:
        """A slot has got another adapter.

        Args:
            index: which slot.
            beta: β of the adapter, 0 if it is linear.
            scaling: s, where φ_β stands after B; 1 where s is folded into B.
        """
        self.beta[index] = beta
        self.scaling[index] = scaling

    def phi(self, h: Tensor, tokens: int) -> Tensor:
        """φ_β of ``h`` (..., tokens, channels), each token with its own β."""
        return phi(h, self.sites.activation, self._of(self.beta, tokens))

    def scaled(self, h: Tensor) -> Tensor:
        """s·h, ``h`` (tokens, channels)."""
        return h * self._of(self.scaling, h.shape[0]).to(h.dtype)

    def _of(self, table: Tensor, tokens: int) -> Tensor:
        return table[self.indices(tokens).long()][:, None]  # (tokens, 1)


def shrink_with_phi(slots: Slots, stock: Callable[..., Any]) -> Callable[..., Any]:
    """``add_shrink`` with φ_β before A."""

    def add_shrink(y: Any, x: Tensor, lora_a_stacked: tuple[Tensor, ...], scale: float, **options: Any) -> Any:
        if slots.sites.placement.before_a:
            rows = x.view(-1, x.shape[-1])  # (tokens, in)
            x = slots.phi(rows, rows.shape[0])
        return stock(y, x, lora_a_stacked, scale, **options)

    return add_shrink


def expand_with_phi(slots: Slots, stock: Callable[..., Any]) -> Callable[..., Any]:
    """``add_expand`` with φ_β between A and B, and after B."""

    def add_expand(
        y: Tensor,
        x: Any,
        lora_b_stacked: tuple[Tensor, ...],
        output_slices: tuple[int, ...],
        offset_start: int = 0,
        add_inputs: bool = True,
        **options: Any,
    ) -> Any:
        x = torch.stack(x) if isinstance(x, tuple) else x  # (slices, tokens, r)
        tokens = x.shape[1]
        if slots.sites.placement.between:
            x = slots.phi(x, tokens)
        if not slots.sites.placement.after_b:
            return stock(y, x, lora_b_stacked, output_slices, offset_start, add_inputs, **options)
        # φ acts on B's output alone. What this call leaves at 0 stays there: σ(0) = 0 where σ stands after B.
        rows = y.view(-1, y.shape[-1])  # (tokens, out)
        out = torch.zeros_like(rows)
        stock(out, x, lora_b_stacked, output_slices, offset_start, True, **options)
        rows += slots.scaled(slots.phi(out, tokens))  # y is 0 where `add_inputs` is False
        return None

    return add_expand
