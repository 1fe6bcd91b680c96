"""What leaves an FSDP2 model: the merged weights for the rollout, and the adapter for its file. Needs no verl.

Nothing is written into the model: each weight is merged on its way out. So there is nothing to undo, no second copy of
the base model to keep meanwhile, and a rollout that fails half-way cannot leave merged weights behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from afa_lora.core.errors import InvalidSettingError
from afa_lora.files import folder_atomic
from afa_lora.peft.merging import is_sharded
from afa_lora.peft.variant import AfaVariant


@torch.no_grad()
def merged_weights(
    model: nn.Module, dtype: torch.dtype, device: torch.device | str | int, merge: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name in the base model, whole tensor) with the active adapter merged: # Eq. 2, in float32, cast once.

    Collective under FSDP2: every rank gets, and has to take, every tensor. One weight at a time is gathered.

    Args:
        model: a `PeftModel`, sharded or not.
        dtype: of the floating-point tensors that are yielded.
        device: where the tensors are gathered.
        merge: ``False`` leaves the adapter out, for one that has not learnt anything yet.

    Raises:
        NotLinearError: β > 0 with ``merge``.
        InvalidSettingError: more than one active adapter, or an adapter that is not an AFA adapter.
    """
    layers = {f"{name}.base_layer.weight": m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    for key, kept in model.state_dict().items():
        if ".lora_" in key:
            continue
        tensor = _merged(layers[key], kept) if merge and key in layers else kept
        tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
        yield base_name(key), _whole(tensor, device)


def base_name(key: str) -> str:
    """The base model's name of a tensor of the `PeftModel`."""
    return key.removeprefix("base_model.model.").replace(".base_layer.", ".")


def adapter_is_zero(model: nn.Module) -> bool:
    """Is every B zero, on every rank, so that the model is its base model whatever β and A are?"""
    weights = [b.weight for m in model.modules() if isinstance(m, LoraLayer) for b in m.lora_B.values()]
    local = [weight.to_local() if is_sharded(weight) else weight for weight in weights]
    used = torch.tensor(float(any(bool(weight.any()) for weight in local)))
    if dist.is_available() and dist.is_initialized():
        used = used.to(local[0].device)
        dist.all_reduce(used, dist.ReduceOp.MAX)
    return not bool(used)


def save_adapter(model: PeftModel, folder: Path, device: torch.device | str | int) -> None:
    """Write the adapter as `save_pretrained` does: AFA_LORA with its β, at β = 0 an ordinary LoRA or DoRA adapter.

    Collective under FSDP2; the first rank writes.
    """
    state = {key: _whole(tensor, device).cpu() for key, tensor in model.state_dict().items() if ".lora_" in key}
    if dist.is_available() and dist.is_initialized() and dist.get_rank() != 0:
        return
    with folder_atomic(folder) as temporary:
        model.save_pretrained(str(temporary), state_dict=state)


def _merged(layer: LoraLayer, weight: Tensor) -> Tensor:
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    variant = layer.lora_variant.get(names[0]) if len(names) == 1 else None
    if not isinstance(variant, AfaVariant):
        raise InvalidSettingError(
            f"active adapters {names!r}: the rollout gets the merged weights of one AFA adapter. Activate it alone."
        )
    merged = variant.merged_weight(layer, names[0], weight)
    variant.forget_merge(layer, names[0])  # nothing was written, so there is nothing to undo
    return merged


def _whole(tensor: Tensor, device: torch.device | str | int) -> Tensor:
    """A copy of ``tensor`` that owns its memory: the receiver may read it after the next training step."""
    if is_sharded(tensor):
        gathered: Tensor = tensor.to(device).full_tensor()  # type: ignore[attr-defined]
        return gathered
    return tensor.detach().to(device, copy=True)
