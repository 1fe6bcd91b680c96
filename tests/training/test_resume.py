"""A run killed with SIGKILL in mid-annealing and started again equals one that was left alone."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("trainers.py")


def start(folder):
    root = str(SCRIPT.parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder)], stdout=subprocess.PIPE, text=True, env=environment
    )


def finish(folder):
    process = start(folder)
    process.communicate()
    assert process.returncode == 0


@pytest.mark.integration
@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(whole)

    process = start(broken)
    for line in process.stdout:
        if line.strip() == "step 5":  # between the checkpoints of steps 4 and 6; the window ends at step 10
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (broken / "final").exists()
    finish(broken)

    for file in ("final/adapter_model.safetensors", "checkpoint-20/adapter_model.safetensors"):
        one, two = load_file(whole / file), load_file(broken / file)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    for step in (8, 20):  # inside the window, and at the end: optimizer moments, schedule, random state
        one, two = (torch.load(f / f"checkpoint-{step}/optimizer.pt", weights_only=True) for f in (whole, broken))
        assert one["state"].keys() == two["state"].keys()
        for key, moments in one["state"].items():
            assert all(torch.equal(moments[name], two["state"][key][name]) for name in moments)
    configs = [json.loads((f / "checkpoint-8/adapter_config.json").read_text()) for f in (whole, broken)]
    for config in configs:
        config["target_modules"].sort()
    assert configs[0] == configs[1]
    assert configs[0]["beta"] == pytest.approx(0.2)
