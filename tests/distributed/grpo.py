"""Run by torchrun on two ranks: whole runs of `run_grpo` under DDP, one of them interrupted within a generation."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from afa_lora.grpo.recipe import parse_recipe
from afa_lora.grpo.run import run_grpo
from afa_lora.grpo.trainer import ExactGRPOTrainer
from afa_lora.settings import RecipeError
from afa_lora.tuning.failures import RunStopped


def whole(settings: dict[str, Any], output: Path) -> None:
    run_grpo(parse_recipe({**settings, "output": str(output)}))


def interrupted(settings: dict[str, Any], output: Path) -> None:
    """Only the second rank gets the signal; both must stop after the same step, and the same command goes on."""
    step = ExactGRPOTrainer.training_step

    def interrupt(self: ExactGRPOTrainer, *arguments: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 2 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *arguments, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExactGRPOTrainer, "training_step", interrupt)
        with pytest.raises(RunStopped, match=r"Stopped at step 3 of 4\..*checkpoint-3\."):
            whole(settings, output)
    whole(settings, output)


def sharded(settings: dict[str, Any], output: Path) -> None:
    train = {**settings["train"], "fsdp": True, "fsdp_config": {"version": 2}}
    with pytest.raises(RecipeError, match="take verl"):
        whole({**settings, "train": train}, output)


def main(folder: Path) -> None:
    sys.path.append(str(folder))
    settings = json.loads((folder / "settings.json").read_text())
    whole(settings, folder / "ddp")
    interrupted(settings, folder / "interrupted")
    sharded(settings, folder / "sharded")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
