"""`afa sft` on two ranks ends like one process with the same global batch: DDP, DDP interrupted, FSDP2."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from afa_lora.running.metrics import read_metrics
from afa_lora.sft import parse_recipe, run_sft
from tests.distributed.launch import ROOT, torchrun
from tests.tiny_chat import save_tiny_chat_model

pytestmark = [pytest.mark.slow, pytest.mark.integration]
PROGRAM = Path(__file__).with_name("sft.py")
STEPS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs ``whole`` (this process), ``ddp``, ``interrupted`` and ``fsdp2`` (two ranks)."""
    folder = tmp_path_factory.mktemp("runs")
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Say yes to {i}.", "completion": "yes"}) + "\n" for i in range(29)))
    settings: dict[str, Any] = {
        "model": str(save_tiny_chat_model(folder / "model")),
        "method": "afa-dora",
        "output": str(folder / "whole"),
        "data": {"source": "file", "train": str(data), "test_items": 5},
        "adapter": {"r": 4},
        "anneal": {"anneal_end": 4},
        "train": {
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.01,
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "save_steps": 2,
            "seed": 0,
        },
        "evaluate": {"max_new_tokens": 4, "batch_size": 2},
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    run_sft(parse_recipe({**settings, "train": {**settings["train"], "use_cpu": True}}))
    torchrun(PROGRAM, folder)
    return folder


def assert_close(run: Path, other: Path, file: str, tolerance: float) -> None:
    ours, theirs = load_file(run / file), load_file(other / file)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor - theirs[name]).abs().max() <= tolerance, name


@pytest.mark.parametrize("name", ["ddp", "interrupted", "fsdp2"])
def test_two_ranks_end_like_one_process(folder: Path, name: str) -> None:
    run, one = folder / name, folder / "whole"
    for file in ("adapter/adapter_model.safetensors", "model/model.safetensors"):
        assert_close(run, one, file, 1e-4)
    assert json.loads((run / "adapter/adapter_config.json").read_text())["peft_type"] == "LORA"
    assert [json.loads(line)["given"] for line in (run / "answers.jsonl").read_text().splitlines()] == [
        json.loads(line)["given"] for line in (one / "answers.jsonl").read_text().splitlines()
    ]
    steps = [entry for entry in read_metrics(run / "metrics.jsonl") if "loss" in entry]
    assert [entry["step"] for entry in steps] == list(range(1, STEPS + 1))
    assert [entry["afa/beta"] for entry in steps] == [max(0.0, 1 - step / 4) for step in range(1, STEPS + 1)]


def test_a_signal_to_one_rank_stops_both_and_the_resumed_run_is_the_same_to_the_bit(folder: Path) -> None:
    for file in ("adapter/adapter_model.safetensors", "model/model.safetensors", "answers.jsonl"):
        assert (folder / "interrupted" / file).read_bytes() == (folder / "ddp" / file).read_bytes()


def test_what_a_sharded_run_merges_is_the_same_function(folder: Path) -> None:
    merge = json.loads((folder / "fsdp2" / "results.json").read_text())["merge"]
    assert merge["max_logit_difference"] < 1e-4


def test_accelerate_launch_with_the_configuration_for_the_cpu(folder: Path, tmp_path: Path) -> None:
    """The command line of the configuration's header; one process prints, both train."""
    recipe = tmp_path / "recipe.json"
    settings = json.loads((folder / "settings.json").read_text())
    settings["train"]["per_device_train_batch_size"] //= 2
    recipe.write_text(json.dumps(settings))  # JSON is YAML
    configuration = ROOT / "recipes" / "accelerate" / "cpu_2.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(configuration)]
    command = [*launch, "-m", "afa_cli", "sft", str(recipe), f"output={tmp_path / 'run'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("accuracy on held-out items") == 1
    [start] = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert start["environment"]["processes"] == 2
    assert_close(tmp_path / "run", folder / "ddp", "adapter/adapter_model.safetensors", 0)

    again = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, check=False)
    assert again.returncode != 0  # the first process refuses, the second does not wait for it for ever
    assert again.stderr.count("holds a finished run") == 1
