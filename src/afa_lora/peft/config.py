"""`AfaLoraConfig`: PEFT's `LoraConfig` plus the activation, its placement and its schedule."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from peft import LoraConfig

from afa_lora.core.activation import get_activation
from afa_lora.core.errors import InvalidSettingError
from afa_lora.core.placement import PLACEMENTS, Placement, normalise_placement
from afa_lora.core.schedule import Schedule
from afa_lora.core.state import AnnealState

AFA_LORA = "AFA_LORA"
"""``peft_type`` on disk while β > 0. In memory, and on disk at β = 0, the type is LORA."""

# Initialisations with B = 0. Any other one subtracts s·BA from W₀ (or relies on BA = 0), which cancels only while the
# branch is linear: at β = 1 training would start from a damaged model.
LINEAR_STARTS = (True, False, "gaussian", "eva")

# Variants of LoRA that replace the product B A x by something of their own.
EXCLUSIVE_SETTINGS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "megatron_config",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)


@dataclass
class AfaLoraConfig(LoraConfig):  # type: ignore[misc]
    """Configuration of an AFA-LoRA or, with ``use_dora=True``, AFA-DoRA adapter (arXiv 2512.22455).

    Every argument of `peft.LoraConfig` keeps its meaning. ``to_dict()`` (and so the saved
    ``adapter_config.json``) is a plain LoRA configuration at β = 0, and says ``AFA_LORA`` with β at β > 0.

    Args:
        activation: σ of Eq. 1: ``relu``, ``silu``, ``gelu``, ``tanh``, ``leaky_relu``, or a name given to
            `afa_lora.register_activation`.
        placement: where φ_β stands (Table 1): ``A-σ-B``, ``σ-A-B``, ``A-B-σ``, ``σ-A-σ-B``, ``A-σ-B-σ``, ``σ-A-B-σ``,
            ``σ-A-σ-B-σ``; ``s`` may be written for σ.
        schedule: how β falls (Eq. 5): ``linear``, ``cosine``, ``exponential``, ``step``, ``constant``.
        anneal_start: until when β stays 1; a float is a share of training, an int a number of optimizer steps.
        anneal_end: from when β is 0; same units.
        beta: the present β: 1 for a new adapter, later what the callback or the `Annealer` has set.

    Raises:
        InvalidSettingError: a value that cannot be used, with the allowed ones.
    """

    activation: str = field(default="silu", metadata={"help": "The activation that is annealed away."})
    placement: str = field(default="A-σ-B", metadata={"help": "Where the activation stands relative to A and B."})
    schedule: str = field(default="linear", metadata={"help": "How β falls from 1 to 0."})
    anneal_start: float | int = field(default=0.0, metadata={"help": "Share of training, or step, until which β is 1."})
    anneal_end: float | int = field(default=0.3, metadata={"help": "Share of training, or step, from which β is 0."})
    beta: float = field(default=1.0, metadata={"help": "The present weight of the activation."})

    def __post_init__(self) -> None:
        super().__post_init__()
        activation = get_activation(self.activation)
        self.placement = normalise_placement(self.placement)
        at_zero = float(activation.function(torch.zeros((), device="cpu")))
        if self.sites.after_b and at_zero != 0.0:
            raise InvalidSettingError(
                f"placement={self.placement!r} with activation={self.activation!r}: σ(0) = {at_zero:g}, so the adapter "
                "would shift every output before it has learnt anything (B starts at 0). Use a placement without σ "
                "after B, or an activation with σ(0) = 0."
            )
        if self.r < 1:
            raise InvalidSettingError(f"r={self.r!r} must be a positive rank, for example r=16.")
        for key in EXCLUSIVE_SETTINGS:
            if getattr(self, key):
                raise InvalidSettingError(
                    f"{key}={getattr(self, key)!r} replaces LoRA's B·A·x by a computation of its own, where an "
                    f"annealed activation has no place. Leave {key} out, or use peft.LoraConfig for this adapter."
                )
        if self.init_lora_weights not in LINEAR_STARTS:
            raise InvalidSettingError(
                f"init_lora_weights={self.init_lora_weights!r} moves part of W₀ into s·B·A; with the activation at "
                "β = 1 the adapter does not give that part back, so training would start from a damaged model. "
                "Use True (Kaiming A, B = 0), 'gaussian' or 'eva'."
            )
        if self.use_dora and self.init_lora_weights == "eva":
            raise InvalidSettingError(
                "init_lora_weights='eva' rebuilds the layers after injection and PEFT then drops the activation of a "
                "DoRA adapter. Use init_lora_weights=True or 'gaussian' with use_dora=True."
            )

    @property
    def state(self) -> AnnealState:
        """β and where training stands; the very object that this adapter's layers read."""
        state: AnnealState = self.__dict__["_state"]
        return state

    @property
    def sites(self) -> Placement:
        """The placement as three flags."""
        return PLACEMENTS[self.placement]

    def to_dict(self) -> dict[str, Any]:
        """The configuration as it is to be saved: plain LoRA at β = 0, ``AFA_LORA`` with its fields at β > 0."""
        saved: dict[str, Any] = super().to_dict()
        if self.state.linear:
            for key in AFA_FIELDS:
                del saved[key]
        else:
            saved["peft_type"] = AFA_LORA
        return saved

    def __copy__(self) -> AfaLoraConfig:
        """A configuration for another adapter: the same settings and β, its own state."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.__dict__["_state"] = AnnealState(self.state.schedule, self.state.beta)
        return twin


AFA_FIELDS = tuple(sorted({f.name for f in fields(AfaLoraConfig)} - {f.name for f in fields(LoraConfig)}))


def _get_beta(config: AfaLoraConfig) -> float:
    return config.state.beta


def _set_beta(config: AfaLoraConfig, beta: float) -> None:
    if "_state" in config.__dict__:
        config.state.beta = beta
    else:  # the dataclass's __init__: `beta` is its last field, so those of the schedule are there
        schedule = Schedule(config.schedule, config.anneal_start, config.anneal_end)
        config.__dict__["_state"] = AnnealState(schedule, beta)


AfaLoraConfig.beta = property(_get_beta, _set_beta)  # type: ignore[assignment]
