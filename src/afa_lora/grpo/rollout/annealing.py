"""What an engine has to know of an annealing adapter: σ and its place, which an engine has one of, and β."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from afa_lora.core.activation import Activation, get_activation
from afa_lora.core.errors import CorruptedAdapterError, InvalidSettingError
from afa_lora.core.placement import PLACEMENTS, Placement, normalise_placement
from afa_lora.peft.checkpoint import BETA_KEY
from afa_lora.peft.config import AFA_LORA

OPTION = "afa_lora"
"""The key in vLLM's ``additional_config`` with which an engine asks for annealing adapters."""
OPTION_KEYS = {"activation", "placement"}


@dataclass(frozen=True)
class Sites:
    """σ, and where φ_β stands, for every annealing adapter of one engine.

    They are part of what a compiled forward computes, so an engine has one of each; β and s are data.
    """

    activation: Activation
    placement: Placement

    @classmethod
    def named(cls, activation: str, placement: str) -> Sites:
        """Look both up.

        Raises:
            InvalidSettingError: one of them is not known; with the known ones.
        """
        return cls(get_activation(activation), PLACEMENTS[normalise_placement(placement)])

    @classmethod
    def from_option(cls, additional_config: object) -> Sites | None:
        """What an engine's ``additional_config`` asks for; ``None`` if it does not ask for annealing adapters.

        Raises:
            InvalidSettingError: it does, but not with one known activation and one known placement.
        """
        option = additional_config.get(OPTION) if isinstance(additional_config, Mapping) else None
        if option is None:
            return None
        if not isinstance(option, Mapping) or set(option) != OPTION_KEYS:
            raise InvalidSettingError(
                f"additional_config[{OPTION!r}]={option!r} must hold {sorted(OPTION_KEYS)}, for example "
                '{"activation": "silu", "placement": "A-σ-B"}.'
            )
        return cls.named(option["activation"], option["placement"])

    def __str__(self) -> str:
        placement = next(name for name, sites in PLACEMENTS.items() if sites == self.placement)
        return f"activation={self.activation.name!r}, placement={placement!r}"


@dataclass(frozen=True)
class AnnealingFile:
    """What an adapter's folder says of its annealing."""

    sites: Sites
    beta: float


def read_annealing(folder: Path) -> AnnealingFile | None:
    """Read activation, placement and β of an adapter's folder; ``None`` for a linear adapter.

    Raises:
        InvalidSettingError: the activation or the placement is not known here.
        CorruptedAdapterError: configuration and weights do not say the same: the one is of an annealing adapter and the
            other is not, or β is not in (0, 1].
    """
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    annealing, beta = config.get("peft_type") == AFA_LORA, read_beta(folder)
    if not annealing and beta is None:
        return None
    if not annealing or beta is None or not 0.0 < beta <= 1.0:
        raise CorruptedAdapterError(
            f"{folder}: {CONFIG_NAME} says peft_type={config.get('peft_type')!r} and {SAFETENSORS_WEIGHTS_NAME} holds "
            f"{BETA_KEY}={beta!r}; an annealing adapter has peft_type={AFA_LORA!r} and β in (0, 1], a linear one "
            "neither. Save the adapter again."
        )
    return AnnealingFile(_sites(config, folder), beta)


def read_beta(folder: Path) -> float | None:
    """β in the adapter's weights, or ``None``; files other than safetensors are not looked into.

    Raises:
        CorruptedAdapterError: the file is damaged.
    """
    path = folder / SAFETENSORS_WEIGHTS_NAME
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            found = [float(file.get_tensor(key)) for key in file.keys() if is_beta(key)]  # noqa: SIM118
    except SafetensorError as error:
        raise CorruptedAdapterError(f"{path} is damaged or truncated ({error}). Save the adapter again.") from error
    return found[0] if found else None


def is_beta(key: str) -> bool:
    """Is this the name of the tensor that holds β?"""
    return key.removeprefix("base_model.model.") == BETA_KEY


def _sites(config: Mapping[str, Any], folder: Path) -> Sites:
    try:
        return Sites.named(config["activation"], config["placement"])
    except KeyError as error:
        raise CorruptedAdapterError(f"{folder / CONFIG_NAME} names no {error}. Save the adapter again.") from error
