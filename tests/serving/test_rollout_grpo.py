"""A GRPO training, whole, whose completions vLLM samples."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from afa_lora.grpo.recipe import parse_recipe
from tests.serving.models import save_model
from tests.serving.rollout import BASE, EQUAL

pytestmark = [
    pytest.mark.serving,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make test-serving"),
]

REWARD = '''
def ascii_share(completions, **columns):
    """The share of ASCII characters: random text has some, and more can be learnt."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(character.isascii() for character in text) / max(len(text), 1) for text in texts]
'''
BETAS = [1.0, 2 / 3, 1 / 3, 0.0, 0.0, 0.0]  # of the policy at the beginning of each step


def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str) -> dict[str, Any]:
    (tmp_path / "own_rewards.py").write_text(REWARD)
    monkeypatch.syspath_prepend(str(tmp_path))
    return {
        "model": str(save_model(tmp_path / "base", BASE)),
        "output": str(tmp_path / "run"),
        "data": {"source": "reasoning-gym", "task": "chain_sum", "train_items": 16, "test_items": 4},
        "rewards": "own_rewards:ascii_share",
        "rollout": policy,
        "load": {"dtype": "float32"},
        "adapter": {"r": 4, "lora_alpha": 8},
        "anneal": {"anneal_end": 0.5},
        "train": {
            "max_steps": len(BETAS),
            "per_device_train_batch_size": 4,
            "num_generations": 4,
            "max_completion_length": 8,
            "learning_rate": 0.01,
            "logging_steps": 1,
            "save_strategy": "no",
            "eval_strategy": "no",
            "report_to": "none",
        },
        "evaluate": {"before": False},
        "merge": False,
    }


@pytest.mark.parametrize("policy", ["vllm-exact", "vllm-linearized", "vllm-wait"])
def test_what_is_sampled_from_is_what_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    from afa_lora.grpo.run import run_grpo

    recipe = settings(tmp_path, monkeypatch, policy)
    run_grpo(parse_recipe(recipe))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "afa/old_vs_rollout_logprob_diff" in line]
    differences = [line["afa/old_vs_rollout_logprob_diff"] for line in steps]
    sampled_at = [line.get("afa/rollout_beta") for line in steps]
    if policy == "vllm-exact":
        assert sampled_at == pytest.approx(BETAS)
    elif policy == "vllm-wait":  # None: by transformers
        assert sampled_at == [None if beta else 0.0 for beta in BETAS]
    else:
        assert sampled_at == [0.0] * len(BETAS)
        assert min(differences[1:3]) > EQUAL  # another policy, and the run says so; in the first step B is 0
        differences = differences[3:]
    assert max(differences) < EQUAL


def test_a_resume_within_a_generation_keeps_the_importance_ratios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from afa_lora.grpo.run import run_grpo
    from tests.grpo.test_run import interrupt

    recipe = settings(tmp_path, monkeypatch, "vllm-linearized")
    recipe["train"] |= {"steps_per_generation": 2, "save_strategy": "steps", "save_steps": 1}
    whole = run_grpo(parse_recipe({**recipe, "output": str(tmp_path / "whole")}))
    interrupt(recipe, 3, monkeypatch)  # the second of the two updates of a generation is still to come
    again = run_grpo(parse_recipe(recipe))
    assert again.curve == whole.curve
    one, two = (load_file(r.folder.adapter / "adapter_model.safetensors") for r in (whole, again))
    assert all(torch.equal(one[name], two[name]) for name in one)
