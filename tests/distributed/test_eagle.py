"""`afa eagle train` on two ranks is the training of one process with twice the batch."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.launch import torchrun
from tests.eagle.training import make_settings, train

pytestmark = [pytest.mark.slow, pytest.mark.integration]
PROGRAM = Path(__file__).with_name("eagle.py")


def test_two_ranks_train_like_one(tmp_path: Path) -> None:
    settings = {**make_settings(tmp_path), "output": str(tmp_path / "two")}
    settings["loss"] = {"noise": 0}  # drawn by each rank for its own conversations
    settings["data"]["test_items"] = 3  # an odd number: one rank gets one more than the other
    settings["train"] |= {"max_steps": 6, "optim": "sgd", "learning_rate": 0.5, "per_device_train_batch_size": 2}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    torchrun(PROGRAM, tmp_path / "settings.json")
    one = train(settings, tmp_path / "one", train={"per_device_train_batch_size": 4})
    two = json.loads((tmp_path / "two" / "results.json").read_text())

    assert [v for _, v in two["loss"]] == pytest.approx([v for _, v in one.curve.loss], rel=1e-5)
    assert [v for _, v in two["accuracy"]] == pytest.approx([v for _, v in one.accuracy])
    assert two["test"] == pytest.approx(one.test, rel=1e-5)
    assert two["tokens"] == one.tokens
    weights = [load_file(tmp_path / name / "draft" / "model.safetensors") for name in ("one", "two")]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-5) for name in weights[0])
