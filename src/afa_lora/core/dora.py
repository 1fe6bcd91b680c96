"""DoRA's norm and magnitude (arXiv 2402.09353) without the out×in product B A."""

from __future__ import annotations

import torch
from torch import Tensor


def opmath(tensor: Tensor) -> torch.dtype:
    """The dtype in which norms of this tensor are accumulated: float32, or float64 for float64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def squared_row_norm(weight: Tensor) -> Tensor:
    """‖W‖² of each row, (out, in) → (out,), accumulated in float32."""
    norm: Tensor = torch.linalg.vector_norm(weight, dim=1, dtype=opmath(weight))
    return norm.square()


@torch.no_grad()
def dora_norm(weight: Tensor, A: Tensor, B: Tensor, scaling: float, base_square: Tensor | None = None) -> Tensor:
    """‖W₀ + s·BA‖ of each row, detached (section 4.3 of DoRA).

    ‖W₀ + s·BA‖² = ‖W₀‖² + 2s·rowsum(B ∘ W₀Aᵀ) + s²·rowsum(B AAᵀ ∘ B): nothing of size out×in is made.

    Args:
        weight: W₀, (out, in).
        A: (r, in).
        B: (out, r).
        scaling: s.
        base_square: ‖W₀‖² from `squared_row_norm`, if the caller has it.

    Returns:
        (out,), float32 (float64 for float64 weights).
    """
    dtype = opmath(weight)
    A, B = A.to(dtype), B.to(dtype)
    square = squared_row_norm(weight) if base_square is None else base_square
    # s·B is 0 at the start of training; folded in once, it leaves ‖W₀‖² untouched to the bit.
    B = B * scaling
    linear_term = weight.to(dtype) @ A.t()  # (out, r)
    square_term = B @ (A @ A.t())  # (out, r)
    return (square + (B * (2 * linear_term + square_term)).sum(1)).clamp_min_(0).sqrt_()


def dora_rescale(summed: Tensor, bias: Tensor | None, factor: Tensor) -> Tensor:
    """(m/‖W₀ + s·BA‖) · (W₀x + s·B φ(A x)) + bias.

    Args:
        summed: W₀x + bias + s·B φ(A x), (..., out).
        bias: the base layer's, broadcastable to ``summed``, or ``None``.
        factor: m/‖W₀ + s·BA‖, broadcastable to ``summed``; the gradient reaches m through it.

    Returns:
        (..., out), in the dtype of ``summed``.
    """
    factor = factor.to(summed.dtype)
    if bias is None:
        return summed * factor
    return torch.addcmul((1 - factor) * bias.to(summed.dtype), summed, factor)
