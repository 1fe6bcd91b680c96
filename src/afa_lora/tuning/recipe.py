"""The sections that every recipe of a training has, and the recipe without its workflow's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from peft import LoraConfig
from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from afa_lora.core.activation import ACTIVATIONS, get_activation
from afa_lora.core.placement import PLACEMENTS, normalise_placement
from afa_lora.core.schedule import SCHEDULES, Schedule
from afa_lora.settings import Arguments, Section, dump_yaml, read_settings, validate

ADAPTER_KEYS_ELSEWHERE = {
    **dict.fromkeys(("use_dora", "peft_type", "task_type"), "method"),
    **{key: f"anneal.{key}" for key in ("activation", "placement", "schedule", "anneal_start", "anneal_end")},
}
TRAIN_KEYS_ELSEWHERE = {"output_dir": "output", "hub_token": "the environment variable HF_TOKEN"}
Share = Annotated[int | float, Field(ge=0, le=1)]
ADAPTER_TYPES = {"r": PositiveInt, "lora_dropout": Share}
AdapterArguments = Annotated[
    dict[str, Any], Arguments(LoraConfig, "peft.LoraConfig", ADAPTER_KEYS_ELSEWHERE, ADAPTER_TYPES)
]
TRAIN_TYPES = {
    "fsdp": bool | str | None,  # transformers takes true there, and says that it prefers it
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), PositiveInt),
    **dict.fromkeys(("learning_rate", "num_train_epochs"), PositiveInt | PositiveFloat),
    "gradient_accumulation_steps": PositiveInt,
    "dataloader_num_workers": NonNegativeInt,
}
SPELLINGS = [*PLACEMENTS, *(name.replace("σ", "s") for name in PLACEMENTS)]


def _expand_home(path: Path) -> Path:
    try:
        return path.expanduser()  # the trainer's configuration would do it for the checkpoints alone
    except RuntimeError as error:
        raise ValueError(f"the home folder of {path.parts[0]!r} is not known. Write the whole path.") from error


UserPath = Annotated[Path, AfterValidator(_expand_home)]
"""A path in which ``~`` is the user's home."""
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Method = Literal["full", "lora", "dora", "afa-lora", "afa-dora"]


class AnnealSettings(Section):
    """The annealed activation; read by the methods ``afa-lora`` and ``afa-dora`` alone.

    The keys are those of `afa_lora.AfaLoraConfig`.
    """

    activation: Annotated[str, Field(json_schema_extra={"examples": [*ACTIVATIONS]})] = "silu"  # or the user's own
    """σ: relu, silu, gelu, tanh or leaky_relu."""
    placement: Annotated[str, Field(json_schema_extra={"enum": SPELLINGS})] = "A-σ-B"
    """Where σ stands, as A-σ-B or A-s-B."""
    schedule: Annotated[str, Field(json_schema_extra={"enum": [*SCHEDULES]})] = "linear"
    """How β falls from 1 to 0: linear, cosine, exponential, step or constant."""
    anneal_start: int | float = 0.0
    """Until when β is 1: a float is a share of training, an integer a number of optimizer steps."""
    anneal_end: int | float = 0.3
    """From when β is 0: a float is a share of training, an integer a number of optimizer steps."""

    @field_validator("activation")
    @classmethod
    def _check_activation(cls, name: str) -> str:
        return get_activation(name).name

    @field_validator("placement")
    @classmethod
    def _check_placement(cls, name: str) -> str:
        return normalise_placement(name)

    @field_validator("schedule")
    @classmethod
    def _check_schedule(cls, name: str) -> str:
        return Schedule(name).kind

    @model_validator(mode="after")
    def _check_window(self) -> AnnealSettings:
        Schedule(self.schedule, self.anneal_start, self.anneal_end)
        return self


class LoadSettings(Section):
    """The base model's precision."""

    dtype: Dtype = "auto"
    """The dtype of the base weights; auto is bfloat16 where the hardware computes in it, else float32."""
    quantization: Literal["4bit", "8bit"] | None = None
    """Load the base model quantised by bitsandbytes: 4bit (NF4) or 8bit; TRL keeps A and B in bfloat16 then."""


class EvaluateSettings(Section):
    """The check of generated answers on the test items, with greedy decoding."""

    before: bool = True
    """Whether to test the untrained model too."""
    max_new_tokens: PositiveInt = 32
    """The longest answer, in tokens."""
    batch_size: PositiveInt = 32
    """How many answers are generated at a time."""


class TuningRecipe(Section):
    """What the recipes of all workflows have; each adds its ``data``, its ``train`` and its ``evaluate``."""

    longest: ClassVar[tuple[str, int]] = ("max_length", 1024)
    """The key of ``train`` that limits the tokens of an item, and its default."""

    model: str
    """A hub id, a local folder, or smollm2-135m."""
    method: Method = "afa-lora"
    """full, lora, dora, afa-lora or afa-dora."""
    output: UserPath
    """The folder for checkpoints, adapter, merged model, curves and results."""
    data: Section
    """What to train and to test on."""
    load: LoadSettings = LoadSettings()
    """How the base model is loaded."""
    adapter: AdapterArguments = Field(default_factory=dict)
    """Arguments of `peft.LoraConfig`, such as ``r`` and ``lora_alpha``; ``target_modules`` is all-linear by default."""
    anneal: AnnealSettings = AnnealSettings()
    """The annealed activation."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the trainer's configuration, passed on as they are."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """The check of generated answers."""
    merge: bool = True
    """Whether to write the merged model beside the adapter."""

    @property
    def anneals(self) -> bool:
        """Whether the method has an annealed activation."""
        return self.method.startswith("afa-")

    @property
    def trains_base(self) -> bool:
        """Whether the method trains the base weights themselves."""
        return self.method == "full"

    @property
    def weights_dtype(self) -> Dtype:
        """What the recipe says of the dtype of the model that is trained."""
        return self.load.dtype

    @property
    def less_memory(self) -> list[str]:
        """Settings that take less memory, most effective first; batch and gradient checkpointing aside."""
        key, default = self.longest
        length = self.train.get(key, default)
        remedies = [f"train.{key}={length // 2 if length else default}"]
        if self.load.quantization is None and not self.trains_base:
            remedies.append("load.quantization=4bit")
        return remedies

    @property
    def less_memory_in_test(self) -> str:
        """The setting that takes less memory in a test."""
        return f"evaluate.batch_size={max(self.evaluate.batch_size // 2, 1)}"


class RunData(Section):
    """What the ``data`` of all workflows have."""

    model_config = ConfigDict(extra="ignore")
    system: str | None = None
    """A system message to put before every prompt."""


class RunRecipe(TuningRecipe):
    """The recipe of a run, whatever its workflow, without what is the workflow's own."""

    model_config = ConfigDict(extra="ignore")
    data: RunData


def read_run(path: Path) -> RunRecipe:
    """Read the recipe of a run of any workflow.

    Raises:
        RecipeError: it is damaged.
    """
    settings, lines = read_settings(path)
    return validate(RunRecipe, settings, str(path), lines)


def dump_recipe(recipe: TuningRecipe) -> str:
    """The recipe as YAML, defaults included; the workflow's `load_recipe` reads it back."""
    return dump_yaml(recipe.model_dump(mode="json"))
