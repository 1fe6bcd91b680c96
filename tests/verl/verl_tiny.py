"""A recipe of Table 2 made tiny: the same overrides, a random model, float32, the CPU."""

from collections.abc import Sequence
from pathlib import Path

import torch
import verl.trainer
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import TensorDict
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from verl.utils import tensordict_utils as tu
from verl.workers.utils.padding import left_right_2_no_padding

from afa_lora.grpo.verl_recipe import verl_command

VOCABULARY = 64
PROMPT, RESPONSE = 6, 8  # tokens
ROWS = 8  # of a rollout batch, on each rank
MINI_BATCHES = 2
TOTAL_STEPS = 6  # rollout batches; β falls to 0 over the first four

TINY = [
    "actor_rollout_ref.model.use_remove_padding=False",
    "+actor_rollout_ref.model.override_config.attn_implementation=eager",
    "actor_rollout_ref.model.lora_rank=4",
    "actor_rollout_ref.model.lora_alpha=8",
    "actor_rollout_ref.actor.optim.lr=3e-2",
    f"actor_rollout_ref.actor.optim.total_training_steps={TOTAL_STEPS}",
    "actor_rollout_ref.actor.use_dynamic_bsz=False",
    "actor_rollout_ref.actor.use_torch_compile=False",
    "actor_rollout_ref.actor.fsdp_config.use_torch_compile=False",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=2",
    "+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32",
    "+actor_rollout_ref.actor.fsdp_config.mixed_precision.reduce_dtype=fp32",
]


def base_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=VOCABULARY, **shape, **heads, initializer_range=0.2, tie_word_embeddings=False)
    return LlamaForCausalLM(config).eval()


def composed(overrides: Sequence[str]) -> DictConfig:
    """verl's own configuration with the overrides of a command line."""
    folder = str(Path(verl.trainer.__file__).parent / "config")
    with initialize_config_dir(config_dir=folder, version_base=None):
        return compose(config_name="ppo_trainer", overrides=list(overrides))


def tiny_config(model: Path, arm: str, *overrides: str) -> DictConfig:
    """``actor_rollout_ref`` of the recipe's arm for ``model``."""
    command = verl_command("3b", arm, overrides=[*TINY, f"actor_rollout_ref.model.path='{model}'"])
    annealing = (
        ["actor_rollout_ref.model.lora.afa.anneal_end=4", *overrides] if arm not in ("full", "lora") else overrides
    )
    config = composed([*command[3:], *annealing])
    OmegaConf.resolve(config)
    with open_dict(config):
        config.actor_rollout_ref.model.load_tokenizer = False
    return config.actor_rollout_ref


def tokens(seed: int) -> tuple[Tensor, Tensor]:
    """Prompts padded on the left and responses padded on the right, (ROWS, PROMPT + RESPONSE), and their mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (ROWS, PROMPT + RESPONSE), generator=generator)
    prompts = torch.randint(2, PROMPT + 1, (ROWS, 1), generator=generator)
    responses = torch.randint(3, RESPONSE + 1, (ROWS, 1), generator=generator)
    place = torch.arange(PROMPT + RESPONSE)
    mask = ((place >= PROMPT - prompts) & (place < PROMPT + responses)).long()
    return ids * mask, mask


def rollout_batch(seed: int, old_log_probs: Tensor | None = None, weights: bool = True) -> TensorDict:
    """What verl's trainer hands to ``update_actor``; without log-probabilities, to ``compute_log_prob``."""
    ids, mask = tokens(seed)
    response_mask = mask[:, PROMPT:]
    tensors = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        "prompts": ids[:, :PROMPT],
        "responses": ids[:, PROMPT:],
        "response_mask": response_mask,
    }
    if old_log_probs is not None:
        generator = torch.Generator().manual_seed(seed + 1)
        advantage = torch.randn(ROWS, 1, generator=generator)
        tensors |= {
            "old_log_probs": old_log_probs,
            "ref_log_prob": old_log_probs - 0.1,
            "advantages": advantage * response_mask,
        }
        if weights:
            tensors["rollout_is_weights"] = 0.5 + torch.rand(ROWS, RESPONSE, generator=generator)
    data = left_right_2_no_padding(TensorDict(tensors, batch_size=ROWS))
    tu.assign_non_tensor(data, temperature=1.0, calculate_entropy=False, global_batch_size=ROWS // MINI_BATCHES * 2)
    return data
