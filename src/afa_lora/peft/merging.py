"""Merging into the base weight: in place, computed in float32 and cast once, restored rather than subtracted.

In place, because under FSDP2 a rebind of ``.data`` (what PEFT does) is lost and the base weights stay unmerged. There
every rank merges its own shard: merging and unmerging are collective, all ranks must call them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

import psutil
import torch
import torch.distributed as dist
from peft.tuners.lora.layer import Linear, LoraLayer, _ConvNd
from peft.utils.other import transpose
from torch import Tensor

from afa_lora.core.errors import InvalidSettingError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

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
def merge_unsafe(variant: AfaVariant, module: LoraLayer, adapter: str) -> None:
    """W ← W merged, written into the base weight's own storage."""
    target = stored_weight(module)
    _write(variant, target, variant.merged_weight(module, adapter, target.detach()))


@torch.no_grad()
def merge_safe(variant: AfaVariant, module: LoraLayer, adapter: str, weight: Tensor) -> Tensor:
    """Merge only if every merged number is finite.

    Returns:
        what PEFT binds to the layer's weight: its own storage again, or for a quantised layer (``weight`` is then
        dequantised) the new values for PEFT to quantise.

    Raises:
        ValueError: the merged weight has NaN or infinite numbers; nothing was changed.
        InvalidSettingError: a sharded layer whose B has a bias.
    """
    plain = stores_plain_weight(module)
    target = stored_weight(module) if plain else weight
    if is_sharded(target) and module.lora_bias[adapter]:
        raise InvalidSettingError(
            f"safe_merge=True with lora_bias=True (adapter {adapter!r}) would lose the bias of a sharded layer: PEFT "
            "rebinds it. Merge with safe_merge=False, or gather the model first."
        )
    merged = variant.merged_weight(module, adapter, target.detach())
    if not _on_all_ranks(bool(torch.isfinite(_shard(merged)).all()), merged):
        raise ValueError(f"merging adapter {adapter!r} gives NaN or infinite weights; nothing was merged.")
    if not plain:
        return merged.to(weight.dtype)
    _write(variant, target, merged)
    return target.data


@torch.no_grad()
def unmerge(variant: AfaVariant, module: LoraLayer, adapter: str, weight: Tensor) -> Tensor:
    """Take the adapter out of ``weight`` again: the kept original if there is one, else by arithmetic in float32."""
    plain = stores_plain_weight(module)
    target = stored_weight(module) if plain else weight
    original, variant.original = variant.original, None
    if original is None:
        original = variant.unmerged_weight(module, adapter, target.detach()).to(weight.dtype)
    variant.forget_merge(module, adapter)
    if not plain:
        return original
    target.copy_(original)
    return weight.data


def stored_weight(module: LoraLayer) -> Tensor:
    """W as it is kept: under FSDP2 the shard, since what is written into gathered weights is lost.

    A forward may leave them gathered (the root's, always). Reading the state dict, which FSDP2 gives out in shards,
    puts the layer's weights back.
    """
    module.state_dict(keep_vars=True)
    weight: Tensor = module.get_base_layer().weight
    return weight


def is_sharded(weight: Tensor) -> TypeGuard[DTensor]:
    """Is ``weight`` one rank's part of a tensor?"""
    if not (dist.is_available() and dist.is_initialized()):  # a torch built without it has no DTensor to import
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(weight, DTensor)


def as_sharded(tensor: Tensor, like: Tensor) -> Tensor:
    """``tensor``, which every rank has whole, in a form that multiplies ``like``, which may be sharded."""
    tensor = tensor.to(like.device)
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh
    return DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)


def sum_over_shards(values: Tensor, weight: Tensor) -> Tensor:
    """Σ of ``values`` over all ranks that have a shard of ``weight``; ``values`` themselves for a whole weight."""
    if not is_sharded(weight):
        return values
    device = weight.device_mesh.device_type
    total = values.to(device, copy=True)
    for group in weight.device_mesh.get_all_groups():
        dist.all_reduce(total, dist.ReduceOp.SUM, group)
    return total.to(values.device)


def _write(variant: AfaVariant, target: Tensor, merged: Tensor) -> None:
    if variant.keep_original and _memory_allows(target):
        variant.original = target.detach().clone()
    target.copy_(merged)


def stores_plain_weight(module: LoraLayer) -> bool:
    """Is the base weight an ordinary tensor, not a quantised one?"""
    return isinstance(module, Linear | _ConvNd)


def _memory_allows(weight: Tensor) -> bool:
    """Does a second copy of ``weight`` leave the reserve of its device untouched, on every rank that has a shard?"""
    shard = _shard(weight)
    needed = shard.numel() * shard.element_size()
    if shard.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(shard.device)
    else:
        memory = psutil.virtual_memory()
        free, total = memory.available, memory.total
    # Unmerging by arithmetic gathers: all ranks keep the original or none.
    return _on_all_ranks(free - needed > MEMORY_RESERVE * total, weight)


def _shard(weight: Tensor) -> Tensor:
    return weight.to_local() if is_sharded(weight) else weight


def _on_all_ranks(holds: bool, weight: Tensor) -> bool:
    """Does it hold on every rank that has a shard of ``weight``?"""
    if not is_sharded(weight):
        return holds
    vote = torch.tensor(float(holds), device=weight.to_local().device)
    for group in weight.device_mesh.get_all_groups():
        dist.all_reduce(vote, dist.ReduceOp.MIN, group)
    return bool(vote)
