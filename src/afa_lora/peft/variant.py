"""The LoRA and DoRA layer variants: PEFT calls them where it would run its own adapter branch."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from peft.tuners.lora.variants import DoraLinearVariant, _DoraConvNdVariant
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from afa_lora.core.activation import Activation, Beta, get_activation, phi, phi_backward
from afa_lora.core.branch import adapter_branch
from afa_lora.core.dora import dora_norm, dora_rescale, opmath, squared_row_norm
from afa_lora.core.errors import NotLinearError
from afa_lora.core.placement import PLAIN, Placement
from afa_lora.core.state import AnnealState
from afa_lora.peft import merging
from afa_lora.peft.config import AfaLoraConfig

PATIENCE = 10  # training forwards without anyone setting β


class AfaVariant(LoraVariant):  # type: ignore[misc]
    """y = W₀x + s·B φ_β(A x), # Eq. 4, in one layer, for one adapter.

    Args:
        config: the adapter's; its state is shared by all layers of the adapter.
        inner: the variant that PEFT chose, ``None`` for plain LoRA. It initialises what is its own (DoRA's magnitude).
    """

    def __init__(self, config: AfaLoraConfig, inner: LoraVariant | None) -> None:
        self.state: AnnealState = config.state
        self.activation: Activation = get_activation(config.activation)
        self.placement: Placement = config.sites
        self.inner = inner
        self.keep_original = True  # so that unmerge restores; merge_and_unload has no use for it
        self.original: Tensor | None = None
        self._undriven_forwards = 0

    def init(self, module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        """Called by PEFT when it rebuilds an adapter's layer in place."""
        if self.inner is not None:
            self.inner.init(module, adapter_name=adapter_name, **kwargs)

    def supports_lora_conversion(self) -> bool:
        return self.state.linear and (self.inner is None or bool(self.inner.supports_lora_conversion()))

    def forward(self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """Return the layer's output; ``x`` (..., in), ``result`` = W₀x (..., out)."""
        self._watch(module)
        return self._branch(module, active_adapter, module.lora_dropout[active_adapter](x), result)

    def _branch(self, module: LoraLayer, adapter: str, x: Tensor, result: Tensor | None) -> Tensor:
        """result + s·B φ_β(A x), or the branch alone."""
        lora_A, lora_B, scaling = module.lora_A[adapter], module.lora_B[adapter], module.scaling[adapter]
        placement = PLAIN if self.state.linear else self.placement
        if _is_bare_linear(lora_A) and _is_bare_linear(lora_B):
            return adapter_branch(
                result,
                x,
                lora_A.weight,
                lora_B.weight,
                lora_B.bias,
                scaling=scaling,
                beta=self.state.weight,
                activation=self.activation,
                placement=placement,
            )
        x = x if torch.is_autocast_enabled(x.device.type) else x.to(lora_A.weight.dtype)
        h = lora_A(self._phi(x) if placement.before_a else x)
        v = lora_B(self._phi(h) if placement.between else h)
        branch: Tensor = (self._phi(v) if placement.after_b else v) * scaling
        return branch if result is None else result + branch

    def _watch(self, layer: nn.Module) -> None:
        """Warn, once per adapter, about training whose β nothing ever sets: it would never become linear."""
        if self.state.driven or not layer.training or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        self._undriven_forwards += 1
        if self._undriven_forwards >= PATIENCE and not self.state.warned:
            self.state.warned = True
            warnings.warn(
                f"An AFA-LoRA adapter has trained for {PATIENCE} forwards and nothing has set its β, so it stays at "
                f"β = {self.state.beta:g} and never becomes linear. Pass callbacks=[AnnealingCallback()] to the "
                "trainer, or call Annealer(model, total_steps).set_step(step) before each forward.",
                UserWarning,
                stacklevel=2,
            )

    def _phi(self, h: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return phi(h, self.activation, self.state.weight)
        out: Tensor = _Phi.apply(h, self.activation, self.state.weight)  # type: ignore[no-untyped-call]
        return out

    # Merging: PEFT hands over the base weight; see merging.py for how it is changed in place and restored.

    def merged_weight(self, module: LoraLayer, adapter: str, weight: Tensor) -> Tensor:
        """W₀ + s·BA in float32 (float64 for float64 weights), in the layout of ``weight``."""
        self.require_linear(adapter)
        return weight.to(opmath(weight)) + merging.delta_weight(module, adapter, opmath(weight))

    def merge_safe(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return merging.merge_safe(self, module, active_adapter, orig_weight)

    def merge_unsafe(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> None:
        merging.merge_unsafe(self, module, active_adapter)

    def unmerge(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return merging.unmerge(self, module, active_adapter, orig_weight)

    def unmerged_weight(self, module: LoraLayer, adapter: str, weight: Tensor) -> Tensor:
        """The inverse of `merged_weight`, by arithmetic."""
        return weight.to(opmath(weight)) - merging.delta_weight(module, adapter, opmath(weight))

    def forget_merge(self, module: LoraLayer, adapter: str) -> None:
        """Drop what was kept for undoing a merge."""

    def require_linear(self, adapter: str) -> None:
        """Raise `NotLinearError` unless β = 0."""
        if not self.state.linear:
            raise NotLinearError(
                f"adapter {adapter!r} is still non-linear ({self.state.where()}), so no weight matrix equals it. "
                "Train on until β = 0, lower anneal_end, or call afa_lora.linearize(model, data) for the nearest "
                "linear adapter."
            )


class AfaDoraVariant(AfaVariant):
    """y = (m/‖W₀ + s·BA‖) · (W₀x + s·B φ_β(A x)): the norm is the linear product's, so that β = 0 is DoRA."""

    def __init__(self, config: AfaLoraConfig, inner: LoraVariant) -> None:
        super().__init__(config, inner)
        self._base_square: tuple[int, int, Tensor] | None = None

    def init(self, module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        super().init(module, adapter_name, **kwargs)
        self.reset_magnitude(module, adapter_name)

    def reset_magnitude(self, module: LoraLayer, adapter: str) -> None:
        """Set m to the very norm that the forward divides by: B = 0 then gives the base model exactly.

        m is kept in float32 for half-precision weights, as the norm is.
        """
        magnitude = module.lora_magnitude_vector[adapter].weight
        if magnitude.device.type == "meta":
            return
        norm = self.norm(module, adapter)
        if norm.dtype == magnitude.dtype:
            magnitude.data.copy_(norm.view(magnitude.shape))
        else:
            module.lora_magnitude_vector[adapter].weight = nn.Parameter(
                norm.view(magnitude.shape), requires_grad=magnitude.requires_grad
            )

    def norm(self, module: LoraLayer, adapter: str, base_weight: Tensor | None = None) -> Tensor:
        """‖W₀ + s·BA‖ per output row, (out,), detached. ``base_weight`` stands in for the layer's own W₀."""
        base = module.get_base_layer()
        weight = _base_weight(module) if base_weight is None else base_weight
        rows = merging.lay_out(module, weight.detach()).flatten(1)  # (out, in)
        A = module.lora_A[adapter].weight.flatten(1)  # (r, in)
        B = module.lora_B[adapter].weight.flatten(1)  # (out, r)
        square = self._cached_square(base, rows) if base_weight is None else None
        return dora_norm(rows, A, B, module.scaling[adapter], square)

    def _cached_square(self, base: nn.Module, rows: Tensor) -> Tensor:
        """‖W₀‖² per row, computed once for a frozen W₀ and again whenever W₀ was written to.

        FSDP2 gathers weights into the same memory and keeps their version counter, so there nothing tells of a write;
        the layers it manages are those whose state dict it intercepts.
        """
        weight = getattr(base, "weight", None)
        if weight is None or weight.requires_grad or base._state_dict_pre_hooks or torch.compiler.is_compiling():
            return squared_row_norm(rows)
        key = (weight.data_ptr(), weight._version)
        if self._base_square is None or self._base_square[:2] != key:
            self._base_square = (*key, squared_row_norm(rows))
        return self._base_square[2]

    def forward(self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        self._watch(module)
        base = module.get_base_layer()
        dropout = module.lora_dropout[active_adapter]
        factor = module.lora_magnitude_vector[active_adapter].weight.flatten() / self.norm(module, active_adapter)
        bias = base.bias
        if x_is_channels_first := isinstance(base, nn.modules.conv._ConvNd):
            per_channel = (-1, *(1,) * (base.weight.dim() - 2))
            factor, bias = factor.view(per_channel), None if bias is None else bias.view(per_channel)
        if isinstance(dropout, nn.Identity) or not module.training:
            return dora_rescale(self._branch(module, active_adapter, x, result), bias, factor)

        # As in PEFT: under dropout DoRA's part of the base output comes from the dropped x, and W₀x itself stays.
        x = dropout(x)
        weight = _base_weight(module).to(x.dtype)
        if x_is_channels_first:
            dropped = base._conv_forward(x, weight, None)
        else:
            dropped = nn.functional.linear(x, merging.lay_out(module, weight))
        branch = self._branch(module, active_adapter, x, None)
        out: Tensor = result + (factor - 1) * dropped + factor * branch
        return out

    def merged_weight(self, module: LoraLayer, adapter: str, weight: Tensor) -> Tensor:
        """(m/‖W₀ + s·BA‖) ∘ (W₀ + s·BA) in float32."""
        merged = super().merged_weight(module, adapter, weight)
        return merged * self._merge_factor(module, adapter, weight)

    def unmerged_weight(self, module: LoraLayer, adapter: str, weight: Tensor) -> Tensor:
        factor: Tensor = module._caches[f"{adapter}-afa-factor"]
        return weight.to(opmath(weight)) / factor - merging.delta_weight(module, adapter, opmath(weight))

    def forget_merge(self, module: LoraLayer, adapter: str) -> None:
        module._cache_pop(f"{adapter}-afa-factor")

    def _merge_factor(self, module: LoraLayer, adapter: str, weight: Tensor) -> Tensor:
        """m/‖W₀ + s·BA‖ shaped to multiply ``weight``. W₀ is the weight without the adapters merged before."""
        with module._unmerged_base_weight() as base_weight:
            norm = self.norm(module, adapter, base_weight)
        magnitude: Tensor = module.lora_magnitude_vector[adapter].weight.detach().flatten()
        factor = magnitude.to(norm.dtype) / norm
        factor = merging.lay_out(module, factor.view(-1, *(1,) * (weight.dim() - 1)))
        module._cache_store(f"{adapter}-afa-factor", factor)
        return factor


def make_variant(config: AfaLoraConfig, inner: LoraVariant | None) -> AfaVariant | None:
    """Wrap the variant PEFT chose, or return ``None`` for one that cannot carry an activation."""
    if inner is None:
        return AfaVariant(config, inner)
    if isinstance(inner, DoraLinearVariant | _DoraConvNdVariant):
        return AfaDoraVariant(config, inner)
    return None


class _Phi(torch.autograd.Function):
    """φ_β that saves its input alone, for layers whose A and B must be called as modules."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, activation: Activation, beta: Beta) -> Tensor:
        ctx.save_for_backward(h)
        ctx.setting = activation, beta
        return phi(h, activation, beta)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (h,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            activation, beta = ctx.setting
            return torch.autograd.grad(phi(h, activation, beta), h, grad, create_graph=True)[0], None, None
        return phi_backward(grad, h, *ctx.setting), None, None


def _base_weight(module: LoraLayer) -> Tensor:
    """W₀, dequantised if need be (PEFT's helper for that breaks `torch.compile`'s graph, so only then)."""
    base = module.get_base_layer()
    weight: Tensor = base.weight if merging.stores_plain_weight(module) else dequantize_module_weight(base)
    return weight


def _is_bare_linear(module: nn.Module) -> bool:
    """Is calling the module the same as using its weight?

    Not under hooks, in a wrapper (FSDP1, TP), sharded by itself, nor for conv layers. In a decoder layer that FSDP2
    shards it is: there the weights are gathered, as ordinary parameters, before the layer runs.
    """
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and "forward" not in module.__dict__
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
    )
