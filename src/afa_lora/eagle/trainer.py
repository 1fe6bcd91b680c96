"""`transformers.Trainer` for a draft: its loss, its noise, its measures, its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from afa_lora.core.dora import opmath
from afa_lora.core.errors import CorruptedAdapterError
from afa_lora.eagle.alignment import IGNORED, collate, draft_inputs
from afa_lora.eagle.loss import draft_losses
from afa_lora.eagle.model import EagleDraft
from afa_lora.eagle.recipe import LossSettings, Recipe
from afa_lora.eagle.target import TargetEnds
from afa_lora.peft.checkpoint import BETA_KEY, with_beta
from afa_lora.tuning import trainer as tuning
from afa_lora.tuning.trainer import ExactTraining, annealing, refused, set_callbacks

NOISE_LENGTH = 512  # of a conversation whose noise is ± half the setting
DEFAULTS: dict[str, Any] = {
    # SafeAILab's EAGLE-1: 2,000 of 800,000 steps are warm-up, gradients are clipped by value alone (`ValueClip`).
    "learning_rate": 3e-5,
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "weight_decay": 0.01,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.0025,
    "max_grad_norm": 0.0,
    "num_train_epochs": 50,  # the paper's
    # Ours.
    "logging_steps": 10,
    "save_strategy": "epoch",
    "save_total_limit": 2,
}


class Measures(NamedTuple):
    """Sums over the positions that count, with their number; (batch,), by conversation."""

    feature: Tensor
    token: Tensor
    agrees: Tensor
    positions: Tensor

    def means(self, settings: LossSettings) -> dict[str, float]:
        """The means over the positions, under the names of the logs."""
        feature, token, agrees, positions = (float(value.sum()) for value in self)
        feature, token, agrees = (value / max(positions, 1.0) for value in (feature, token, agrees))
        loss = settings.feature_weight * feature + settings.token_weight * token
        return {"loss": loss, "feature_loss": feature, "token_loss": token, "accuracy": agrees}


class EagleTrainer(ExactTraining):
    """Trains a draft, resumes exactly, and raises instead of training on after a loss of NaN or infinity.

    The loss is the mean over all positions that count of all conversations of an optimizer step, however they are
    spread over gradient accumulation and processes.

    Args:
        draft: with its adapter, if the method has one.
        args: of the training.
        ends: of the target, on the device that trains.
        settings: of the loss.
        adapter: the adapter's configuration, whose β goes into the checkpoints.
        target: computes the features, if the data have none; frozen, on the device that trains.
        train: items as `collate` takes them.
        test: the same, held out.
        callbacks: as for `transformers.Trainer`.
    """

    def __init__(
        self,
        draft: EagleDraft,
        args: TrainingArguments,
        ends: TargetEnds,
        settings: LossSettings,
        adapter: LoraConfig | None,
        target: PreTrainedModel | None,
        train: Dataset[dict[str, Tensor]],
        test: Dataset[dict[str, Tensor]] | None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        super().__init__(
            model=draft,
            args=args,
            data_collator=cast(Any, collate),
            train_dataset=train,
            eval_dataset=test,
            callbacks=[*callbacks],
        )
        self.model_accepts_loss_kwargs = True  # it counts the labels of an optimizer step then
        self._loss_shifts_labels = False  # ours stand at their positions
        self._draft, self._ends, self._settings, self._adapter, self._target = draft, ends, settings, adapter, target
        self._metrics = {"train": dict.fromkeys(Measures._fields, 0.0)}  # saved by `LoggingState`, as is the next
        self._total_train_tokens = 0

    @property
    def tokens(self) -> int:
        """Tokens of the conversations trained on, over all starts of the run and all processes."""
        return int(self._summed([self._total_train_tokens])[0])

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """This batch's part of the loss of the optimizer step.

        Args:
            model: the draft, wrapped if several processes train.
            inputs: what `collate` has made.
            return_outputs: not read; nobody but the Trainer's own evaluation, which is not used here, asks for them.
            num_items_in_batch: how many positions count in the whole optimizer step.
        """
        measures = self._measure(model, inputs, self._settings.noise)
        sums = self._metrics["train"]
        for name, value in zip(sums, torch.stack([value.sum() for value in measures]).tolist(), strict=True):
            sums[name] += value
        self._total_train_tokens += int(inputs["lengths"].sum())

        positions = measures.positions.sum() if num_items_in_batch is None else num_items_in_batch
        positions = torch.as_tensor(positions, device=measures.feature.device).flatten()[0].clamp(min=1)
        weights = self._settings.feature_weight, self._settings.token_weight
        loss = (weights[0] * measures.feature.sum() + weights[1] * measures.token.sum()) / positions
        return loss * self.accelerator.num_processes  # gradients are averaged over the processes

    def _measure(self, model: nn.Module, batch: dict[str, Tensor], noise: float) -> Measures:
        """The sums of one batch, by conversation."""
        dtype = opmath(next(self._draft.parameters()))
        embeddings, features = draft_inputs(batch, self._ends, self._target, dtype)
        given, counted = features[:, :-1], batch["labels"] != IGNORED  # (batch, length)
        predicted = model(embeddings, add_noise(given, batch["lengths"], noise) if noise else given)
        losses = draft_losses(predicted[counted], features[:, 1:][counted], self._ends.head, self._settings.chunk)
        rows = counted.nonzero()[:, 0]  # the conversation of each position
        zeros = losses.feature.new_zeros(len(counted))
        feature, token, agrees = (zeros.index_add(0, rows, value) for value in losses)
        return Measures(feature, token, agrees, counted.sum(1).to(zeros.dtype))

    def evaluate(  # type: ignore[override]
        self,
        eval_dataset: Dataset[dict[str, Tensor]] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Loss and accuracy on held-out conversations, the mean over their positions; they are logged too.

        Args:
            eval_dataset: items as `collate` takes them; the trainer's own unless given.
            ignore_keys: not read.
            metric_key_prefix: before the names.
        """
        self._draft.eval()
        found = []
        for batch in self.get_eval_dataloader(eval_dataset):
            with torch.no_grad():
                measures = self._measure(self._draft, self._prepare_inputs(batch), 0.0)
            found.append(self.accelerator.gather_for_metrics(tuple(measures)))
        means = Measures(*(torch.cat(values) for values in zip(*found, strict=True))).means(self._settings)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        self.log({**metrics})  # what callbacks add to the log is no metric
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the training's own measures since the last time."""
        if "loss" in logs:
            sums = self._metrics["train"]
            means = Measures(*torch.tensor(self._summed([*sums.values()]))).means(self._settings)
            logs |= {name: value for name, value in means.items() if name != "loss"}
            logs["tokens"] = self.tokens
            self._metrics["train"] = dict.fromkeys(sums, 0.0)
        super().log(logs, start_time)

    def _summed(self, values: list[float]) -> list[float]:
        """The sums over the processes."""
        if self.accelerator.num_processes == 1:
            return values
        total: Tensor = self.accelerator.reduce(torch.tensor(values, dtype=torch.float64, device=self.args.device))
        return total.tolist()

    # A checkpoint holds the whole draft, and β as long as it is above 0.

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        tensors = self._draft.state_dict() if state_dict is None else state_dict
        super()._save(output_dir, with_beta(tensors, self._adapter) if self._adapter else tensors)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        wrong = [*load_result.missing_keys, *(key for key in load_result.unexpected_keys if key != BETA_KEY)]
        if wrong:
            raise CorruptedAdapterError(
                f"train.resume_from_checkpoint: it is not of this draft with this adapter: {', '.join(wrong[:3])}. "
                "Give the recipe that it was made with."
            )


