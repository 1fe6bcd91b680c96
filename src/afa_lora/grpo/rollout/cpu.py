"""Shrink and expand on the CPU: one product for each run of tokens that have the same adapter.

vLLM's own (0.32) gather A and B anew for every token, (tokens, r, in), and they index the slots with -1 for tokens of
the base model, which then get the last slot's adapter where a batch mixes both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Indices = Callable[[int], Tensor]
"""n -> the slot of each of the first n tokens, (n,), -1 for the base model."""


def shrink_by_runs(indices: Indices) -> Callable[..., None]:
    """``add_shrink``: y[i] = scale · A[i] x, for each slice i of a packed layer."""

    def add_shrink(y: Sequence[Tensor], x: Tensor, lora_a_stacked: Sequence[Tensor], scale: float, **_: Any) -> None:
        x = x.view(-1, x.shape[-1])  # (tokens, in)
        for slot, rows in _runs(indices(x.shape[0])):
            for out, A in zip(y, lora_a_stacked, strict=True):  # (tokens, r), (slots, 1, r, in)
                out[rows] = F.linear(x[rows], A[slot, 0]).mul_(scale)

    return add_shrink


def expand_by_runs(indices: Indices) -> Callable[..., None]:
    """``add_expand``: y[:, slice i] += B[i] x[i]. ``add_inputs=False`` comes with a ``y`` of zeros."""

    def add_expand(
        y: Tensor,
        x: Sequence[Tensor],
        lora_b_stacked: Sequence[Tensor],
        output_slices: Sequence[int],
        offset_start: int = 0,
        add_inputs: bool = True,
        **_: Any,
    ) -> None:
        y = y.view(-1, y.shape[-1])  # (tokens, out)
        runs = list(_runs(indices(y.shape[0])))
        start = offset_start
        for h, B, size in zip(x, lora_b_stacked, output_slices, strict=True):  # (tokens, r), (slots, 1, size, r)
            for slot, rows in runs:
                y[rows, start : start + size] += F.linear(h[rows].to(y.dtype), B[slot, 0].to(y.dtype))
            start += size

    return add_expand


def _runs(indices: Tensor) -> Iterator[tuple[int, slice]]:
    """(slot, its tokens) for each run of tokens with one adapter; those of the base model are left out."""
    slots, lengths = torch.unique_consecutive(indices, return_counts=True)
    start = 0
    for slot, length in zip(slots.tolist(), lengths.tolist(), strict=True):
        if slot >= 0:
            yield slot, slice(start, start + length)
        start += length
