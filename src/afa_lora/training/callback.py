"""Algorithm 1 for `transformers.Trainer` and every TRL trainer."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from afa_lora.training.annealer import Annealer

logger = logging.get_logger(__name__)


class AnnealingCallback(TrainerCallback):
    """Anneals every trainable AFA adapter over a training: ``SFTTrainer(..., callbacks=[AnnealingCallback()])``.

    β follows the global step alone, so resuming is exact, gradient accumulation holds it still, and a forward and its
    recomputation under gradient checkpointing see the same one. Evaluations and checkpoints after step t have β(t),
    the value that the next step trains with. Trainers that generate (GRPO, RLOO) keep one β from a generation to the
    last update that uses it: β follows ⌊step / U⌋ · U, U being `updates_per_generation`. Logs ``afa/beta`` (with
    several adapters ``afa/beta/NAME``).

    Args:
        keeps_generations: whether the trainer goes on within a generation when it is resumed there. TRL's own begin a
            new one, and U steps are counted from there.

    Raises:
        InvalidSettingError: at the start of training, if the model has no AFA layer.
    """

    def __init__(self, *, keeps_generations: bool = False) -> None:
        self._annealer: Annealer | None = None
        self._keeps_generations = keeps_generations
        self._held_steps = 1
        self._first_step = 0  # at which a generation began

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._annealer = Annealer(kwargs["model"], state.max_steps)
        self._held_steps = updates_per_generation(args)
        self._first_step = 0 if self._keeps_generations else state.global_step % self._held_steps
        self._set(state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._set(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._set(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._annealer is None:
            return
        states = self._annealer.states
        betas = {f"afa/beta/{name}" if len(states) > 1 else "afa/beta": s.beta for name, s in states.items()}
        if logs is not None:
            logs.update(betas)
        if state.log_history:
            state.log_history[-1].update(betas)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._annealer is None:
            return
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._set(state, state.best_global_step)  # what FSDP2 reads back of a checkpoint has no β
        for name, anneal_state in self._annealer.states.items():
            if not anneal_state.linear:
                _warn_not_linear(name, anneal_state.where(), anneal_state.beta, args, state)

    def _set(self, state: TrainerState, step: int | None = None) -> None:
        assert self._annealer is not None
        step = state.global_step if step is None else step
        if step < state.max_steps:
            step = max(step - (step - self._first_step) % self._held_steps, 0)
        self._annealer.set_step(step)


def updates_per_generation(args: TrainingArguments) -> int:
    """U, how many optimizer steps β is held: 1 unless the trainer generates (TRL's GRPO and RLOO).

    A generation serves steps_per_generation · num_iterations forward passes, a step takes
    gradient_accumulation_steps. U is the least number of steps after which a generation ends with a step. Where one
    ends within a step that holds for the first epoch alone, since TRL cuts the last step of an epoch short.
    """
    if getattr(args, "steps_per_generation", None) is None:
        return 1
    return math.lcm(forward_passes(args), args.gradient_accumulation_steps) // args.gradient_accumulation_steps


def forward_passes(args: Any) -> int:
    """How many forward passes of a process one generation serves: steps_per_generation · num_iterations."""
    passes: int = args.steps_per_generation * getattr(args, "num_iterations", 1)
    return passes


def _warn_not_linear(name: str, where: str, beta: float, args: TrainingArguments, state: TrainerState) -> None:
    loaded_best = args.load_best_model_at_end and state.best_model_checkpoint is not None
    if loaded_best:
        reason = (
            f"load_best_model_at_end brought back {state.best_model_checkpoint}, a checkpoint from the annealing "
            f"window, with its β = {beta:.4g}. Choose among the checkpoints after the window (an eval_delay past "
            "anneal_end)"
        )
    else:
        reason = f"training stopped at step {state.global_step} of {state.max_steps} ({where}). Train past anneal_end"
    logger.warning(
        f"Adapter {name!r} is not linear: {reason}, lower anneal_end, or call afa_lora.linearize(model, data). Until "
        "then it is saved as AFA_LORA and merging raises NotLinearError."
    )
