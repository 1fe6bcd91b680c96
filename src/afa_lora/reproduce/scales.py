"""The scales of a reproduction: the recipe that all of its arms share, one class for each workflow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, get_args

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, create_model, field_validator
from transformers import TrainingArguments
from trl import GRPOConfig, SFTConfig

from afa_lora.data import CommonsenseData
from afa_lora.eagle import recipe as eagle
from afa_lora.eagle.evaluation.settings import DraftEvaluationSettings
from afa_lora.evaluation.commonsense import EvaluationSettings
from afa_lora.grpo import recipe as grpo
from afa_lora.settings import Arguments, Section
from afa_lora.sft.recipe import SFT_TYPES
from afa_lora.tuning.recipe import (
    TRAIN_KEYS_ELSEWHERE,
    TRAIN_TYPES,
    AdapterArguments,
    AnnealSettings,
    LoadSettings,
    Method,
)

OF_AN_ARM = {"seed": "seeds"}  # where the keys of ``train`` are that an arm does not choose
SftArguments = Annotated[
    dict[str, Any], Arguments(SFTConfig, "trl.SFTConfig", {**TRAIN_KEYS_ELSEWHERE, **OF_AN_ARM}, SFT_TYPES)
]
GrpoArguments = Annotated[
    dict[str, Any], Arguments(GRPOConfig, "trl.GRPOConfig", {**grpo.TRAIN_KEYS, **OF_AN_ARM}, grpo.GRPO_TYPES)
]

EagleArguments = Annotated[
    dict[str, Any],
    Arguments(
        TrainingArguments,
        "transformers.TrainingArguments",
        {**TRAIN_KEYS_ELSEWHERE, **OF_AN_ARM},
        TRAIN_TYPES,
    ),
]


class Changes(Section):
    """What one method has of its own; the rest is the scale's."""

    load: LoadSettings = LoadSettings()
    """How the base model is loaded."""
    adapter: AdapterArguments = Field(default_factory=dict)
    """Arguments of `peft.LoraConfig`."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the trainer's configuration, such as ``learning_rate``."""


class SftChanges(Changes):
    """The same of a supervised fine-tuning."""

    train: SftArguments = Field(default_factory=dict)


class GrpoChanges(Changes):
    """The same of a GRPO training."""

    train: GrpoArguments = Field(default_factory=dict)


class EagleChanges(Changes):
    """The same of a draft's training."""

    train: EagleArguments = Field(default_factory=dict)


def section_of(kinds: Iterable[tuple[str, type[Section]]], required: bool = True) -> type[Section]:
    """A section with a key for each name and kind, so that a mistake in it is told with its line."""
    fields: dict[str, Any] = {name: (kind, ... if required else kind()) for name, kind in kinds}
    return create_model("Named", __base__=Section, **fields)


def _by_method(kind: type[Changes], methods: Iterable[str] = get_args(Method)) -> type[Section]:
    return section_of(((name, kind) for name in methods), required=False)


SftMethods, GrpoMethods = _by_method(SftChanges), _by_method(GrpoChanges)
EagleMethods = _by_method(EagleChanges, get_args(eagle.EagleMethod))


class PlanSettings(Section):
    """What the plan takes for granted where nothing can be read or measured."""

    items: PositiveInt | None = None
    """How many training items there are, where neither the data are there nor ``data.train_items`` says it."""
    shape: str | None = None
    """The folder below recipes/shapes that stands in for a model that is not here."""
    gpus: dict[str, PositiveFloat] = Field(default_factory=dict)
    """For each GPU to count the hours on its peak in dense bfloat16 products, in TFLOP/s; without any, this machine's
    own speed is measured."""
    utilization: Annotated[float, Field(gt=0, le=1)] = 0.4
    """The share of that peak which a training reaches."""


