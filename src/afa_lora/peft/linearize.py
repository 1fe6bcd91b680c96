"""The honest way out of the annealing window: the linear adapter nearest to the present one, and how near that is.

Each φ_β is replaced by a slope per channel, fitted in closed form by least squares on real activations,
d = Σ φ(h)·h / Σ h², and folded into A's columns (before A), A's rows (between) or B's rows (after B).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer, _ConvNd
from torch import Tensor, nn

from afa_lora.core.activation import phi
from afa_lora.core.errors import InvalidSettingError
from afa_lora.peft.merging import as_sharded, is_sharded, stored_weight, sum_over_shards
from afa_lora.peft.model import no_afa_layer
from afa_lora.peft.variant import AfaDoraVariant, AfaVariant

SITES = ("before_a", "between", "after_b")


@dataclass(frozen=True)
class LinearizeReport:
    """What replacing φ_β by slopes has changed.

    Attributes:
        relative_error: per layer, ‖branch − linear branch‖ / ‖branch‖ over the data, dimensionless.
        loss_before: mean loss over the batches with the activation; ``None`` if the model returns no loss.
        loss_after: the same with the linear adapter.
    """

    relative_error: dict[str, float]
    loss_before: float | None
    loss_after: float | None

    def __str__(self) -> str:
        errors = sorted(self.relative_error.items(), key=lambda item: item[1])
        worst, value = errors[-1]
        text = (
            f"linearized {len(errors)} layers: relative error median {statistics.median(v for _, v in errors):.3g}, "
            f"largest {value:.3g} ({worst})"
        )
        if self.loss_before is not None and self.loss_after is not None:
            change = self.loss_after - self.loss_before
            text += f"; loss {self.loss_before:.4f} -> {self.loss_after:.4f} ({change:+.4f})"
        return text


@dataclass
class _Fit:
    """The slopes of one layer, and the sums that the next one is computed from."""

    name: str
    adapter: str
    layer: LoraLayer
    variant: AfaVariant
    slopes: dict[str, Tensor] = field(default_factory=dict)
    cross: Tensor | None = None  # Σ φ(h)·h', per channel
    energy: Tensor | None = None  # Σ h'², per channel
    error: float = 0.0  # Σ (branch − linear branch)²
    norm: float = 0.0  # Σ branch²

    def trace(self, x: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield (site, value, its linear stand-in) after each site, and last ("output", branch, linear branch)."""
        lora_A, lora_B = self.layer.lora_A[self.adapter], self.layer.lora_B[self.adapter]
        exact = linear = x.to(lora_A.weight.dtype)
        for site, used, module in zip(SITES, self.variant.placement, (lora_A, lora_B, None), strict=True):
            if used:
                exact = phi(exact, self.variant.activation, self.variant.state.beta)
                yield site, exact, linear
                slope = self.slopes.get(site)
                linear = linear if slope is None else linear * self._along_channels(slope, linear)
            if module is not None:
                exact, linear = module(exact), module(linear)
        yield "output", exact, linear

    def _along_channels(self, slope: Tensor, h: Tensor) -> Tensor:
        return slope.to(h.dtype).view(-1, *(1,) * (h.dim() - 2)) if self._is_conv else slope.to(h.dtype)

    @property
    def _is_conv(self) -> bool:
        return isinstance(self.layer, _ConvNd)

    def channels_last(self, h: Tensor) -> Tensor:
        return (h.movedim(1, -1) if self._is_conv else h).double()

    def solve(self, site: str) -> None:
        assert self.cross is not None
        assert self.energy is not None
        cross, energy = sum_over_shards(torch.stack([self.cross, self.energy]), stored_weight(self.layer))
        self.slopes[site] = torch.where(energy > 0, cross / energy, 1.0)
        self.cross = self.energy = None

    def over_shards(self) -> None:
        """Make the measured error that of all ranks' data."""
        sums = torch.tensor([self.error, self.norm], dtype=torch.float64)
        self.error, self.norm = sum_over_shards(sums, stored_weight(self.layer)).tolist()

    def tensors(self) -> Iterator[nn.Parameter]:
        """What `fold` may change, as it is kept: under FSDP2 the shards."""
        stored_weight(self.layer)
        for parts in (self.layer.lora_A, self.layer.lora_B, self.layer.lora_magnitude_vector):
            if self.adapter in parts:
                yield from parts[self.adapter].parameters()

    def fold(self) -> None:
        """Write the slopes into A and B, and keep DoRA's factor m/‖W₀ + s·BA‖ what it was."""
        stored_weight(self.layer)
        A, B = self.layer.lora_A[self.adapter].weight, self.layer.lora_B[self.adapter]
        dora = isinstance(self.variant, AfaDoraVariant)
        before = self.variant.norm(self.layer, self.adapter) if dora else None
        if (columns := self.slopes.get("before_a")) is not None:
            A.mul_(as_sharded(columns.to(A.dtype).view(1, -1, *(1,) * (A.dim() - 2)), A))
        if (rows := self.slopes.get("between")) is not None:
            A.mul_(as_sharded(rows.to(A.dtype).view(-1, *(1,) * (A.dim() - 1)), A))
        if (outputs := self.slopes.get("after_b")) is not None:
            B.weight.mul_(as_sharded(outputs.to(A.dtype).view(-1, *(1,) * (B.weight.dim() - 1)), B.weight))
            if B.bias is not None:
                B.bias.mul_(as_sharded(outputs.to(A.dtype), B.bias))
        if before is not None:
            magnitude = self.layer.lora_magnitude_vector[self.adapter].weight
            magnitude.mul_((self.variant.norm(self.layer, self.adapter) / before).view(magnitude.shape))


