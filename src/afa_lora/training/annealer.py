"""Algorithm 1 for a training loop of one's own."""

from __future__ import annotations

from torch import nn

from afa_lora.core.errors import InvalidSettingError
from afa_lora.peft.model import anneal_states, no_afa_layer


class Annealer:
    """Sets β(step) in every AFA layer of a model, # Algorithm 1.

    Args:
        model: a `PeftModel`, or any model with injected AFA adapters.
        total_steps: T, the number of optimizer steps of the whole training.

    Raises:
        InvalidSettingError: the model has no AFA layer, ``total_steps`` is not positive, or the annealing window is
            empty at that length.

    Example:
        >>> annealer = Annealer(model, total_steps=len(loader))
        >>> for step, batch in enumerate(loader):
        ...     annealer.set_step(step)  # before the forward
        ...     model(**batch).loss.backward()
    """

    def __init__(self, model: nn.Module, total_steps: int) -> None:
        self.states = anneal_states(model, trainable_only=True) or anneal_states(model)
        if not self.states:
            raise InvalidSettingError(no_afa_layer(model))
        if isinstance(total_steps, bool) or not isinstance(total_steps, int) or total_steps < 1:
            raise InvalidSettingError(f"total_steps={total_steps!r} must be the positive number of optimizer steps.")
        self.total_steps = total_steps
        for state in self.states.values():
            state.schedule.window(total_steps)  # an empty window is an error now, not at the first step

    def set_step(self, step: int) -> float:
        """Set β(step) for the step about to be taken, ``step`` = optimizer steps finished so far, from 0.

        A pure function of ``step``: a resumed loop calls it with the step it resumes at. Returns β (of the first
        adapter, where several have different schedules).
        """
        betas = [state.set_step(step, self.total_steps) for state in self.states.values()]
        return betas[0]
