"""What the user sets under ``actor_rollout_ref.model.lora.afa``. Needs no verl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from afa_lora.core.errors import InvalidSettingError, closest

KEY = "actor_rollout_ref.model.lora.afa"


@dataclass(frozen=True)
class AfaSettings:
    """The adapter's annealing, and how it fits into verl's loop.

    Attributes:
        activation, placement, schedule, anneal_start, anneal_end: see `afa_lora.AfaLoraConfig`. Bounds count steps of
            verl's learning-rate scheduler, one for each rollout batch; a float is a share of them.
        use_dora: AFA-DoRA instead of AFA-LoRA.
        hold_steps: scheduler steps for which β is held: 1, or ``parameter_sync_step`` of verl's trainers that update
            several times between two weight synchronisations.
        require_importance_weights: while β > 0 refuse to update the policy from rollouts of the linearised one without
            importance weights. Turn it off only where the loss corrects otherwise (``bypass_mode``).
        probe_tokens: upper limit, for each rank, of the tokens on which slopes are measured.
    """

    activation: str = "silu"
    placement: str = "A-σ-B"
    schedule: str = "linear"
    anneal_start: float | int = 0.0
    anneal_end: float | int = 0.3
    use_dora: bool = False
    hold_steps: int = 1
    require_importance_weights: bool = True
    probe_tokens: int = 2048

    def __post_init__(self) -> None:
        for key in ("hold_steps", "probe_tokens"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidSettingError(f"{KEY}.{key}={value!r} must be a positive whole number.")
        for key in ("use_dora", "require_importance_weights"):
            if not isinstance(getattr(self, key), bool):
                raise InvalidSettingError(f"{KEY}.{key}={getattr(self, key)!r} must be true or false.")

    @property
    def adapter(self) -> dict[str, Any]:
        """The keyword arguments for `AfaLoraConfig`."""
        keys = ("activation", "placement", "schedule", "anneal_start", "anneal_end", "use_dora")
        return {key: getattr(self, key) for key in keys}

    def clock(self, scheduler_step: int) -> int:
        """The step whose β holds at ``scheduler_step``: ⌊step / U⌋ · U."""
        return scheduler_step - scheduler_step % self.hold_steps


def read_settings(lora: Mapping[str, Any]) -> AfaSettings | None:
    """The settings in verl's ``model.lora`` mapping; ``None`` where it has no ``afa``: verl is then left as it is.

    Raises:
        InvalidSettingError: an unknown key, or a value that cannot be used.
    """
    given = lora.get("afa")
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise InvalidSettingError(f"{KEY}={given!r} must be a mapping, for example +{KEY}.activation=relu.")
    known = [field.name for field in fields(AfaSettings)]
    unknown = [str(key) for key in given if key not in known]
    if unknown:
        raise InvalidSettingError(
            f"{KEY}.{unknown[0]} is not known. Known keys: {', '.join(known)}.{closest(unknown[0], known)}"
        )
    return AfaSettings(**{str(key): value for key, value in given.items()})