def linearize(
    model: nn.Module, data: Mapping[str, Any] | Iterable[Mapping[str, Any]], adapter_name: str | None = None
) -> LinearizeReport:
    """Replace the activation of every active annealing adapter by its best slopes on ``data``; then merging is allowed.

    Args:
        model: a `PeftModel` with β > 0. Changed in place: A, B (and DoRA's m) are rescaled and β is set to 0.
        data: one batch or several, keyword arguments of the model's forward; a few thousand real tokens are enough.
            Padding is left out where the batch has an ``attention_mask``. Without ``labels`` the ``input_ids`` serve.
        adapter_name: only this adapter; all active ones by default.

    Returns:
        what was lost: the relative error of each layer and the change of the loss.

    Raises:
        InvalidSettingError: no batch, no active AFA adapter with β > 0, or a sharded model.
    """
    if any(is_sharded(parameter) for parameter in model.parameters()):
        raise InvalidSettingError(
            "linearize needs whole weights, and this model is sharded (FSDP2). Save the adapter, load it with "
            "afa_lora.load_adapter in one process, and linearize it there."
        )
    return _linearize(model, data, adapter_name)


@torch.no_grad()
def _linearize(
    model: nn.Module, data: Mapping[str, Any] | Iterable[Mapping[str, Any]], adapter_name: str | None
) -> LinearizeReport:
    batches = [_with_labels(batch) for batch in ([data] if isinstance(data, Mapping) else data)]
    if not batches:
        raise InvalidSettingError("data is empty; linearize needs at least one batch of real inputs.")
    fits = _fits(model, adapter_name)
    training = model.training
    model.eval()
    try:
        losses_before: list[float] = []
        for site in SITES:
            if any(getattr(fit.variant.placement, site) for fit in fits):
                losses_before = _run(model, fits, batches, partial(_accumulate, site))
                for fit in fits:
                    if fit.cross is not None:
                        fit.solve(site)
        _run(model, fits, batches, _measure)
        for fit in fits:
            fit.over_shards()
            fit.fold()
        for state in {id(fit.variant.state): fit.variant.state for fit in fits}.values():
            state.beta = 0.0
        losses_after = _run(model, [], batches, _measure)
    finally:
        model.train(training)
    return LinearizeReport(
        {fit.name: (fit.error / fit.norm) ** 0.5 if fit.norm else 0.0 for fit in fits},
        statistics.fmean(losses_before) if losses_before else None,
        statistics.fmean(losses_after) if losses_after else None,
    )


