"""The file of a reproduction: its arms, and for each scale the recipe that all of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import Field, create_model, model_validator

from afa_lora.core.errors import unknown_name
from afa_lora.reproduce.families import METHODS, AnyMethod, is_baseline
from afa_lora.reproduce.runs import Workflow
from afa_lora.reproduce.scales import Scale, VerlScale, scale_kind, section_of
from afa_lora.settings import RecipeError, Section, read_settings, validate
from afa_lora.tuning.recipe import AnnealSettings, Method


class Arm(Section):
    """One row of the table."""

    method: AnyMethod
    """full, lora, dora, afa-lora or afa-dora; of a draft eagle, eagle+lora, eagle+afa-lora, …"""
    anneal: AnnealSettings = AnnealSettings()
    """What differs from the scale's own ``anneal``."""
    paper: list[float] = Field(default_factory=list)
    """The paper's numbers in per cent, in the order of ``columns``."""


class Suite(Section):
    """A reproduction, whole."""

    title: str
    """A heading."""
    paper: str
    """What of the paper is reproduced."""
    workflow: Workflow = "sft"
    """What an arm is: a run of ``afa sft``, tested on the eight commonsense tasks, one of ``afa grpo``, or one of ``afa
    eagle train``, tested by ``afa eagle eval``."""
    columns: list[str] = Field(default_factory=list)
    """What the paper's numbers are of: the tasks and ``average``; for each size of model ``SIZE train`` and
    ``SIZE validation``; or for each set of questions ``SET SHAPE``."""
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
            if arm.method not in METHODS.get(self.workflow, get_args(Method)):
                raise ValueError(f"arms.{name}.method={arm.method} is no method of afa {self.workflow}")
            if is_baseline(arm.method) and (other := baselines.setdefault(arm.method, name)) != name:
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


def read_suite(path: Path, scale: str, overrides: Sequence[str] = ()) -> tuple[Suite, Scale | VerlScale]:
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
    kinds = [(name, scale_kind(settings.get("workflow"), there)) for name, there in _items(settings.get("scales"))]
    suite: type[Suite] = create_model(
        "Suite",
        __base__=Suite,
        arms=(section_of((name, Arm) for name, _ in _items(settings.get("arms"))), ...),
        scales=(section_of(kinds), ...),
    )
    read = validate(suite, settings, str(path), lines)
    return read, dict(read.scales)[scale]


def _items(settings: Any) -> list[tuple[str, Any]]:
    """The keys and values; nothing where the file has something else, which is told by the validation."""
    return [(str(name), value) for name, value in settings.items()] if isinstance(settings, dict) else []


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
