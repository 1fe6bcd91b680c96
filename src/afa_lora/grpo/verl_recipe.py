"""Table 2 of the paper on verl: the one place that holds the values of its arms. Needs no verl.

`verl_command` gives what ``recipes/verl/*.sh`` run. Values without a mark are the paper's; "ours" are those that the
paper does not give, from verl's own GSM8K examples where they have one.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from afa_lora.core.errors import InvalidSettingError, unknown_name
from afa_lora.core.placement import PLACEMENTS, normalise_placement

ARMS = ("full", "lora", *PLACEMENTS)
"""Full fine-tuning, LoRA, and AFA-LoRA with each of the seven placements, in Table 2's order."""

RANK, ALPHA = 64, 32  # ours: verl's 3B GSM8K LoRA script
LEARNING_RATE = {"full": "1e-6", "adapter": "3e-6"}  # ours: verl's GSM8K scripts, full and LoRA
DATA = "${oc.env:HOME}/data/gsm8k"  # Hydra has no ~
PREFIX = "+actor_rollout_ref.model.lora.afa."


@dataclass(frozen=True)
class Size:
    """A model of Table 2 and the machines it is trained on; all but the model is ours and changes no result.

    Attributes:
        model: name on the hub.
        nodes: of eight GPUs with 80 GB each.
        rollout_parallel: GPUs that share one vLLM engine.
        tokens_per_gpu: upper limit of a micro-batch; at least one whole prompt and response.
        offload: keep parameters and optimizer state on the host while vLLM generates.
    """

    model: str
    nodes: int
    rollout_parallel: int
    tokens_per_gpu: int
    offload: bool


SIZES = {
    "3b": Size("Qwen/Qwen2.5-3B-Instruct", nodes=1, rollout_parallel=1, tokens_per_gpu=24576, offload=False),
    "7b": Size("Qwen/Qwen2.5-7B-Instruct", nodes=1, rollout_parallel=2, tokens_per_gpu=16384, offload=False),
    "14b": Size("Qwen/Qwen2.5-14B-Instruct", nodes=1, rollout_parallel=4, tokens_per_gpu=12288, offload=True),
    "32b": Size("Qwen/Qwen2.5-32B-Instruct", nodes=4, rollout_parallel=8, tokens_per_gpu=8192, offload=True),
}


def verl_command(size: str, arm: str, data: str = DATA, overrides: Sequence[str] = ()) -> list[str]:
    """The command that trains one arm of Table 2.

    Args:
        size: a key of `SIZES`.
        arm: one of `ARMS`; a placement may have ``s`` for σ.
        data: folder with ``train.parquet`` and ``test.parquet`` as verl's GSM8K preprocessing writes them.
        overrides: more Hydra overrides; they win over the values here.

    Raises:
        InvalidSettingError: unknown size or arm.
    """
    if size not in SIZES:
        raise unknown_name("size", size, SIZES)
    arm = _arm(arm)
    name = f"qwen2.5-{size}-{arm.replace('σ', 's')}"
    return [
        *("python3", "-m", "verl.trainer.main_ppo"),
        f"data.train_files='{data}/train.parquet'",
        f"data.val_files='{data}/test.parquet'",
        *_training(),
        *_machines(SIZES[size]),
        *(_full() if arm == "full" else _adapter()),
        *(_annealing(arm) if arm in PLACEMENTS else ()),
        "trainer.project_name=afa-lora-table2",
        f"trainer.experiment_name={name}",
        *overrides,
    ]


def _training() -> list[str]:
    return [
        "algorithm.adv_estimator=grpo",
        "data.train_batch_size=1024",
        "actor_rollout_ref.actor.ppo_mini_batch_size=256",
        "data.max_prompt_length=512",
        "data.filter_overlong_prompts=True",
        "data.max_response_length=1024",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.n=5",
        "actor_rollout_ref.actor.optim.optimizer=AdamW",
        "actor_rollout_ref.actor.use_kl_loss=True",
        "actor_rollout_ref.actor.kl_loss_coef=0.001",  # ours
        "actor_rollout_ref.actor.kl_loss_type=low_var_kl",  # ours
        "actor_rollout_ref.actor.entropy_coeff=0",
        "algorithm.use_kl_in_reward=False",
        "actor_rollout_ref.model.enable_gradient_checkpointing=True",
        "actor_rollout_ref.actor.strategy=fsdp2",
        "trainer.total_epochs=15",
        # Ours, in every arm, so that the arms differ in nothing else: AFA arms sample from a linearised policy.
        "actor_rollout_ref.rollout.calculate_log_probs=True",
        "algorithm.rollout_correction.rollout_is=token",
        "algorithm.rollout_correction.rollout_is_threshold=2.0",
        "trainer.critic_warmup=0",
        "trainer.test_freq=5",  # ours
        "trainer.save_freq=20",  # ours
    ]


def _machines(size: Size) -> list[str]:
    return [
        f"actor_rollout_ref.model.path={size.model}",
        f"trainer.nnodes={size.nodes}",
        "trainer.n_gpus_per_node=8",
        f"actor_rollout_ref.rollout.tensor_model_parallel_size={size.rollout_parallel}",
        "actor_rollout_ref.rollout.gpu_memory_utilization=0.5",
        "actor_rollout_ref.model.use_remove_padding=True",
        "actor_rollout_ref.actor.use_dynamic_bsz=True",
        f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={size.tokens_per_gpu}",
        f"actor_rollout_ref.actor.fsdp_config.param_offload={size.offload}",
        f"actor_rollout_ref.actor.fsdp_config.optimizer_offload={size.offload}",
        f"actor_rollout_ref.ref.fsdp_config.param_offload={size.offload}",
    ]


def _full() -> list[str]:
    return [f"actor_rollout_ref.actor.optim.lr={LEARNING_RATE['full']}"]


def _adapter() -> list[str]:
    return [
        f"actor_rollout_ref.actor.optim.lr={LEARNING_RATE['adapter']}",
        f"actor_rollout_ref.model.lora_rank={RANK}",
        f"actor_rollout_ref.model.lora_alpha={ALPHA}",
        "actor_rollout_ref.model.target_modules=all-linear",  # ours
        "actor_rollout_ref.model.lora.merge=True",
    ]


def _annealing(placement: str) -> list[str]:
    return [
        "actor_rollout_ref.model.external_lib=afa_lora.grpo.verl_plugin",
        f"{PREFIX}activation=relu",
        f"{PREFIX}placement={placement.replace('σ', 's')}",
        f"{PREFIX}schedule=linear",
        f"{PREFIX}anneal_start=0.0",
        f"{PREFIX}anneal_end=0.3",
    ]


def _arm(arm: str) -> str:
    if arm in ("full", "lora"):
        return arm
    try:
        return normalise_placement(arm)
    except InvalidSettingError:
        raise unknown_name("arm", arm, ARMS) from None


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m afa_lora.grpo.verl_recipe [--print] SIZE ARM [OVERRIDE ...]``: start verl, or print the command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    show = "--print" in given
    words = [word for word in given if word != "--print"]
    if len(words) < 2:
        sys.exit(f"usage: python -m afa_lora.grpo.verl_recipe [--print] {{{','.join(SIZES)}}} ARM [OVERRIDE ...]")
    try:
        command = verl_command(words[0], words[1], os.environ.get("GSM8K", DATA), words[2:])
    except InvalidSettingError as error:
        sys.exit(str(error))
    if show:
        print(shlex.join(command))
        return
    command[0] = sys.executable
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
