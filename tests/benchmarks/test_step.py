"""The benchmark counts bytes rightly, shares the base's weights, and runs from the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.arms import PEFT_LORA, all_arms, build_arm, select_arms
from benchmarks.measure import peak_bytes, saved_bytes

CPU = torch.device("cpu")
ELEMENTS = 1 << 16
BYTES = 4 * ELEMENTS


def test_saved_bytes_counts_each_storage_once_and_no_resident() -> None:
    weight = torch.randn(ELEMENTS, requires_grad=True)

    def forward() -> Tensor:
        x = weight.exp()  # saves its result
        y = x * x  # saves x twice, which is that result
        return (y * weight).sum()  # saves y and the weight

    assert saved_bytes(forward, [weight]) == 2 * BYTES


def test_saved_bytes_leaves_out_what_a_dropped_graph_saved() -> None:
    weight = torch.randn(ELEMENTS, requires_grad=True)

    def forward() -> Tensor:
        constant = weight.exp().exp().detach()
        return (weight * constant).sum()

    assert saved_bytes(forward, [weight]) == BYTES


def test_peak_bytes_is_the_largest_sum_held_at_once() -> None:
    weight = torch.randn(ELEMENTS)

    def step() -> None:
        a = weight + 1
        b = a + 1
        del a
        _ = b + 1

    assert peak_bytes(step, CPU) == pytest.approx(2 * BYTES, abs=64)  # the constants are tensors of one element


def test_arms_share_the_frozen_weights(tiny_llama: PreTrainedModel) -> None:
    tiny_llama.requires_grad_(False)
    (arm,) = select_arms(all_arms("silu"), [PEFT_LORA])
    model = build_arm(tiny_llama, arm, rank=2, dtype=torch.float32)
    frozen = {p.data_ptr() for p in model.parameters() if not p.requires_grad}
    assert frozen == {p.data_ptr() for p in tiny_llama.parameters()}
    assert any(p.requires_grad for p in model.parameters())


def test_select_arms_takes_globs_and_s_for_sigma() -> None:
    arms = all_arms("silu")
    assert [a.name for a in select_arms(arms, ["afa-lora/s-A-B", "base"])] == ["base", "afa-lora/σ-A-B"]
    assert len(select_arms(arms, ["afa-lora/*"])) == 8
    with pytest.raises(ValueError, match=r"--arms afa-laura: no such arm; there are base, peft-lora"):
        select_arms(arms, ["afa-laura"])


@pytest.mark.slow
def test_runs_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    options = ["--layers=1", "--batch=1", "--tokens=8", "--rank=4", "--repeats=2", "--warmup=1", f"--out={out}"]
    script = Path(__file__).parents[2] / "benchmarks/step.py"
    done = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text(encoding="utf-8"))
    assert {"provenance", "settings", "shape", "arms"} <= document.keys()
    rows = {row["arm"]: row for row in document["arms"]}
    assert list(rows) == [arm.name for arm in all_arms("silu")]
    assert all(len(row["seconds"]) == 2 and row["peak_bytes"] > 0 for row in rows.values())
    assert rows[PEFT_LORA]["ratio"] == 1.0
    for name, row in rows.items():
        if name.startswith("afa-"):  # exact, and the same on every machine
            assert row["saved_for_backward_bytes"] <= rows[row["reference"]]["saved_for_backward_bytes"], name
