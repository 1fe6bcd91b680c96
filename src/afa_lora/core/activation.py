"""φ_β, Eq. 1 and 3: the activation that is annealed away, and its derivative."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from afa_lora.core.errors import InvalidSettingError, unknown_name

Beta = float | Tensor
"""β as a Python float (eager), or as a 0-dim float32 tensor (inside ``torch.compile``: one graph for every value)."""


@dataclass(frozen=True)
class Activation:
    """σ and the product of its derivative with an incoming gradient.

    Args:
        name: the name under which a config asks for it.
        function: σ, element-wise, differentiable by autograd.
        backward: ``(grad, h) -> grad * σ'(h)``. ``None`` lets autograd differentiate ``function``.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor] | None = None

    def __reduce__(self) -> tuple[Callable[[str], Activation], tuple[str]]:
        return get_activation, (self.name,)  # pickled by name: functions may be lambdas

    def vector_jacobian(self, grad: Tensor, h: Tensor) -> Tensor:
        """Return grad · σ'(h), same shape as ``h``."""
        if self.backward is not None:
            return self.backward(grad, h)
        with torch.enable_grad():
            h = h.detach().requires_grad_()
            return torch.autograd.grad(self.function(h), h, grad)[0]


LEAKY_SLOPE = 0.01  # PyTorch's default


def _relu(h: Tensor) -> Tensor:
    """ReLU whose derivative at 0 is 1/2, as SiLU's and GELU's are; PyTorch's own takes 0.

    B starts at zero, so a ReLU after B would stand at 0 everywhere: with PyTorch's choice no gradient reaches A or B
    while β = 1. Every number in [0, 1] is a subgradient there; 1/2 is what `torch.maximum` takes at a tie.
    """
    return torch.maximum(h, h.new_zeros(()))


# PyTorch's own backward kernels where it has one: a single pass over memory.
ACTIVATIONS: dict[str, Activation] = {
    a.name: a
    for a in (
        Activation("relu", _relu, lambda g, h: g * torch.heaviside(h, h.new_full((), 0.5))),
        Activation("silu", F.silu, lambda g, h: torch.ops.aten.silu_backward(g, h)),
        Activation("gelu", F.gelu, lambda g, h: torch.ops.aten.gelu_backward(g, h)),
        Activation("tanh", torch.tanh, lambda g, h: torch.ops.aten.tanh_backward(g, torch.tanh(h))),
        Activation(
            "leaky_relu",
            lambda h: F.leaky_relu(h, LEAKY_SLOPE),
            lambda g, h: torch.ops.aten.leaky_relu_backward(g, h, LEAKY_SLOPE, False),
        ),
    )
}


def get_activation(name: str) -> Activation:
    """Look up a registered activation.

    Raises:
        InvalidSettingError: the name is not registered; the message lists those that are.
    """
    if name not in ACTIVATIONS:
        error = unknown_name("activation", name, ACTIVATIONS)
        raise InvalidSettingError(f"{error} Your own: afa_lora.register_activation(name, function).")
    return ACTIVATIONS[name]


def register_activation(
    name: str,
    function: Callable[[Tensor], Tensor],
    backward: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> None:
    """Make ``AfaLoraConfig(activation=name)`` use an element-wise function of your own.

    A saved adapter that is still annealing names its activation, so register it again before loading one.

    Args:
        name: not yet taken.
        function: σ, element-wise: the output has the input's shape and dtype. It is probed once on four numbers.
        backward: ``(grad, h) -> grad * σ'(h)``; autograd differentiates ``function`` without it.

    Raises:
        InvalidSettingError: the name is taken, or the function does not act element by element.
    """
    if name in ACTIVATIONS:
        raise InvalidSettingError(f"activation={name!r} is already registered; choose another name.")
    probe = torch.tensor([-2.0, -0.5, 0.5, 2.0], device="cpu")
    whole = function(probe)
    if whole.shape != probe.shape or whole.dtype != probe.dtype:
        raise InvalidSettingError(
            f"activation={name!r} maps {tuple(probe.shape)} {probe.dtype} to {tuple(whole.shape)} {whole.dtype}; "
            "it must keep shape and dtype."
        )
    if not torch.equal(whole, torch.cat([function(probe[i : i + 1]) for i in range(4)])):
        raise InvalidSettingError(f"activation={name!r} mixes elements; it must act on each element alone.")
    ACTIVATIONS[name] = Activation(name, function, backward)


def phi(h: Tensor, activation: Activation, beta: Beta) -> Tensor:
    """φ_β(h) = β·σ(h) + (1 − β)·h, # Eq. 1, # Eq. 3, exact at β = 0 (h itself) and at β = 1 (σ(h))."""
    return _lerp(h, activation.function(h), beta)


def phi_backward(grad: Tensor, h: Tensor, activation: Activation, beta: Beta) -> Tensor:
    """grad · φ_β'(h) = β·grad·σ'(h) + (1 − β)·grad."""
    return _lerp(grad, activation.vector_jacobian(grad, h), beta)


def _lerp(start: Tensor, end: Tensor, weight: Beta) -> Tensor:
    if isinstance(weight, Tensor):  # lerp computes in float32 for half dtypes when the weight is a Python number
        opmath = torch.float32 if start.dtype in (torch.bfloat16, torch.float16) else start.dtype
        return torch.lerp(start.to(opmath), end.to(opmath), weight.to(opmath)).to(start.dtype)
    if torch.is_grad_enabled() or end is start:
        return torch.lerp(start, end, weight)
    return torch.lerp(start, end, weight, out=end)  # `end` was made for this call: no second tensor of its size
