"""The adapter branch s·B φ_β(A x), Eq. 4, for all seven placements, with a backward that saves only x and A x.

Shapes: x (tokens, in), A (r, in), B (out, r), bias (out,), result (tokens, out).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from afa_lora.core.activation import Activation, Beta, phi, phi_backward
from afa_lora.core.placement import Placement


def branch(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    bias: Tensor | None,
    *,
    beta: Beta,
    activation: Activation,
    placement: Placement,
) -> Tensor:
    """φ(B φ(A φ(x))) with φ_β where the placement has it, # Eq. 4 before the scaling s; plain differentiable torch."""
    u = phi(x, activation, beta) if placement.before_a else x  # (tokens, in)
    z = u @ A.t()  # (tokens, r)
    h = phi(z, activation, beta) if placement.between else z  # (tokens, r)
    v = F.linear(h, B, bias)  # (tokens, out)
    return phi(v, activation, beta) if placement.after_b else v


def adapter_branch(
    result: Tensor | None,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    bias: Tensor | None = None,
    *,
    scaling: float,
    beta: Beta,
    activation: Activation,
    placement: Placement,
) -> Tensor:
    """Return result + s·φ(B φ(A φ(x))), # Eq. 4; ``result`` is W₀x, or ``None`` for the branch alone.

    Computes in the dtype of A (under autocast: in autocast's), whatever the dtype of ``x``; an ``x`` of another dtype
    is saved as it is, not as a cast copy. Adding to a ``result`` of another dtype promotes as ``+`` does.

    Args:
        result: (..., out) or ``None``.
        x: (..., in), any number of leading dimensions, also none, also empty.
        A: (r, in).
        B: (out, r).
        bias: (out,), added to B's output before φ.
        scaling: s = α/r, # Eq. 2.
        beta: β; the placement should be ``PLAIN`` at β = 0, so that nothing beyond LoRA is computed.

    Returns:
        (..., out).
    """
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        A, B, bias = A.to(dtype), B.to(dtype), None if bias is None else bias.to(dtype)
    shape = (*x.shape[:-1], B.shape[0])
    rows = x.reshape(-1, x.shape[-1])
    base = None if result is None or result.dtype != A.dtype else result.reshape(-1, B.shape[0])
    function = _forward if torch.compiler.is_compiling() or not torch.is_grad_enabled() else _apply
    out = function(base, rows, A, B, bias, scaling, beta, activation, placement).view(shape)
    return out if result is None or base is not None else result + out


def _forward(
    base: Tensor | None,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    bias: Tensor | None,
    scaling: float,
    beta: Beta,
    activation: Activation,
    placement: Placement,
) -> Tensor:
    """Eq. 4 by autograd: what a compiler differentiates, and what a second derivative goes through."""
    w = branch(x.to(A.dtype), A, B, bias, beta=beta, activation=activation, placement=placement)
    # No `alpha=scaling`: inductor drops it where it fuses the sum with B's product (pytorch/pytorch#167313).
    return w * scaling if base is None else base + w * scaling


def _apply(*args: Any) -> Tensor:
    out: Tensor = _Branch.apply(*args)  # type: ignore[no-untyped-call]
    return out


class _Branch(torch.autograd.Function):
    """Saves x and z = A x; recomputes φ, and B's output for σ after B, in the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        base: Tensor | None,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        bias: Tensor | None,
        scaling: float,
        beta: float,
        activation: Activation,
        placement: Placement,
    ) -> Tensor:
        u = x.to(A.dtype)
        if placement.before_a:
            u = phi(u, activation, beta)
        z = u @ A.t()  # (tokens, r)
        h = phi(z, activation, beta) if placement.between else z
        x_needed = ctx.needs_input_grad[2] or placement.before_a
        ctx.save_for_backward(x if x_needed else None, z, A, B, bias)
        ctx.x_dtype = x.dtype
        ctx.setting = scaling, beta, activation, placement
        return _expand(base, h, B, bias, *ctx.setting)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            return _differentiable_backward(ctx, grad)
        x, z, A, B, bias = ctx.saved_tensors
        scaling, beta, activation, placement = ctx.setting
        _, need_x, need_A, need_B, need_bias = ctx.needs_input_grad[:5]
        grads: list[Tensor | None] = [grad if ctx.needs_input_grad[0] else None, None, None, None, None]

        h = phi(z, activation, beta) if placement.between else z  # (tokens, r)
        if placement.after_b:
            grad = phi_backward(grad, F.linear(h, B, bias), activation, beta)  # (tokens, out)
        if need_bias:
            grads[4] = grad.sum(0) * scaling
        if need_B:
            grads[3] = grad.t() @ (h * scaling)  # (out, r)
        if not need_x and not need_A:
            return *grads, None, None, None, None

        dz = (grad @ B).mul_(scaling)  # (tokens, r)
        if placement.between:
            dz = phi_backward(dz, z, activation, beta)
        u: Any = None if x is None else x.to(A.dtype)  # there where A or σ before A needs it
        if need_A:
            grads[2] = dz.t() @ (phi(u, activation, beta) if placement.before_a else u)  # (r, in)
        if need_x:
            dx = dz @ A  # (tokens, in)
            if placement.before_a:
                dx = phi_backward(dx, u, activation, beta)
            grads[1] = dx.to(ctx.x_dtype)
        return *grads, None, None, None, None


def _expand(
    base: Tensor | None,
    h: Tensor,
    B: Tensor,
    bias: Tensor | None,
    scaling: float,
    beta: float,
    activation: Activation,
    placement: Placement,
) -> Tensor:
    """base + s·φ(B h + bias), scale and sum folded into the product where nothing stands after B."""
    if placement.after_b:
        w = phi(F.linear(h, B, bias), activation, beta)
        return w.mul_(scaling) if base is None else torch.add(base, w, alpha=scaling, out=w)
    out = (h * scaling) @ B.t() if base is None else torch.addmm(base, h, B.t(), alpha=scaling)
    return out if bias is None else out.add_(bias, alpha=scaling)


def _differentiable_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The same gradients as functions of x, A, B and grad, so that they can be differentiated again."""
    x, _, A, B, bias = ctx.saved_tensors
    if x is None:
        raise RuntimeError(
            "second derivatives through an adapter whose lora_A is frozen are not kept; "
            "set requires_grad on lora_A, or compute the gradient without create_graph=True."
        )
    inputs = (x, A, B, bias)
    wanted = [t for t, need in zip(inputs, ctx.needs_input_grad[1:5], strict=True) if need]
    out = _forward(None, *inputs, *ctx.setting)
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    grads = [next(found) if need else None for need in ctx.needs_input_grad[1:5]]
    return grad if ctx.needs_input_grad[0] else None, *grads, None, None, None, None
