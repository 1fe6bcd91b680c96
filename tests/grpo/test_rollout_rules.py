"""Which engine samples at β, and what a rollout policy cannot do; with and without vLLM."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from trl import GRPOConfig

from afa_lora import AfaLoraConfig, AfaLoraError
from afa_lora.grpo.recipe import parse_recipe
from afa_lora.grpo.rollout.engine import VllmRollout
from afa_lora.grpo.rollout.rules import POLICIES, RolloutError, check_rollout, engine_at, rollout_faults

VLLM = [policy for policy in POLICIES if policy != "transformers"]
without_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if vLLM were there: its absence is then not among the faults."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: find("torch" if name == "vllm" else name))


@pytest.mark.parametrize(
    ("policy", "annealing", "linear"),
    [
        ("transformers", "transformers", "transformers"),
        ("vllm-wait", "transformers", "vllm"),
        ("vllm-linearized", "vllm", "vllm"),
        ("vllm-exact", "vllm", "vllm"),
    ],
)
def test_who_samples(policy: str, annealing: str, linear: str) -> None:
    assert [engine_at(policy, beta) for beta in (1.0, 1e-9, 0.0)] == [annealing, annealing, linear]


def test_an_unknown_policy() -> None:
    for ask in (lambda: engine_at("vllm-exakt", 1.0), lambda: check_rollout("vllm-exakt")):
        with pytest.raises(AfaLoraError, match=r"rollout='vllm-exakt' is not known.*Did you mean 'vllm-exact'"):
            ask()


@without_vllm
@pytest.mark.parametrize("policy", VLLM)
def test_vllm_is_not_installed(policy: str, tmp_path: Path) -> None:
    (fault,) = check_rollout(policy, AfaLoraConfig())
    for part in (policy, "not installed", "pip install vllm", "rollout=transformers"):
        assert part in fault
    with pytest.raises(RolloutError, match="not installed"):
        VllmRollout(policy, tmp_path, AfaLoraConfig(), dtype=torch.float32)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("config", [LoraConfig(use_dora=True), AfaLoraConfig(lora_bias=True), None])
def test_transformers_can_do_everything(config: LoraConfig | None) -> None:
    assert check_rollout("transformers", config) == []


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("policy", VLLM)
def test_what_vllm_cannot_serve(policy: str) -> None:
    assert check_rollout(policy, AfaLoraConfig(r=512)) == check_rollout(policy, LoraConfig()) == []
    assert check_rollout(policy, None) == []
    for config, part in (
        (AfaLoraConfig(use_dora=True), "use_dora=True; its adapters know no norm. Set method=afa-lora"),
        (AfaLoraConfig(r=513), "rank 513"),
        (LoraConfig(lora_bias=True), "lora_bias=True; change that"),
    ):
        (fault,) = check_rollout(policy, config)
        assert part in fault
        assert fault.endswith("or rollout=transformers.")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("settings", "train", "part"),
    [
        ({"rollout": "vllm-exact"}, {}, None),
        ({"rollout": "vllm-linearized"}, {}, None),
        ({"rollout": "vllm-exact", "method": "full"}, {}, None),
        ({"rollout": "vllm-exact", "method": "afa-dora"}, {}, "use_dora=True"),
        ({"rollout": "transformers", "method": "afa-dora"}, {"repetition_penalty": 1.1}, None),
        ({"rollout": "vllm-wait", "load": {"quantization": "4bit"}}, {}, "load.quantization='4bit'"),
        ({"rollout": "vllm-exact"}, {"repetition_penalty": 1.1}, "train.repetition_penalty=1.1 is not passed on"),
        ({"rollout": "vllm-exact"}, {"generation_kwargs": {"typical_p": 0.9}}, "train.generation_kwargs="),
        (
            {"rollout": "vllm-linearized"},
            {"vllm_importance_sampling_correction": False},
            "vllm_importance_sampling_correction=false leaves that uncorrected",
        ),
        ({"rollout": "vllm-linearized", "method": "lora"}, {"vllm_importance_sampling_correction": False}, None),
    ],
)
def test_what_a_recipe_asks_for(
    tmp_path: Path, settings: dict[str, Any], train: dict[str, Any], part: str | None
) -> None:
    common = {"model": "smollm2-135m", "output": str(tmp_path), "rewards": "task"}
    data = {"source": "reasoning-gym", "task": "chain_sum", "train_items": 8}
    recipe = parse_recipe({**common, "data": data, **settings})
    args = GRPOConfig(output_dir=str(tmp_path), report_to="none", bf16=False, **train)
    faults = list(rollout_faults(recipe, args))
    assert len(faults) == (part is not None)
    if part is not None:
        assert part in faults[0]


@pytest.mark.usefixtures("installed")
def test_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = {"model": "smollm2-135m", "output": str(tmp_path), "rewards": "task", "rollout": "vllm-exact"}
    data = {"source": "reasoning-gym", "task": "chain_sum", "train_items": 8}
    args = GRPOConfig(output_dir=str(tmp_path), report_to="none", bf16=False)
    monkeypatch.setattr(GRPOConfig, "world_size", 4)
    (fault,) = rollout_faults(parse_recipe({**common, "data": data}), args)
    assert "4 processes" in fault
