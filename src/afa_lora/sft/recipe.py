"""The recipe of a supervised fine-tuning: what may be in it, and how it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt
from trl import SFTConfig

from afa_lora.data import DataSource
from afa_lora.settings import Arguments, read_settings, validate
from afa_lora.tuning.recipe import TRAIN_KEYS_ELSEWHERE, TRAIN_TYPES, TuningRecipe

SFT_TYPES = {**TRAIN_TYPES, "max_length": PositiveInt | None}
TrainArguments = Annotated[dict[str, Any], Arguments(SFTConfig, "trl.SFTConfig", TRAIN_KEYS_ELSEWHERE, SFT_TYPES)]


class Recipe(TuningRecipe):
    """A supervised fine-tuning, whole."""

    data: DataSource
    """What to train and to test on; ``source`` is reasoning-gym, file, hub or commonsense."""
    train: TrainArguments = Field(default_factory=dict)
    """Arguments of TRL's `SFTConfig`, passed on as they are."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides such as ``train.learning_rate=1e-4``.

    Raises:
        RecipeError: no such file, no YAML, an override without a value, or one line for each setting that is wrong.
    """
    settings, lines = read_settings(path, overrides)
    return validate(Recipe, settings, str(path), lines)


def parse_recipe(settings: Mapping[str, Any], origin: str = "recipe") -> Recipe:
    """Check settings; ``origin`` says in messages where they come from.

    Raises:
        RecipeError: one line for each setting that is wrong.
    """
    return validate(Recipe, settings, origin)
