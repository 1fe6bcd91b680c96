"""`afa grpo` on two ranks: both have one policy, share the groups, and an interrupted run ends like a whole one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.launch import torchrun
from tests.grpo.conftest import REWARDS
from tests.tiny_chat import save_tiny_chat_model

pytestmark = [pytest.mark.slow, pytest.mark.integration]
PROGRAM = Path(__file__).with_name("grpo.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs ``ddp`` and ``interrupted``."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "two_rank_rewards.py").write_text(REWARDS)
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Say {i}.", "completion": "yes"}) + "\n" for i in range(29)))
    settings: dict[str, Any] = {
        "model": str(save_tiny_chat_model(folder / "model")),
        "method": "afa-lora",
        "data": {"source": "file", "train": str(data), "test_items": 5},
        "rewards": "two_rank_rewards:plain",
        "adapter": {"r": 4},
        "anneal": {"anneal_end": 4},
        "train": {
            "max_steps": 4,
            "per_device_train_batch_size": 2,  # a group of four lies on both ranks
            "num_generations": 4,
            "steps_per_generation": 2,
            "max_completion_length": 5,
            "learning_rate": 0.01,
            "beta": 0.01,
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "save_steps": 1,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "seed": 0,
        },
        "evaluate": {"batch_size": 2},
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    torchrun(PROGRAM, folder)
    return folder


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def test_the_policy_that_is_updated_has_sampled(folder: Path) -> None:
    numbers = results(folder / "ddp")
    assert numbers["largest_logprob_difference"] < 1e-5
    assert numbers["groups"] == 4  # two generations of two prompts
    assert [step for step, _ in numbers["validation"]] == [2, 4]
    assert [step for step, _ in numbers["linear_validation"]] == [2]


def test_an_interrupted_run_ends_like_a_whole_one(folder: Path) -> None:
    one, two = results(folder / "ddp"), results(folder / "interrupted")
    for key in ("reward", "validation", "linear_validation", "beta", "groups", "groups_with_equal_rewards", "after"):
        assert one[key] == two[key], key
    ours, theirs = (
        load_file(folder / name / "adapter" / "adapter_model.safetensors") for name in ("ddp", "interrupted")
    )
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
