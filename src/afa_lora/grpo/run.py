"""A GRPO training from the recipe to the merged model. `run_grpo` reads top to bottom."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedModel, set_seed
from trl import GRPOConfig

from afa_lora import MergeReport
from afa_lora.data.load import load_prompts
from afa_lora.data.prompts import drop_long_items
from afa_lora.data.records import counted
from afa_lora.evaluation import Accuracy
from afa_lora.evaluation.statistics import seed_interval
from afa_lora.grpo.checks import check_settings
from afa_lora.grpo.engine import make_engine
from afa_lora.grpo.judging import Rewards, load_rewards, score_for
from afa_lora.grpo.recipe import Recipe
from afa_lora.grpo.rewards import RewardError
from afa_lora.grpo.trainer import ExactGRPOTrainer, make_trainer, training_arguments
from afa_lora.peft.model import anneal_states
from afa_lora.report.rewards import RewardCurve, Rise, plot_rewards, read_reward_curve, rise
from afa_lora.tuning.adapter import add_adapter
from afa_lora.tuning.card import accuracy_text, write_cards
from afa_lora.tuning.checks import check_optimizer
from afa_lora.tuning.failures import RunStopped, what_is_kept
from afa_lora.tuning.folder import RunFolder, accuracy_numbers, items_facts, write_answers
from afa_lora.tuning.loading import load_base
from afa_lora.tuning.run import TrainingRun


@dataclass(frozen=True)
class Tested:
    """The answers to the test items and their rewards.

    Attributes:
        accuracy: how many answers are right.
        rewards: the weighted sum of the rewards of each answer.
    """

    accuracy: Accuracy
    rewards: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean reward."""
        return sum(self.rewards) / len(self.rewards)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's 95 % interval of the mean reward over the items."""
        return seed_interval(self.rewards)[1]


@dataclass(frozen=True)
class GrpoResult:
    """What a run gave.

    Attributes:
        folder: where everything lies.
        before: the untrained model's answers to the test items, if it was tested.
        after: the trained model's, if there are test items: merged, unless it is quantised or cannot be merged.
        curve: rewards and β over the training.
        rise: how the reward of the last fifth of the steps differs from that of the first.
        dropped: how many training prompts were too long.
        groups: how many groups of completions were scored.
        equal_groups: how many of them had equal rewards, and so no advantage to learn from.
        logprob_difference: the largest logged mean of |log π_old − log π_rollout| of a step.
        steps: optimizer steps of the training.
        seconds: duration of the training alone, over all starts of the run.
        peak_memory: most memory held during the training, in bytes.
        merge: how far merging has changed the logits; ``None`` if nothing was merged.
    """

    folder: RunFolder
    before: Tested | None
    after: Tested | None
    curve: RewardCurve
    rise: Rise | None
    dropped: int
    groups: int
    equal_groups: int
    logprob_difference: float | None
    steps: int
    seconds: float
    peak_memory: int
    merge: MergeReport | None


def run_grpo(recipe: Recipe, console: Console | None = None) -> GrpoResult:
    """Train by GRPO: load, test, add the adapter, sample and learn, save, merge, test again.

    A run that was interrupted goes on from its last good checkpoint when it is started again with the same recipe, in
    the midst of a generation too. Under ``torchrun`` or ``accelerate launch`` every process calls this; the first one
    prints and writes.

    Args:
        recipe: what to do; `load_recipe` reads one from a file.
        console: where progress goes; standard output unless given.

    Raises:
        AfaLoraError: the recipe, the data, a reward function or the model is at fault, or the run was stopped; the
            message says what to do.
    """
    args = training_arguments(recipe)
    result: GrpoResult = _Run.started(recipe, args, console)
    return result


