"""Run by torchrun on two ranks: training, merging, saving under DDP and FSDP2. Results go to the folder given."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from afa_lora import InvalidSettingError, linearize, set_beta
from afa_lora.peft import merging, variant
from tests.distributed.tiny import (
    BETAS,
    KINDS,
    SENTENCES,
    STEPS,
    adapted_model,
    adapter_tensors,
    counted,
    fill,
    filled_model,
    one_step,
    tokens,
    train,
)


def shard(model: PeftModel, own: Iterable[nn.Module] = (), reshard: bool = True) -> PeftModel:
    """FSDP2 as usual: each decoder layer, then the root; ``own`` are sharded by themselves."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in [*own, *model.get_base_model().model.layers]:
        fully_shard(module, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh)
    assert_sharded(model)
    return model


def assert_sharded(model: nn.Module) -> None:
    """Not just DDP under another name; where a forward has left weights gathered, to be asked after `whole`."""
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(model: nn.Module) -> dict[str, Tensor]:
    """The whole state dict, on every rank."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


def same(one: dict[str, Tensor], two: dict[str, Tensor], tolerance: float = 0.0) -> bool:
    return one.keys() == two.keys() and all((one[key] - two[key]).abs().max() <= tolerance for key in one)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=tokens(99)).logits


def my_share() -> slice:
    size = SENTENCES // dist.get_world_size()
    return slice(dist.get_rank() * size, (dist.get_rank() + 1) * size)


def train_replicated(folder: Path, kind: str) -> None:
    model = adapted_model(kind)
    betas = train(DistributedDataParallel(model), model, my_share())
    save_file({"beta": betas, **adapter_tensors(model.state_dict())}, folder / f"ddp-{kind}-{dist.get_rank()}")


def train_sharded(folder: Path, kind: str) -> None:
    """Train by the fused branch, save the adapter in the midst of the annealing, note what the sharded model says."""
    model = shard(adapted_model(kind))
    calls: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(variant, "adapter_branch", counted(variant.adapter_branch, calls))
        betas = train(model, model, my_share())
    assert len(calls) == STEPS * 7  # three layers in each of two decoder layers, and lm_head
    state = whole(model)
    save_file({"beta": betas, **adapter_tensors(state)}, folder / f"fsdp-{kind}-{dist.get_rank()}")
    model.save_pretrained(folder / f"saved-{kind}", state_dict=state, is_main_process=dist.get_rank() == 0)
    save_file({"logits": logits(model)}, folder / f"logits-{kind}-{dist.get_rank()}")


def step_with_checkpointing(folder: Path, kind: str, beta: float) -> None:
    """One step whose layers are computed twice; at β = 0 after a rollout with merged weights, as RL has it."""
    model = shard(filled_model(kind, beta))
    before = whole(model)
    if beta == 0.0:
        model.merge_adapter()
        logits(model)
        model.unmerge_adapter()
        assert same(whole(model), before)
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    forwards: list[int] = []
    query = model.get_base_model().model.layers[0].self_attn.q_proj
    query.register_forward_pre_hook(lambda *arguments: forwards.append(1))
    one_step(model, my_share())
    assert len(forwards) == 2  # the second time in the backward
    after = whole(model)
    assert_sharded(model)
    assert same(frozen(after), frozen(before))
    save_file(adapter_tensors(after), folder / f"step-{kind}-{beta}-{dist.get_rank()}")


def frozen(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if ".lora_" not in key}


def sharded_by_itself() -> None:
    """An A that FSDP2 gathers in its own forward must be called as a module; the result is the same."""
    alone, sharded = adapted_model("lora"), adapted_model("lora")
    shard(sharded, own=[layer.self_attn.q_proj.lora_A["default"] for layer in sharded.get_base_model().model.layers])
    train(alone, alone, slice(None))
    train(sharded, sharded, my_share())
    assert same(adapter_tensors(alone.state_dict()), adapter_tensors(whole(sharded)), 2e-5)


def merge_and_unmerge(folder: Path, kind: str, reshard: bool, safe: bool) -> None:
    model = adapted_model(kind)
    fill(model)
    set_beta(shard(model, reshard=reshard), 0.0)
    before, expected = whole(model), logits(model)  # the forward leaves weights gathered
    model.merge_adapter(safe_merge=safe)
    merged = whole(model)
    assert_sharded(model)
    assert not same(before, merged)
    assert (logits(model) - expected).abs().max() < 2e-5
    if dist.get_rank() == 0:
        save_file(merged, folder / f"merged-{kind}-{reshard}-{safe}")
    with accelerator_under_fsdp2() as accelerator:
        found = accelerator.get_state_dict(model)
    assert dist.get_rank() != 0 or same(found, merged)
    model.unmerge_adapter()
    assert same(whole(model), before)
    assert_sharded(model)
    assert torch.equal(logits(model), expected)
    unloaded = model.merge_and_unload()
    assert same(whole(unloaded), plain_names(merged))


def plain_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {key: key.removeprefix("base_model.model.").replace(".base_layer", "") for key in state}
    return {names[key]: tensor for key, tensor in state.items() if ".lora_" not in key}


@contextmanager
def accelerator_under_fsdp2() -> Iterator[Accelerator]:
    """On the CPU accelerate takes an FSDP plug-in for DDP and says nothing; its state must be told."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    assert not accelerator.is_fsdp2  # once this fails, the detour is over
    kind = PartialState().distributed_type
    PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    yield accelerator
    PartialState().distributed_type = accelerator.state.distributed_type = kind


