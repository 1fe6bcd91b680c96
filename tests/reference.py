"""The paper's equations written plainly: matrices, sums, and autograd. What the library is measured against."""

import torch
from torch import Tensor

SIGMA = {
    "relu": lambda h: h * (h > 0),
    "silu": lambda h: h / (1 + torch.exp(-h)),
    "gelu": lambda h: h * 0.5 * (1 + torch.erf(h / 2**0.5)),
    "tanh": lambda h: (torch.exp(h) - torch.exp(-h)) / (torch.exp(h) + torch.exp(-h)),
    "leaky_relu": lambda h: torch.where(h > 0, h, 0.01 * h),
}
PLACEMENTS = ["σ-A-B", "A-σ-B", "A-B-σ", "σ-A-σ-B", "A-σ-B-σ", "σ-A-B-σ", "σ-A-σ-B-σ"]


def phi(h: Tensor, activation: str, beta: float) -> Tensor:
    """Eq. 1 and 3."""
    return beta * SIGMA[activation](h) + (1 - beta) * h


def adapter(x: Tensor, A: Tensor, B: Tensor, activation: str, placement: str, beta: float) -> Tensor:
    """B φ(A x) for any placement; the letters are read from left to right."""
    h = x
    for letter in placement.split("-"):
        if letter == "A":
            h = torch.einsum("ri,...i->...r", A, h)
        elif letter == "B":
            h = torch.einsum("or,...r->...o", B, h)
        else:
            h = phi(h, activation, beta)
    return h


def lora(x: Tensor, W: Tensor, bias: Tensor | None, branch: Tensor, scaling: float) -> Tensor:
    """Eq. 4: W₀x + s·B φ(A x)."""
    out = torch.einsum("oi,...i->...o", W, x) + scaling * branch
    return out if bias is None else out + bias


def dora(
    x: Tensor, W: Tensor, bias: Tensor | None, branch: Tensor, scaling: float, A: Tensor, B: Tensor, m: Tensor
) -> Tensor:
    """(m/‖W₀ + s·BA‖)·(W₀x + s·B φ(A x)), the norm by rows and detached."""
    norm = (W + scaling * B @ A).square().sum(1).sqrt().detach()
    out = (m / norm) * (torch.einsum("oi,...i->...o", W, x) + scaling * branch)
    return out if bias is None else out + bias
