"""The recipe of a supervised fine-tuning: a YAML file, overrides from the command line, and what may be in it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, PositiveInt, ValidationError, field_validator

from afa_lora.core.errors import AfaLoraError, closest
from afa_lora.data import DataSource
from afa_lora.data.settings import Section

Method = Literal["full", "lora", "dora", "afa-lora", "afa-dora"]


class RecipeError(AfaLoraError, ValueError):
    """A recipe cannot be read, or asks for something that cannot be done."""


class AnnealSettings(Section):
    """The annealed activation; read by the methods ``afa-lora`` and ``afa-dora`` alone.

    The keys are those of `afa_lora.AfaLoraConfig`, which checks the values.
    """

    activation: str = "silu"
    """σ: relu, silu, gelu, tanh or leaky_relu."""
    placement: str = "A-σ-B"
    """Where σ stands, as A-σ-B or A-s-B."""
    schedule: str = "linear"
    """How β falls from 1 to 0: linear, cosine, exponential, step or constant."""
    anneal_start: int | float = 0.0
    """Until when β is 1: a float is a share of training, an integer a number of optimizer steps."""
    anneal_end: int | float = 0.3
    """From when β is 0: a float is a share of training, an integer a number of optimizer steps."""


class EvaluateSettings(Section):
    """The check of generated answers on the test items, with greedy decoding."""

    before: bool = True
    """Whether to test the untrained model too."""
    max_new_tokens: PositiveInt = 32
    """The longest answer, in tokens."""
    batch_size: PositiveInt = 32
    """How many answers are generated at a time."""


class Recipe(Section):
    """A supervised fine-tuning, whole."""

    model: str
    """A hub id, a local folder, or smollm2-135m."""
    method: Method = "afa-lora"
    """full, lora, dora, afa-lora or afa-dora."""
    output: Path
    """The folder for checkpoints, adapter, merged model, curves and results."""
    data: DataSource
    """What to train and to test on; ``source`` is reasoning-gym, file or hub."""
    adapter: dict[str, Any] = Field(default_factory=dict)
    """Arguments of `peft.LoraConfig`, such as ``r`` and ``lora_alpha``; ``target_modules`` is all-linear by default."""
    anneal: AnnealSettings = AnnealSettings()
    """The annealed activation."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Arguments of TRL's `SFTConfig`, passed on as they are."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """The check of generated answers."""

    @property
    def anneals(self) -> bool:
        """Whether the method has an annealed activation."""
        return self.method.startswith("afa-")

    @field_validator("adapter")
    @classmethod
    def _check_adapter(cls, values: dict[str, Any]) -> dict[str, Any]:
        from peft import LoraConfig

        set_elsewhere = {"use_dora": "method", "peft_type": "method", "task_type": "method"}
        set_elsewhere |= {key: f"anneal.{key}" for key in AnnealSettings.model_fields}
        _check_keys(values, LoraConfig, set_elsewhere, "peft.LoraConfig")
        return values

    @field_validator("train")
    @classmethod
    def _check_train(cls, values: dict[str, Any]) -> dict[str, Any]:
        from trl import SFTConfig

        _check_keys(values, SFTConfig, {"output_dir": "output"}, "trl.SFTConfig")
        return values


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides such as ``train.learning_rate=1e-4``.

    Raises:
        RecipeError: no such file, no YAML, an override without a value, or settings that `Recipe` refuses.
    """
    if not path.is_file():
        raise RecipeError(f"There is no recipe {path} (looked for it in {Path.cwd()}).")
    settings = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(settings, dict):
        raise RecipeError(f"{path} must hold keys and values, such as 'model: smollm2-135m'.")
    for override in overrides:
        _apply(override, settings)
    return parse_recipe(settings, str(path))


def parse_recipe(settings: Mapping[str, Any], origin: str = "recipe") -> Recipe:
    """Check settings; ``origin`` says in messages where they come from.

    Raises:
        RecipeError: one line for each setting that is wrong.
    """
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        faults = {_place(fault): fault for fault in reversed(error.errors())}  # the first one at each place
        lines = [f"  {place}: {_explain(fault)}" for place, fault in reversed(faults.items())]
        raise RecipeError("\n".join([f"{origin}:", *lines])) from error


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, defaults included; `load_recipe` reads it back."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _check_keys(values: Mapping[str, Any], accepted: type, set_elsewhere: Mapping[str, str], name: str) -> None:
    known = {field.name for field in dataclasses.fields(accepted) if field.init}
    for key in values:
        if key in set_elsewhere:
            raise ValueError(f"{key!r} is not set here but by {set_elsewhere[key]!r}.")
        if key not in known:
            raise ValueError(f"{key!r} is no argument of {name}.{closest(key, known)}")


def _place(fault: Mapping[str, Any]) -> str:
    """The dotted key of a fault, without the parts by which pydantic tells the members of a union apart."""
    tags = ("reasoning-gym", "file", "hub", "int", "float")
    return ".".join(str(part) for part in fault["loc"] if part not in tags) or "top level"


def _explain(fault: Mapping[str, Any]) -> str:
    if fault["type"] == "missing":
        return "this key is needed."
    message = str(fault["msg"]).removeprefix("Value error, ")
    if isinstance(fault["input"], str | int | float):
        message += f" (it is {fault['input']!r})"
    if fault["type"] == "literal_error":
        message += closest(str(fault["input"]), re.findall(r"'([^']+)'", fault["ctx"]["expected"]))
    return message


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of version 1.2 (1e-4 is a number, ``no`` is a word); a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", node.start_mark)
        return dict(super().construct_mapping(node, deep=deep))


_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_FLOAT = re.compile(
    r"^[-+]?(?:(?:\.\d+|\d+\.\d*)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


class _Dumper(yaml.SafeDumper):
    """Quotes the words that `_Loader` would take for something else."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def parse_yaml(text: str, origin: str) -> Any:
    """Parse YAML; ``origin`` says in messages where it comes from.

    Raises:
        RecipeError: it is none.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{origin} is no valid YAML: {error}") from error


def _apply(override: str, settings: dict[str, Any]) -> None:
    """Set one ``a.b.c=value`` in nested settings, in place."""
    path, separator, value = override.partition("=")
    if not separator or not path:
        raise RecipeError(f"The override {override!r} must look like train.learning_rate=1e-4.")
    *parents, last = path.split(".")
    section = settings
    for parent in parents:
        inner = section.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"The override {override!r}: {parent!r} is a value, not a section.")
        section = inner
    section[last] = parse_yaml(value, f"The override {override!r}")