def ranks_unmerge_alike_where_memory_is_short_on_one(kind: str) -> None:
    """By arithmetic, which gathers, on all ranks or on none."""
    model = adapted_model(kind)
    fill(model)
    set_beta(shard(model), 0.0)
    before = whole(model)
    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank() == 1:
            full = SimpleNamespace(available=0, total=1)
            patch.setattr(merging, "psutil", SimpleNamespace(virtual_memory=lambda: full))
        model.merge_adapter()
    model.unmerge_adapter()
    assert not same(whole(model), before)
    assert same(whole(model), before, 1e-6)


def all_ranks_refuse_what_is_nan_on_one() -> None:
    model = adapted_model("lora", target_modules=["q_proj"])
    model.get_base_model().model.layers[0].self_attn.q_proj.lora_B["default"].weight.data[-1] = torch.nan  # rank 1's
    set_beta(shard(model), 0.0)
    before = {key: tensor for key, tensor in whole(model).items() if ".base_layer." in key}
    with pytest.raises(ValueError, match="NaN or infinite weights; nothing was merged"):
        model.merge_adapter(safe_merge=True)
    assert same({key: tensor for key, tensor in whole(model).items() if key in before}, before)


@torch.no_grad()
def norm_follows_a_new_base(reshard: bool) -> None:
    """DoRA's norm is that of the present W₀, though FSDP2 gathers it into the same memory as the one before."""
    alone, sharded = adapted_model("dora"), adapted_model("dora")
    shard(sharded, reshard=reshard)
    assert torch.equal(logits(alone), logits(sharded))
    old = logits(alone)
    for name, parameter in sharded.state_dict(keep_vars=True).items():
        if ".base_layer." in name:
            whole_parameter = alone.get_parameter(name)
            whole_parameter.mul_(3.0)
            parameter.copy_(distribute_tensor(whole_parameter, parameter.device_mesh, parameter.placements))
    assert not torch.equal(logits(alone), old)
    assert torch.equal(logits(alone), logits(sharded))


def beta_survives_meta_initialisation(kind: str) -> None:
    """Made on the meta device, sharded, materialised with `to_empty`, filled from rank 0."""
    source = adapted_model(kind)
    fill(source)
    set_beta(source, 0.3)
    model = adapted_model(kind)
    set_beta(model, 0.3)
    shard(model.to("meta")).to_empty(device="cpu")
    for name, buffer in model.named_buffers():
        buffer.copy_(source.get_buffer(name))
    state = source.state_dict() if dist.get_rank() == 0 else {}
    set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    assert model.peft_config["default"].beta == 0.3
    assert torch.equal(logits(model), logits(source))


def what_needs_whole_weights_says_so() -> None:
    model = shard(adapted_model("lora"))
    with pytest.raises(InvalidSettingError, match=r"linearize needs whole weights.*FSDP2"):
        linearize(model, {"input_ids": tokens(0)})
    model = adapted_model("lora", lora_bias=True, target_modules=["lm_head"])
    set_beta(shard(model), 0.0)
    with pytest.raises(InvalidSettingError, match="safe_merge=True with lora_bias=True"):
        model.get_base_model().lm_head.merge(safe_merge=True)


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    for kind in KINDS:
        train_replicated(folder, kind)
        train_sharded(folder, kind)
    sharded_by_itself()
    for kind in ("lora", "dora"):
        for beta in BETAS:
            step_with_checkpointing(folder, kind, beta)
        merge_and_unmerge(folder, kind, reshard=True, safe=False)
        merge_and_unmerge(folder, kind, reshard=False, safe=True)
        beta_survives_meta_initialisation(kind)
        ranks_unmerge_alike_where_memory_is_short_on_one(kind)
    for reshard in (True, False):
        norm_follows_a_new_base(reshard)
    all_ranks_refuse_what_is_nan_on_one()
    what_needs_whole_weights_says_so()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
