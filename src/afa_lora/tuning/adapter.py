"""The recipe's adapter: its configuration, and how it gets into a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from afa_lora import AfaLoraConfig
from afa_lora.core.errors import closest
from afa_lora.settings import RecipeError
from afa_lora.tuning.recipe import TuningRecipe


def adapter_config(recipe: TuningRecipe) -> LoraConfig:
    """The configuration that the recipe's ``adapter`` and ``anneal`` sections describe.

    Raises:
        RecipeError: PEFT or this library refuses a setting.
    """
    settings = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", **recipe.adapter}
    settings["use_dora"] = recipe.method.endswith("dora")
    try:
        if recipe.anneals:
            return AfaLoraConfig(**settings, **recipe.anneal.model_dump())
        return LoraConfig(**settings)
    except (TypeError, ValueError) as error:  # PEFT's and our own ways to refuse a setting
        raise RecipeError(f"adapter: {error}") from error


def add_adapter(model: PreTrainedModel, recipe: TuningRecipe, config: LoraConfig | None = None) -> PeftModel:
    """Put the recipe's adapter into ``model``.

    Args:
        model: the base model; it is changed.
        recipe: names the method and its settings.
        config: what `adapter_config` gives, if the caller has it already.

    Raises:
        RecipeError: a setting is refused, or a target module is not in the model; the message lists those that are.
    """
    config = config or adapter_config(recipe)
    check_targets(model, config.target_modules)
    try:
        adapted = get_peft_model(model, config)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"adapter: {error}") from error
    if isinstance(adapted.get_output_embeddings(), BaseTunerLayer):
        raise RecipeError(
            f"adapter.target_modules={_shown(config.target_modules)} holds the model's output layer, whose adapter TRL "
            "would not train: it computes the loss from the layer's weight. Take it out, or name it in "
            "adapter.exclude_modules."
        )
    return adapted


def adapted_layers(model: nn.Module) -> Counter[str]:
    """How many layers of each name have an adapter, by the last part of their names."""
    return Counter(
        name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)
    )


def check_targets(model: nn.Module, targets: str | Iterable[str] | None) -> None:
    """Refuse names that match nothing: PEFT leaves them out in silence where another name matches.

    Raises:
        RecipeError: such a name; the message lists the layers that there are.
    """
    if targets is None or targets == "all-linear":
        return
    paths = [path for path, _ in model.named_modules()]
    if isinstance(targets, str):
        missing = [] if _matches(targets, paths) else [targets]
    else:
        missing = [name for name in sorted(targets) if not any(f".{path}".endswith(f".{name}") for path in paths)]
    if missing:
        near = closest(missing[0], _linear_layers(model))
        raise RecipeError(f"adapter.target_modules: the model has no layer {missing[0]!r}.{near} {_available(model)}")


def _matches(pattern: str, paths: Iterable[str]) -> bool:
    try:
        return any(re.fullmatch(pattern, path) for path in paths)
    except re.error as error:
        raise RecipeError(f"adapter.target_modules={pattern!r} is no regular expression: {error}.") from error


def _linear_layers(model: nn.Module) -> Counter[str]:
    linear = (nn.Linear, Conv1D)
    return Counter(path.rpartition(".")[2] for path, module in model.named_modules() if isinstance(module, linear))


def _available(model: nn.Module) -> str:
    listed = ", ".join(f"{name} ×{count}" for name, count in _linear_layers(model).items())
    return f"Its linear layers are {listed}."


def _shown(targets: str | Iterable[str] | None) -> str:
    return repr(targets) if targets is None or isinstance(targets, str) else repr(sorted(targets))
