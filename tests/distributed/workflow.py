"""Run by torchrun on two ranks: answers, and TRL's SFTTrainer under DDP and FSDP2. Results go to the folder given."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from trl import SFTTrainer

from tests.distributed.chat import add_adapter, answers, load, make_trainer

FSDP = {"version": 2}  # wraps the model's own decoder layers, as recipes/accelerate does


def answer(chat: Path, output: Path) -> None:
    replicated, tokenizer = load(chat)
    sharded, _ = load(chat)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in sharded.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    found = {"replicated": answers(replicated, tokenizer), "sharded": answers(sharded, tokenizer)}
    (output / f"answers-{dist.get_rank()}.json").write_text(json.dumps(found))
    batch = tokenizer("To train after answering needs gathered weights.", return_tensors="pt")
    sharded(**batch, labels=batch["input_ids"]).loss.backward()


def under_fsdp2(trainer: SFTTrainer) -> SFTTrainer:
    """On the CPU accelerate and so the Trainer take FSDP for DDP and say nothing: tell both."""
    state = trainer.accelerator.state
    assert not trainer.is_fsdp_enabled  # once this fails, the detour is over
    state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    trainer.is_fsdp_enabled = True
    return trainer


def note(trainer: SFTTrainer, name: str, output: Path) -> None:
    """Losses, β, evaluation and answers of this rank; the adapter is saved as the Trainer does it."""
    trainer.save_model(str(output / name))
    noted = {
        "loss": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "beta": trainer.model.peft_config["default"].beta,
        "eval_loss": trainer.evaluate()["eval_loss"],
        "answers": answers(trainer.model, trainer.processing_class),
    }
    (output / f"{name}-{dist.get_rank()}.json").write_text(json.dumps(noted))


def train(chat: Path, output: Path, name: str, resume: bool = False, **options: Any) -> None:
    model, tokenizer = load(chat)
    trainer = make_trainer(add_adapter(model), tokenizer, output / f"{name}-run", 2, logging_steps=1, **options)
    if "fsdp" in options:
        under_fsdp2(trainer)
    trainer.train(resume_from_checkpoint=str(output / f"{name}-run" / "checkpoint-2") if resume else None)
    assert all(isinstance(p, DTensor) for p in trainer.model.parameters()) == ("fsdp" in options)
    assert all(isinstance(m, FSDPModule) for m in trainer.model.get_base_model().model.layers) == ("fsdp" in options)
    note(trainer, f"{name}-resumed" if resume else name, output)
    trainer.accelerator.wait_for_everyone()


def best_of(chat: Path, output: Path) -> None:
    """The checkpoint brought back is the first, from the midst of the annealing: here the largest loss is the best."""
    model, tokenizer = load(chat)
    options = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "greater_is_better": True}
    args = {"fsdp": True, "fsdp_config": dict(FSDP), **options}
    trainer = under_fsdp2(make_trainer(add_adapter(model), tokenizer, output / "best-run", 2, **args))
    trainer.train()
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    assert trainer.state.best_global_step == 2
    assert trainer.model.peft_config["default"].beta == 1 - 2 / 3
    assert abs(trainer.evaluate()["eval_loss"] - losses[2]) < 1e-5
    trainer.accelerator.wait_for_everyone()


def main(chat: Path, output: Path) -> None:
    dist.init_process_group("gloo")
    answer(chat, output)
    train(chat, output, "ddp")
    train(chat, output, "fsdp2", fsdp=True, fsdp_config=dict(FSDP))
    train(chat, output, "fsdp2", resume=True, fsdp=True, fsdp_config=dict(FSDP))
    with pytest.MonkeyPatch.context() as patch:  # as `accelerate launch` sets it
        patch.setenv("ACCELERATE_USE_FSDP", "true")
        patch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
        read = torch.equal(load(chat)[0].lm_head.weight, load_file(chat / "model.safetensors")["lm_head.weight"])
        assert read == (dist.get_rank() == 0)  # the others get theirs when the model is sharded
        train(chat, output, "fsdp2-lean", fsdp=True, fsdp_config={**FSDP, "cpu_ram_efficient_loading": True})
    best_of(chat, output)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