class Scale(Section):
    """The recipe that the arms share, and how often each is run.

    The keys that `recipe_keys` names are those of the workflow's recipe.
    """

    recipe_keys: ClassVar[tuple[str, ...]] = ("model", "data", "load", "adapter", "anneal", "train")

    model: str
    """A hub id, a local folder, or smollm2-135m."""
    data: Section
    """What to train on."""
    load: LoadSettings = LoadSettings()
    """How the base model is loaded."""
    adapter: AdapterArguments = Field(default_factory=dict)
    """Arguments of `peft.LoraConfig`."""
    anneal: AnnealSettings = AnnealSettings()
    """The annealed activation; an arm may change parts of it."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the trainer's configuration; ``seed`` is one of ``seeds``."""
    methods: Section
    """For each method what it has of its own, such as its learning rate."""
    arms: list[str] = Field(default_factory=list)
    """The arms to run unless others are asked for; all unless given."""
    seeds: list[NonNegativeInt] = Field(default_factory=lambda: [0], min_length=1)
    """Each arm is run once with each: it decides the first A, the order of the items and all that is drawn."""
    evaluate: Section
    """How each arm is tested."""
    deviations: list[str] = Field(default_factory=list)
    """What differs from the paper, and what the paper does not say: one sentence each."""

    def changes(self, method: str) -> Changes:
        """What a method has of its own."""
        changes: Changes = getattr(self.methods, method)
        return changes


class SftScale(Scale):
    """A scale of a supervised fine-tuning, tested on the eight commonsense tasks."""

    data: CommonsenseData
    train: SftArguments = Field(default_factory=dict)
    methods: SftMethods = SftMethods()  # type: ignore[valid-type]
    evaluate: EvaluationSettings = EvaluationSettings()
    plan: PlanSettings = PlanSettings()
    """What the plan takes for granted."""

    @field_validator("data")
    @classmethod
    def _train_and_test_alike(cls, data: CommonsenseData) -> CommonsenseData:
        if data.test_items:
            raise ValueError("test_items must be 0: the arms are tested on the eight test sets, by 'evaluate'")
        if data.folder is not None:
            raise ValueError("folder would be that of the training alone: give --data, which is that of the tests too")
        if data.system is not None:
            raise ValueError("system must be left out: the arms are tested without a system message")
        return data


class GrpoScale(Scale):
    """A scale of a GRPO training, tested by the rewards of greedy answers to the run's own test items."""

    recipe_keys = (*Scale.recipe_keys, "max_prompt_length", "rewards", "rollout")

    data: grpo.Data
    max_prompt_length: PositiveInt | None = 512
    """Prompts of more tokens are left out."""
    rewards: grpo.RewardList
    """The reward functions."""
    rollout: grpo.Rollout = "transformers"
    """What samples the completions."""
    train: GrpoArguments = Field(default_factory=dict)
    methods: GrpoMethods = GrpoMethods()  # type: ignore[valid-type]
    evaluate: grpo.TestSettings = grpo.TestSettings()

    @field_validator("data")
    @classmethod
    def _tested(cls, data: grpo.Data) -> grpo.Data:
        if data.test_items == 0:
            raise ValueError("test_items must not be 0: the arms are compared by their rewards on these")
        return data


class EagleScale(Scale):
    """A scale of a draft's training, tested by the tokens that the target accepts."""

    recipe_keys = (*Scale.recipe_keys, "features", "loss")

    data: eagle.ConversationData
    features: eagle.FeatureSettings = eagle.FeatureSettings()
    """As what the target's features are kept, beside the arms, which share them."""
    loss: eagle.LossSettings = eagle.LossSettings()
    """What the draft learns."""
    anneal: eagle.DraftAnnealing = eagle.DraftAnnealing()
    """The annealed activation; an arm may change parts of it."""
    train: EagleArguments = Field(default_factory=dict)
    methods: EagleMethods = EagleMethods()  # type: ignore[valid-type]
    evaluate: DraftEvaluationSettings = DraftEvaluationSettings()
    plan: PlanSettings = PlanSettings()
    """What the plan takes for granted."""

    @field_validator("features")
    @classmethod
    def _shared(cls, features: eagle.FeatureSettings) -> eagle.FeatureSettings:
        if features.folder is not None:
            raise ValueError("folder must be left out: the arms share the features, which lie beside them")
        return features


class VerlScale(Section):
    """A scale that verl runs, on many GPUs: what it is like stands in the scripts of recipes/verl."""

    verl: list[str] = Field(min_length=1)
    """The sizes of the model, each with all arms."""
    arms: list[str] = Field(default_factory=list)
    """The arms to print unless others are asked for; all unless given."""
    deviations: list[str] = Field(default_factory=list)
    """What differs from the paper, and what the paper does not say: one sentence each."""


def scale_kind(workflow: Any, settings: Any) -> type[Section]:
    """The class of a scale with these settings."""
    if workflow == "grpo":
        return VerlScale if isinstance(settings, dict) and "verl" in settings else GrpoScale
    if workflow == "eagle":
        return EagleScale
    return SftScale
