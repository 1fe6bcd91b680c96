"""The recipe's reward functions, and what they say of answers outside of a training."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerState

from afa_lora import evaluation
from afa_lora.data import Sample
from afa_lora.data.prompts import to_prompt_dataset
from afa_lora.data.sources import Gsm8kData
from afa_lora.evaluation import Score
from afa_lora.grpo.recipe import Data, Recipe
from afa_lora.grpo.rewards import RewardFunction, gsm8k_reward, load_reward


@dataclass(frozen=True)
class Rewards:
    """Reward functions and their weights.

    Attributes:
        functions: one after another.
        weights: a factor for each in the sum.
    """

    functions: tuple[RewardFunction, ...]
    weights: tuple[float, ...]

    def of_answers(
        self, samples: Sequence[Sample], answers: Sequence[str], tokenizer: PreTrainedTokenizerBase
    ) -> list[float]:
        """The weighted sum of the rewards of one answer to each sample; a function that abstains adds nothing.

        Raises:
            RewardError: a function raises, or returns something else than one number for each answer.
        """
        columns: dict[str, Any] = dict(to_prompt_dataset(samples).to_dict())
        columns["prompts"] = columns.pop("prompt")
        columns["completions"] = [[{"role": "assistant", "content": answer}] for answer in answers]
        columns["completion_ids"] = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
        columns |= {"trainer_state": TrainerState(), "log_extra": _ignored, "log_metric": _ignored}
        totals = [0.0] * len(answers)
        for function, weight in zip(self.functions, self.weights, strict=True):
            rewards = function(**columns)
            if inspect.isawaitable(rewards):
                rewards = asyncio.run(_result(rewards))
            totals = [t + weight * (0.0 if r is None else r) for t, r in zip(totals, rewards, strict=True)]
        return totals


def _ignored(name: str, value: Any) -> None:
    """Takes the place of TRL's functions that log in a training."""


async def _result(awaitable: Any) -> Any:
    return await awaitable


def load_rewards(recipe: Recipe) -> Rewards:
    """The reward functions that a recipe names.

    Raises:
        InvalidSettingError: there is no such function, it cannot be imported, or it does not take its options.
    """
    functions = tuple(load_reward(reward.function, reward.options) for reward in recipe.rewards)
    return Rewards(functions, tuple(recipe.reward_weights))


def score_for(data: Data) -> Score:
    """How a test answer is judged right or wrong, whatever the rewards are: GSM8K by the number after ``####``, the
    others as `afa_lora.evaluation.score_for` has it."""
    if not isinstance(data, Gsm8kData):
        return evaluation.score_for(data)
    return lambda answer, sample: gsm8k_reward([""], [answer], answer=[sample.completion])[0] or 0.0
