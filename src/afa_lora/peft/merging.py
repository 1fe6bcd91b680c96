"""Merging into the base weight: in place, computed in float32 and cast once, restored rather than subtracted.

In place, because under FSDP2 a rebind of ``.data`` (what PEFT does) is lost and the base weights stay unmerged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import torch
from peft.tuners.lora.layer import Linear, LoraLayer, _ConvNd
from peft.utils.other import transpose
from torch import Tensor

if TYPE_CHECKING:
    from afa_lora.peft.variant import AfaVariant

MEMORY_RESERVE = 0.1  # share of the device's memory that keeping originals may not use up


def delta_weight(module: LoraLayer, adapter: str, dtype: torch.dtype) -> Tensor:
    """s·BA, # Eq. 2, in ``dtype`` and in the layout of the layer's base weight."""
    A = module.lora_A[adapter].weight.detach().flatten(1).to(dtype)  # (r, in)
    B = module.lora_B[adapter].weight.detach().flatten(1).to(dtype)  # (out, r)
    delta = (B @ A) * module.scaling[adapter]  # (out, in)
    if isinstance(module, _ConvNd):
        delta = delta.view(module.get_base_layer().weight.shape)
    return lay_out(module, delta)


def lay_out(module: LoraLayer, matrix: Tensor) -> Tensor:
    """(out, in) to the layout of the layer's weight, and back: GPT-2's `Conv1D` stores (in, out)."""
    laid_out: Tensor = transpose(matrix, getattr(module, "fan_in_fan_out", False))
    return laid_out


@torch.no_grad()
def merge_unsafe(variant: AfaVariant, module: LoraLayer, adapter: str, weight: Tensor) -> None:
    """W ← W merged, written into ``weight``'s own storage."""
    merged = variant.merged_weight(module, adapter, weight.detach())
    _write(variant, weight, merged)


@torch.no_grad()
def merge_safe(variant: AfaVariant, module: LoraLayer, adapter: str, weight: Tensor) -> Tensor:
    """Merge only if every merged number is finite.

    Returns:
        what PEFT binds to the layer's weight: its own storage again, or for a quantised layer (``weight`` is then
        dequantised) the new values for PEFT to quantise.

    Raises:
        ValueError: the merged weight has NaN or infinite numbers; nothing was changed.
    """
    merged = variant.merged_weight(module, adapter, weight)
    if not torch.isfinite(merged).all():
        raise ValueError(f"merging adapter {adapter!r} gives NaN or infinite weights; nothing was merged.")
    if not stores_plain_weight(module):
        return merged.to(weight.dtype)
    target: Tensor = module.get_base_layer().weight
    _write(variant, target, merged)
    return target.data


@torch.no_grad()
def unmerge(variant: AfaVariant, module: LoraLayer, adapter: str, weight: Tensor) -> Tensor:
    """Take the adapter out of ``weight`` again: the kept original if there is one, else by arithmetic in float32."""
    original, variant.original = variant.original, None
    if original is None:
        original = variant.unmerged_weight(module, adapter, weight.detach()).to(weight.dtype)
    variant.forget_merge(module, adapter)
    if not stores_plain_weight(module):
        return original
    weight.copy_(original)
    return weight.data


def _write(variant: AfaVariant, target: Tensor, merged: Tensor) -> None:
    if variant.keep_original and _memory_allows(target):
        variant.original = target.detach().clone()
    target.copy_(merged)


def stores_plain_weight(module: LoraLayer) -> bool:
    """Is the base weight an ordinary tensor, not a quantised one?"""
    return isinstance(module, Linear | _ConvNd)


def _memory_allows(weight: Tensor) -> bool:
    """Does a second copy of ``weight`` leave the reserve of its device untouched?"""
    needed = weight.numel() * weight.element_size()
    if weight.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(weight.device)
    else:
        memory = psutil.virtual_memory()
        free, total = memory.available, memory.total
    return bool(free - needed > MEMORY_RESERVE * total)