@contextmanager
def linearized(
    model: nn.Module, data: Mapping[str, Any] | Iterable[Mapping[str, Any]], adapter_name: str | None = None
) -> Iterator[LinearizeReport]:
    """Within the block the adapters are what `linearize` makes of them; after it what they were before, to the bit.

    For handing the nearest linear adapter to something that knows no other, in the middle of a training. The model may
    be sharded by FSDP2: all ranks enter and leave the block together, each with as many batches of its own data; the
    slopes fit the data of all of them, the report's losses are those of this rank.

    Args:
        model, data, adapter_name: see `linearize`.

    Raises:
        InvalidSettingError: no batch, or no active AFA adapter with β > 0.
    """
    fits = _fits(model, adapter_name)
    kept = [(tensor, tensor.detach().clone()) for fit in fits for tensor in fit.tensors()]
    states = {id(fit.variant.state): fit.variant.state for fit in fits}.values()
    places = [(state, state.beta, state.step, state.total_steps, state.driven) for state in states]
    try:
        yield _linearize(model, data, adapter_name)
    finally:
        with torch.no_grad():
            for fit in fits:
                stored_weight(fit.layer)  # the last forward may have left them gathered
            for tensor, original in kept:
                tensor.copy_(original)
        for state, beta, step, total_steps, driven in places:
            state.restore(beta)
            state.step, state.total_steps, state.driven = step, total_steps, driven


def _fits(model: nn.Module, adapter_name: str | None) -> list[_Fit]:
    fits = [
        _Fit(name, adapter, layer, variant)
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
        for adapter, variant in layer.lora_variant.items()
        if isinstance(variant, AfaVariant) and not variant.state.linear
        if adapter == adapter_name or (adapter_name is None and adapter in layer.active_adapters)
    ]
    if not fits:
        raise InvalidSettingError(f"no active AFA adapter with β > 0 to linearize. {no_afa_layer(model)}")
    return fits


def _accumulate(wanted: str, fit: _Fit, x: Tensor, keep: Tensor | None) -> None:
    for site, exact, linear in fit.trace(x):
        if site == wanted:
            target, regressor = (_rows(fit.channels_last(h), keep) for h in (exact, linear))
            cross, energy = (target * regressor).sum(0), regressor.square().sum(0)
            fit.cross = cross if fit.cross is None else fit.cross + cross
            fit.energy = energy if fit.energy is None else fit.energy + energy


def _measure(fit: _Fit, x: Tensor, keep: Tensor | None) -> None:
    *_, (_, exact, linear) = fit.trace(x)
    branch, stand_in = (_rows(fit.channels_last(h), keep) for h in (exact, linear))
    fit.error += float((branch - stand_in).square().sum())
    fit.norm += float(branch.square().sum())


def _rows(h: Tensor, keep: Tensor | None) -> Tensor:
    """(..., channels) -> (tokens, channels), without the padding where ``keep`` (batch, time) applies to ``h``."""
    if keep is not None and h.shape[:-1] == keep.shape:
        return h[keep.to(h.device)]
    return h.reshape(-1, h.shape[-1])


def _run(
    model: nn.Module,
    fits: list[_Fit],
    batches: list[dict[str, Any]],
    visit: Callable[[_Fit, Tensor, Tensor | None], None],
) -> list[float]:
    """Run the batches through the model, calling ``visit`` with the input of each layer. Returns the losses."""
    losses = []
    for batch in batches:
        mask = batch.get("attention_mask")
        keep = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None
        with _visiting(fits, keep, visit):
            loss = getattr(model(**batch), "loss", None)
        if loss is not None:
            losses.append(float(loss))
    return losses


@contextmanager
def _visiting(
    fits: list[_Fit], keep: Tensor | None, visit: Callable[[_Fit, Tensor, Tensor | None], None]
) -> Iterator[None]:
    def hook_for(fit: _Fit) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, args: visit(fit, args[0], keep)

    handles = [fit.layer.register_forward_pre_hook(hook_for(fit)) for fit in fits]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _with_labels(batch: Mapping[str, Any]) -> dict[str, Any]:
    if "labels" in batch or "input_ids" not in batch:
        return dict(batch)
    labels = batch["input_ids"].clone()
    if isinstance(mask := batch.get("attention_mask"), Tensor):
        labels[mask == 0] = -100
    return {**batch, "labels": labels}