class _Run(TrainingRun):
    """One run in one process."""

    recipe: Recipe
    args: GRPOConfig
    rewards: Rewards

    def whole(self) -> GrpoResult:
        recipe, args = self.recipe, self.args
        self.rewards, self.score = load_rewards(recipe), score_for(recipe.data)
        self.items = load_prompts(recipe.data, self.say)
        model: PreTrainedModel | PeftModel
        model, self.tokenizer = load_base(recipe, self.say)
        dropped = self.drop_long()
        check_settings(recipe, args, self.items)
        if self.main:
            self.folder.record_start(items_facts(self.items), self.say)
        check_optimizer(args, model, max(args.max_steps, 1))
        if model.device.type != args.device.type:
            model.to(args.device)  # type: ignore[arg-type]
        before = self.tested(self.test_before(model, sharded=False)) if recipe.evaluate.before else None

        engine = make_engine(recipe, args, model, self.tokenizer, self.items.train)
        set_seed(args.seed)  # the same A for every method, and in every process
        if recipe.method != "full":
            model = add_adapter(model, recipe)
        trainer = make_trainer(
            model, self.tokenizer, self.items, args, recipe, self.rewards, lambda: self.policies(model), engine
        )
        try:
            seconds, peak_memory = self.learn(trainer)
        finally:
            if engine is not None:
                engine.close()
        curve, steps = read_reward_curve(recipe.method, trainer.state.log_history), trainer.state.max_steps
        groups, equal = trainer.groups, trainer.equal_groups
        difference = trainer.largest_logprob_difference()
        del trainer  # the optimizer's memory
        gc.collect()
        if equal:
            self.say(
                f"{equal:,} of {counted(groups, 'group(s)')} had equal rewards ({equal / groups:.0%}): no completion "
                "was better than another there, so nothing was learnt from them."
            )
        accuracy, merge = self.finish_apart(model, None) if recipe.load.quantization else self.finish(model)
        result = GrpoResult(
            self.folder,
            before,
            self.tested(accuracy),
            curve,
            rise(curve),
            dropped,
            groups,
            equal,
            difference,
            steps,
            seconds,
            peak_memory,
            merge,
        )
        if self.main:
            plot_rewards([curve], self.folder.curves)
            if accuracy is not None:
                write_answers(accuracy, self.folder.answers)
            write_cards(recipe, self.items, self.folder, steps, _rows(result), merge, "grpo")
            self.folder.write_results(_numbers(recipe, result))
        return result

    def drop_long(self) -> int:
        """Leave out prompts beyond the limit, and say how many; TRL would train on them. Returns how many."""
        limit = self.recipe.max_prompt_length
        self.items, dropped, not_tested = drop_long_items(self.items, self.tokenizer, limit)
        for count, what in ((dropped, "training prompt(s)"), (not_tested, "test prompt(s)")):
            if count:
                self.say(f"{counted(count, what)} of more than max_prompt_length={limit} tokens left out.")
        return dropped

    def learn(self, trainer: ExactGRPOTrainer) -> tuple[float, int]:
        """Train. Returns seconds and the peak memory in bytes.

        Raises:
            RunStopped: a reward function is at fault; what was learnt so far is kept.
        """
        try:
            return self.train(trainer)
        except RewardError as error:
            raise RunStopped(f"{error} {what_is_kept(self.folder.checkpoints)}") from error

    def policies(self, model: PreTrainedModel | PeftModel) -> Mapping[str, float]:
        """Test the present policy and, where that is another one, the linear policy."""
        metrics = self.metrics(model)
        if any(not state.linear for state in anneal_states(model).values()):
            with _linear(model):
                metrics |= {f"linear_{name}": value for name, value in self.metrics(model).items()}
        return metrics

    def metrics(self, model: PreTrainedModel | PeftModel) -> dict[str, float]:
        """Mean reward and accuracy on the test items."""
        tested = self.tested(self.answers(model))
        assert tested is not None
        return {"reward": tested.mean, "accuracy": tested.accuracy.share}

    @property
    def max_new_tokens(self) -> int:
        return self.recipe.evaluate.max_new_tokens or self.args.max_completion_length or 0

    def tested(self, accuracy: Accuracy | None) -> Tested | None:
        """Reward the answers."""
        if accuracy is None:
            return None
        given = [answer.given for answer in accuracy.answers]
        return Tested(accuracy, tuple(self.rewards.of_answers(self.items.test, given, self.tokenizer)))


@contextmanager
def _linear(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """The policy without its activation inside the block."""
    states = list(anneal_states(model).values())
    kept = [(state.beta, state.step, state.total_steps) for state in states]
    for state in states:
        state.restore(0.0)
    try:
        yield
    finally:
        for state, (beta, step, total_steps) in zip(states, kept, strict=True):
            state.restore(beta)
            state.step, state.total_steps = step, total_steps


def _numbers(recipe: Recipe, result: GrpoResult) -> dict[str, Any]:
    """What ``results.json`` says."""
    return {
        "method": recipe.method,
        "before": _tested_numbers(result.before),
        "after": _tested_numbers(result.after),
        "rise": asdict(result.rise) if result.rise else None,
        "dropped_prompts": result.dropped,
        "groups": result.groups,
        "groups_with_equal_rewards": result.equal_groups,
        "largest_logprob_difference": result.logprob_difference,
        "training_seconds": result.seconds,
        "peak_memory_bytes": result.peak_memory,
        "merge": asdict(result.merge) if result.merge else None,
        "reward": result.curve.reward,
        "validation": result.curve.validation,
        "linear_validation": result.curve.linear,
        "beta": result.curve.beta,
    }


def _tested_numbers(tested: Tested | None) -> dict[str, Any] | None:
    if tested is None:
        return None
    numbers = accuracy_numbers(tested.accuracy) or {}
    return {"reward": tested.mean, "reward_interval_95": tested.interval, "rewards": tested.rewards, **numbers}


def _rows(result: GrpoResult) -> list[list[str]]:
    """What the model card says was measured."""
    if result.after is None:
        return []
    before = result.before
    return [
        ["mean reward on the test items", f"{before.mean:.3f}" if before else "–", f"{result.after.mean:.3f}"],
        ["accuracy", accuracy_text(before.accuracy if before else None), accuracy_text(result.after.accuracy)],
    ]
