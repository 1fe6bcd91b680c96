"""TRL's `GRPOTrainer`, set up by a recipe: on-policy at every β, resumable to the bit, with β = 0 tested apart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from afa_lora.data import Items
from afa_lora.data.prompts import to_prompt_dataset
from afa_lora.grpo.engine import VllmEngine, calibration_batches
from afa_lora.grpo.judging import Rewards
from afa_lora.grpo.recipe import Recipe
from afa_lora.grpo.rewards import RewardError, equal_groups
from afa_lora.grpo.rollout_state import RolloutState
from afa_lora.grpo.sampling import SampledLogProbs, noting
from afa_lora.peft.model import anneal_states
from afa_lora.tuning import trainer as tuning
from afa_lora.tuning.trainer import ExactTraining, annealing, refused, set_callbacks

LOGPROB_DIFFERENCE = "afa/old_vs_rollout_logprob_diff"
Tester = Callable[[], Mapping[str, float]]
"""Tests the policies, and returns metrics without their prefix."""


class EpochRepeatSampler(RepeatSampler):
    """TRL's sampler with an order of its own for each epoch: TRL's second one is known only once the first is drawn,
    and a training that is resumed in the second draws no first one."""

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch."""
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + epoch)


class ExactGRPOTrainer(ExactTraining, GRPOTrainer):
    """`GRPOTrainer` that samples from the very policy that it trains, and proves it.

    Logs `LOGPROB_DIFFERENCE`: the mean over tokens of |log π_old − log π_rollout|, 0 but for rounding if generation and
    update have seen one policy.

    Attributes:
        engine: samples in the place of transformers, where it serves the present β.
        tester: replaces TRL's evaluation loop.
        rows_at_once: how many completions transformers samples together; all of a generation unless given.
        groups: how many groups of completions were scored so far.
        equal_groups: how many of them had equal rewards, which teach nothing.
    """

    args: GRPOConfig
    model: PreTrainedModel | PeftModel
    num_generations: int
    _buffered_inputs: Any

    def __init__(
        self,
        *args: Any,
        engine: VllmEngine | None = None,
        tester: Tester | None = None,
        rows_at_once: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.engine, self.tester, self.rows_at_once = engine, tester, rows_at_once
        self.groups = self.equal_groups = 0
        self._synced: tuple[int, float] | None = None  # step and β of what the engine has
        self._log_probs: Tensor | None = None  # of the last forward, (batch, completion)

    @property
    def policy_beta(self) -> float:
        """β of the policy; 0 without an annealed adapter."""
        return max((state.beta for state in anneal_states(self.model, trainable_only=True).values()), default=0.0)

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        policy, beta = self.accelerator.unwrap_model(self.model), self.policy_beta
        by_engine = self.engine is not None and self.engine.serves(beta)
        self.use_vllm = by_engine  # from here on TRL corrects for what an engine samples otherwise, and logs it
        if not by_engine:
            return self._sample(policy, prompt_ids, *args, **kwargs)
        assert self.engine is not None
        if self._synced != (self.state.global_step, beta):
            batches = calibration_batches(self._seen(prompt_ids), self._tokenizer.pad_token_id, self.model.device)
            for name, value in self.engine.sync(policy, self.state.global_step, batches).items():
                self._metrics["train"][name].append(value)
            self._synced = (self.state.global_step, beta)
        return self.engine.sample(prompt_ids, _seed(self.args.seed, self._step))

    def _sample(
        self, policy: PreTrainedModel, prompt_ids: list[list[int]], *args: Any, **kwargs: Any
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Sample by transformers: completions in tokens, and the log-probabilities of these."""
        completions: list[list[int]] = []
        log_probs: list[list[float]] = []
        rows = self.rows_at_once or len(prompt_ids)
        for start in range(0, len(prompt_ids), rows):
            sampled = SampledLogProbs(self.temperature)
            with noting(policy, sampled):
                tokens, _ = super()._generate_single_turn(prompt_ids[start : start + rows], *args, **kwargs)
            completions += tokens
            log_probs += sampled.of(tokens)
        return completions, log_probs

    def _seen(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        """What the adapter has seen last: the last generation's prompts with their completions, or these prompts."""
        rows = []
        for batch in self._buffered_inputs or []:
            ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
            mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1).bool()
            rows += [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]
        return rows or prompt_ids

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._log_probs = result[0].detach()
        return result

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        loss: Tensor = super()._compute_loss(model, inputs)
        # Where TRL keeps no old log-probabilities, the policy has not changed since the generation: they are these.
        old = inputs.get("old_per_token_logps", self._log_probs)
        mask = inputs["completion_mask"].bool()
        difference = (old - inputs["sampling_per_token_logps"]).abs()[mask]
        difference = difference[~difference.isnan()]  # an engine may lack some
        totals = torch.stack([difference.sum(), torch.tensor(float(len(difference)), device=difference.device)])
        total, count = self.accelerator.reduce(totals, reduction="sum").tolist()
        self._metrics["train"][LOGPROB_DIFFERENCE].append(total / max(count, 1))
        return loss

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        judged = ~rewards.isnan().all(dim=1)  # of all processes' completions
        if not judged.any():
            raise RewardError(
                f"Every reward function returned None for all {len(judged)} completions of a generation: there is "
                "nothing to learn from. None means that a function does not apply; one must."
            )
        totals = (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)
        totals[~judged] = torch.nan
        self.groups += len(totals) // self.num_generations
        self.equal_groups += equal_groups(totals.tolist(), self.num_generations)
        return rewards

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler[Any]:
        sampler = super()._get_train_sampler(*args, **kwargs)
        assert isinstance(sampler, RepeatSampler)
        sampler.__class__ = EpochRepeatSampler
        return sampler

    def largest_logprob_difference(self) -> float | None:
        """The largest logged `LOGPROB_DIFFERENCE`."""
        logged = [entry[LOGPROB_DIFFERENCE] for entry in self.state.log_history if LOGPROB_DIFFERENCE in entry]
        return max(logged, default=None)

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Test the present policy, and the linear one (β = 0) apart.

        Returns:
            what `tester` returns, with the prefix.
        """
        assert self.tester is not None
        was_training = self.model.training
        self.model.eval()  # TRL logs its own training metrics otherwise
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.tester().items()}
        self.log(dict(metrics))
        self.model.train(was_training)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _seed(*numbers: int) -> int:
    """A seed of 31 bits that no neighbouring numbers share."""
    digest = hashlib.sha256("/".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def training_arguments(recipe: Recipe) -> GRPOConfig:
    """The recipe's ``train`` section as TRL's `GRPOConfig`, with defaults that fit this machine.

    Raises:
        RecipeError: `GRPOConfig` refuses a value, or ``num_generations`` does not divide the batch.
    """
    settings: dict[str, Any] = {
        "reward_weights": recipe.reward_weights,
        "num_generations_eval": 1,
        "disable_dropout": True,  # each forward would draw another mask, and so be another policy
    }
    chooses = recipe.train.get("load_best_model_at_end"), recipe.train.get("lr_scheduler_type")
    if chooses[0] or chooses[1] == "reduce_lr_on_plateau":
        settings["metric_for_best_model"] = "reward"  # transformers' own, the loss, is not computed in a test
    return tuning.training_arguments(GRPOConfig, recipe, settings)


def make_trainer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Items,
    args: GRPOConfig,
    recipe: Recipe,
    rewards: Rewards,
    tester: Tester,
    engine: VllmEngine | None = None,
) -> ExactGRPOTrainer:
    """The trainer with the recipe's data, rewards and callbacks.

    Raises:
        RecipeError: TRL refuses settings that do not go together.
    """
    limit, args.save_total_limit = args.save_total_limit, None  # the sealer's task
    try:
        trainer = ExactGRPOTrainer(
            model=model,
            reward_funcs=list(rewards.functions),
            args=args,
            train_dataset=to_prompt_dataset(items.train),
            eval_dataset=to_prompt_dataset(items.test) if items.test else None,
            processing_class=tokenizer,
            callbacks=annealing(recipe, keeps_generations=True),
            engine=engine,
            tester=tester,
            rows_at_once=recipe.rollout_batch_size,
        )
    except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:
        raise refused(error, GRPOConfig) from error
    if isinstance(trainer.model, PeftModel) and "ref" in trainer.model.peft_config:
        # TRL copies an adapter that it is given, as the reference. A new one is the base model, so nothing is lost
        # without it; with it, checkpoints have two adapters, of which the Trainer would bring back the copy alone.
        trainer.model.delete_adapter("ref")
    set_callbacks(trainer, limit, RolloutState(trainer))
    return trainer
