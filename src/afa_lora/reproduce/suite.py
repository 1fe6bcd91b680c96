"""The file of a reproduction: its arms, and for each scale the recipe that all of them share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, create_model, field_validator, model_validator
from trl import SFTConfig

from afa_lora.core.errors import unknown_name
from afa_lora.data import CommonsenseData
from afa_lora.evaluation.commonsense import EvaluationSettings
from afa_lora.settings import Arguments, RecipeError, Section, read_settings, validate
from afa_lora.sft.recipe import SFT_TYPES
from afa_lora.tuning.recipe import (
    TRAIN_KEYS_ELSEWHERE,
    AdapterArguments,
    AnnealSettings,
    LoadSettings,
    Method,
)

BASELINES = ("full", "lora", "dora")  # what the annealed arms are compared with
TRAIN_KEYS_OF_AN_ARM = {**TRAIN_KEYS_ELSEWHERE, "seed": "seeds"}
TrainArguments = Annotated[dict[str, Any], Arguments(SFTConfig, "trl.SFTConfig", TRAIN_KEYS_OF_AN_ARM, SFT_TYPES)]


class Arm(Section):
    """One row of the table."""

    method: Method
    """full, lora, dora, afa-lora or afa-dora."""
    anneal: AnnealSettings = AnnealSettings()
    """What differs from the scale's own ``anneal``."""
    paper: list[float] = Field(default_factory=list)
    """The paper's accuracies in per cent, in the order of ``columns``."""


class Changes(Section):
    """What one method has of its own; the rest is the scale's."""

    load: LoadSettings = LoadSettings()
    """How the base model is loaded."""
    adapter: AdapterArguments = Field(default_factory=dict)
    """Arguments of `peft.LoraConfig`."""
    train: TrainArguments = Field(default_factory=dict)
    """Arguments of TRL's `SFTConfig`, such as ``learning_rate``."""


def _section_of(kind: type[Section], names: Iterable[str], default: Any = ...) -> type[Section]:
    """A section with a key of one kind for each name, so that a mistake in it is told with its line."""
    fields: dict[str, Any] = {str(name): (kind, default) for name in names}
    return create_model("Named", __base__=Section, **fields)


MethodChanges = _section_of(Changes, get_args(Method), Changes())


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
    """The recipe that the arms share, on what they are tested, and how often each is run.

    The keys ``model``, ``data``, ``load``, ``adapter``, ``anneal`` and ``train`` are those of `afa_lora.sft.Recipe`.
    """

    model: str
    """A hub id, a local folder, or smollm2-135m."""
    data: CommonsenseData
    """What to train on."""
    load: LoadSettings = LoadSettings()
    """How the base model is loaded."""
    adapter: AdapterArguments = Field(default_factory=dict)
    """Arguments of `peft.LoraConfig`."""
    anneal: AnnealSettings = AnnealSettings()
    """The annealed activation; an arm may change parts of it."""
    train: TrainArguments = Field(default_factory=dict)
    """Arguments of TRL's `SFTConfig`; ``seed`` is one of ``seeds``."""
    methods: MethodChanges = MethodChanges()  # type: ignore[valid-type]
    """For each method what it has of its own, such as its learning rate."""
    arms: list[str] = Field(default_factory=list)
    """The arms to run unless others are asked for; all unless given."""
    seeds: list[NonNegativeInt] = Field(default_factory=lambda: [0], min_length=1)
    """Each arm is run once with each: it decides the first A, the order of the items and the dropout."""
    evaluate: EvaluationSettings = EvaluationSettings()
    """How each arm is tested."""
    plan: PlanSettings = PlanSettings()
    """What the plan takes for granted."""
    deviations: list[str] = Field(default_factory=list)
    """What differs from the paper, and what the paper does not say: one sentence each."""

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

    def changes(self, method: str) -> Changes:
        """What a method has of its own."""
        changes: Changes = getattr(self.methods, method)
        return changes


class Suite(Section):
    """A reproduction, whole."""

    title: str
    """A heading."""
    paper: str
    """What of the paper is reproduced."""
    columns: list[str] = Field(default_factory=list)
    """The tasks that the paper's numbers are of, and ``average``."""
    figure: str | None = None
    """The name of a PNG with the loss curves of all arms, if the report is to have that figure beside it."""
    deviations: list[str] = Field(default_factory=list)
    """What differs from the paper at every scale; the scale's own come after it."""
    arms: Section
    """The rows of the table by name."""
    like: str | None = None
    """A suite in the same folder whose scales are this one's too; ``scales`` then has what is changed in them."""
    scales: Section
    """The scales by name."""

    @model_validator(mode="after")
    def _check_arms(self) -> Suite:
        slugs: dict[str, str] = {}
        baselines: dict[str, str] = {}
        for name, arm in self.arms:
            if arm.paper and len(arm.paper) != len(self.columns):
                raise ValueError(f"arms.{name}.paper has {len(arm.paper)} numbers, columns {len(self.columns)} names")
            other = slugs.setdefault(slug(name), name)
            if other != name:
                raise ValueError(f"arms {other!r} and {name!r} would share the folder {slug(name)}")
            if arm.method in BASELINES and (other := baselines.setdefault(arm.method, name)) != name:
                raise ValueError(f"arms {other!r} and {name!r} are both of method {arm.method}: it is one baseline")
        for key, scale in self.scales:
            for name in scale.arms:
                if name not in self.arm_names:
                    raise unknown_name(f"scales.{key}.arms", name, self.arm_names)
        return self

    @property
    def arm_names(self) -> list[str]:
        """The names of all arms."""
        return [name for name, _ in self.arms]

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return dict(self.arms)[name]


def read_suite(path: Path, scale: str, overrides: Sequence[str] = ()) -> tuple[Suite, Scale]:
    """Read the file of a reproduction and choose a scale.

    Args:
        path: the YAML file.
        scale: one of its scales.
        overrides: settings of that scale to change, such as ``train.learning_rate=1e-4``.

    Raises:
        InvalidSettingError: there is no such scale.
        RecipeError: no such file, no YAML, an override without a value, or one line for each setting that is wrong.
    """
    settings, _ = _read(path)
    scales = settings.get("scales")
    if isinstance(scales, dict) and scales and scale not in scales:
        raise unknown_name("scale", scale, scales)
    settings, lines = _read(path, [f"scales.{scale}.{override}" for override in overrides])
    suite: type[Suite] = create_model(
        "Suite",
        __base__=Suite,
        arms=(_section_of(Arm, settings.get("arms") or ()), ...),
        scales=(_section_of(Scale, settings.get("scales") or ()), ...),
    )
    read = validate(suite, settings, str(path), lines)
    return read, dict(read.scales)[scale]


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with the changes put in."""
    result = dict(settings)
    for key, value in changes.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def _read(path: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """What `read_settings` gives, with the scales of the suite that ``like`` names."""
    settings, lines = read_settings(path, overrides)
    like = settings.get("like")
    if not isinstance(like, str):
        return settings, lines
    other, there = read_settings(path.parent / like)
    if "like" in other:
        raise RecipeError(f"{path}: like = {like!r} has its scales from {other['like']!r}. Name that one.")
    theirs = {key: f"{like}, {line}" for key, line in there.items() if key.startswith("scales.")}
    return merged({"scales": other.get("scales")}, settings), theirs | lines


def slug(name: str) -> str:
    """The name of an arm's folder: ``AFA-LoRA A-σ-B`` becomes ``afa-lora-a-s-b``."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in name.lower().replace("σ", "s"))
    return "-".join(words.split())
