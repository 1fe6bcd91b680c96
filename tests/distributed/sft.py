"""Run by torchrun on two ranks: whole runs of `run_sft` under DDP, interrupted in one rank, and under FSDP2."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from afa_lora.sft import RecipeError, parse_recipe, run, run_sft
from afa_lora.sft.trainer import ExactSFTTrainer
from afa_lora.tuning.failures import RunStopped
from tests.distributed.workflow import under_fsdp2


def whole(settings: dict[str, Any], output: Path) -> None:
    run_sft(parse_recipe({**settings, "output": str(output)}))


def interrupted(settings: dict[str, Any], output: Path) -> None:
    """Only the second rank gets the signal; both must stop after the same step, and the same command goes on."""
    step = ExactSFTTrainer.training_step

    def interrupt(self: ExactSFTTrainer, *arguments: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 2 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *arguments, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExactSFTTrainer, "training_step", interrupt)
        with pytest.raises(RunStopped, match=r"Stopped at step 3 of 6\..*checkpoint-3\."):
            whole(settings, output)
    whole(settings, output)


def sharded(settings: dict[str, Any], output: Path) -> None:
    make_trainer, trainers = run.make_trainer, []

    def make(*arguments: Any) -> ExactSFTTrainer:
        trainer = under_fsdp2(make_trainer(*arguments))
        trainers.append(trainer)
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "make_trainer", make)
        patch.setattr(run, "is_sharded", lambda args: True)
        train = {**settings["train"], "fsdp": True, "fsdp_config": {"version": 2}}
        whole({**settings, "train": train}, output)
    layers = trainers[0].model.get_base_model().model.layers  # the rest stays gathered after a forward
    assert all(isinstance(parameter, DTensor) for parameter in layers.parameters())


def not_sharded(settings: dict[str, Any], output: Path) -> None:
    """On a CPU accelerate runs DDP where FSDP is asked for."""
    train = {**settings["train"], "fsdp": True, "fsdp_config": {"version": 2}}
    with pytest.raises(RecipeError, match="FSDP is asked for"):
        whole({**settings, "train": train}, output)


def main(folder: Path) -> None:
    settings = json.loads((folder / "settings.json").read_text())
    settings["train"]["per_device_train_batch_size"] //= 2
    whole(settings, folder / "ddp")
    interrupted(settings, folder / "interrupted")
    not_sharded(settings, folder / "not-sharded")
    sharded(settings, folder / "fsdp2")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
