"""The recipe of a GRPO training: what may be in it, and how it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator
from trl import GRPOConfig

from afa_lora.data.sources import FileData, Gsm8kData, HubData, TaskData
from afa_lora.settings import Arguments, Section, read_settings, validate
from afa_lora.tuning.recipe import TRAIN_KEYS_ELSEWHERE, TRAIN_TYPES, EvaluateSettings, TuningRecipe

IMPORTANCE = "vllm_importance_sampling_"  # these keys of TRL's apply to whatever an engine samples
TRAIN_KEYS = {
    **TRAIN_KEYS_ELSEWHERE,
    **{
        key: "rollout and engine"
        for key in GRPOConfig.__dataclass_fields__
        if key.startswith("vllm_") and not key.startswith(IMPORTANCE)
    },
    "chat_template_kwargs": "the chat template of the model, a copy of which can be edited",
    "use_vllm": "rollout",
    "reward_weights": "the weights of rewards",
    "num_generations_eval": "evaluate: one greedy answer to each item",
}
GRPO_TYPES = {
    **TRAIN_TYPES,
    **dict.fromkeys(("num_generations", "num_iterations", "max_completion_length"), PositiveInt),
}
TrainArguments = Annotated[dict[str, Any], Arguments(GRPOConfig, "trl.GRPOConfig", TRAIN_KEYS, GRPO_TYPES)]
Data = Annotated[TaskData | Gsm8kData | FileData | HubData, Field(discriminator="source")]
Rollout = Literal["transformers", "vllm-wait", "vllm-linearized", "vllm-exact"]


class RewardSettings(Section):
    """One reward function."""

    function: str
    """task, gsm8k, math or format, or your own as ``module:function``."""
    weight: Annotated[int | float, Field(allow_inf_nan=False)] = 1.0
    """Its factor in the sum."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the function, such as ``method: flexible`` of gsm8k."""


def _spelt_out(rewards: Any) -> Any:
    """``task`` is ``{function: task}``, and one of them needs no list."""
    listed = rewards if isinstance(rewards, list) else [rewards]
    return [{"function": reward} if isinstance(reward, str) else reward for reward in listed]


def _different(rewards: list[RewardSettings]) -> list[RewardSettings]:
    names = [reward.function for reward in rewards]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is there twice, and would be logged under one name. Wrap one of them")
    return rewards


RewardList = Annotated[
    list[RewardSettings], BeforeValidator(_spelt_out), AfterValidator(_different), Field(min_length=1)
]


class EngineSection(Section):
    """How large vLLM is; read by the vLLM rollouts alone."""

    max_sequences: PositiveInt = 64
    """How many completions are sampled at a time."""
    cache_gib: PositiveFloat = 1.0
    """Memory for keys and values in GiB, beside that of the weights."""
    compiled: bool = False
    """Let vLLM compile the model and capture CUDA graphs."""


class TestSettings(EvaluateSettings):
    """The check of generated answers on the test items, with greedy decoding."""

    max_new_tokens: PositiveInt | None = None  # type: ignore[assignment]
    """The longest answer, in tokens; ``train.max_completion_length`` unless given."""


class Recipe(TuningRecipe):
    """A GRPO training, whole."""

    longest: ClassVar[tuple[str, int]] = ("max_completion_length", 512)

    data: Data
    """The prompts, and what the rewards need to judge the completions; ``source`` is reasoning-gym, gsm8k, file or
    hub."""
    max_prompt_length: PositiveInt | None = 512
    """Prompts of more tokens than that, chat template included, are dropped before the training and counted."""
    rewards: RewardList
    """The reward functions: a name, or ``function`` with ``weight`` and ``options``. Built in are task, gsm8k, math and
    format; your own is ``module:function`` with TRL's signature."""
    rollout: Rollout = "transformers"
    """What samples the completions: transformers, vllm-wait, vllm-linearized or vllm-exact."""
    rollout_batch_size: PositiveInt | None = None
    """How many completions transformers samples at a time; unless given, all that a process samples in a generation."""
    engine: EngineSection = EngineSection()
    """How large vLLM is."""
    train: TrainArguments = Field(default_factory=dict)
    """Arguments of TRL's `GRPOConfig`, passed on as they are."""
    evaluate: TestSettings = TestSettings()
    """The check of generated answers."""

    @model_validator(mode="after")
    def _check_dropout(self) -> Recipe:
        dropout = self.adapter.get("lora_dropout", 0)
        if dropout and self.method != "full":
            raise ValueError(
                f"adapter.lora_dropout={dropout}: each forward would draw another mask, so the ratio of new to old "
                "probabilities would compare two different policies. Leave it out, or set it to 0"
            )
        return self

    @property
    def reward_weights(self) -> list[float]:
        """One weight for each reward function."""
        return [float(reward.weight) for reward in self.rewards]


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