def add_noise(features: Tensor, lengths: Tensor, noise: float) -> Tensor:
    """Noise on the input features: uniform in ± noise/2 · 512/n, as SafeAILab's EAGLE has it.

    It is drawn from torch's own generator of the device, whose state a checkpoint keeps.

    Args:
        features: (batch, length, hidden).
        lengths: (batch,), n: tokens of the whole conversations.
        noise: the setting.
    """
    return features + (torch.rand_like(features) - 0.5) * (noise * NOISE_LENGTH / lengths[:, None, None])


class ValueClip(TrainerCallback):
    """Cuts each gradient to ± ``limit`` when those of an optimizer step are complete."""

    def __init__(self, limit: float) -> None:
        self._limit = limit

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        torch.nn.utils.clip_grad_value_(kwargs["model"].parameters(), self._limit)


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """The recipe's ``train`` section, with `DEFAULTS`.

    Raises:
        RecipeError: a value is refused.
    """
    held_out = "no" if recipe.data.test_items == 0 else "epoch"
    settings = {**DEFAULTS, "remove_unused_columns": False, "eval_strategy": held_out}
    return tuning.training_arguments(TrainingArguments, recipe, settings)


def make_trainer(
    draft: EagleDraft,
    adapter: LoraConfig | None,
    ends: TargetEnds,
    target: PreTrainedModel | None,
    train: Dataset[dict[str, Tensor]],
    test: Dataset[dict[str, Tensor]] | None,
    args: TrainingArguments,
    recipe: Recipe,
) -> EagleTrainer:
    """The trainer with the recipe's callbacks; the arguments are those of `EagleTrainer`.

    Raises:
        RecipeError: the Trainer refuses settings that do not go together.
    """
    limit, args.save_total_limit = args.save_total_limit, None  # the sealer's task
    clip = [ValueClip(recipe.loss.value_clip)] if recipe.loss.value_clip else []
    callbacks = [*annealing(recipe), *clip]
    try:
        trainer = EagleTrainer(draft, args, ends, recipe.loss, adapter, target, train, test, callbacks)
    except (ImportError, RuntimeError, ValueError) as error:
        raise refused(error, TrainingArguments) from error
    set_callbacks(trainer, limit)
    return trainer
