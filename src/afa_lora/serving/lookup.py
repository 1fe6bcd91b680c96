"""Where an adapter lies, which base model it is for, and how that is loaded: from a run's folder or an adapter's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from afa_lora.core.errors import AfaLoraError, CorruptedAdapterError
from afa_lora.models import EMBEDDED, ModelError, load_model
from afa_lora.running.checkpoints import checkpoints_of, newest
from afa_lora.settings import parse_yaml

VERSION_OPTIONS = ("revision", "code_revision", "trust_remote_code")
"""Those among the options of a base model that say which one it is, and whose code may run."""


class NoAdapterError(AfaLoraError):
    """There is no adapter at a path, or nothing that names its base model."""


@dataclass(frozen=True)
class Located:
    """An adapter on disk and its base model.

    Attributes:
        adapter: the adapter's folder.
        base: hub id, local folder or embedded model.
        options: what the run or the adapter passes to ``from_pretrained`` for the base model.
        recipe: the recipe of the run that the adapter is of, if it is there.
        named_by: the file that names ``base``; ``None`` if the caller did.
    """

    adapter: Path
    base: str
    options: dict[str, Any]
    recipe: Path | None
    named_by: Path | None

    def load_base(
        self, *, report: Callable[[str], None] = print, **options: Any
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the base model with ``options``.

        Raises:
            ModelError: it cannot be loaded; of a relative path the message says where it was looked for.
        """
        try:
            return load_model(self.base, report=report, **options)
        except ModelError as error:
            folder = Path(self.base).expanduser()
            if self.named_by is None or self.base in EMBEDDED or folder.is_absolute() or folder.is_dir():
                raise
            raise ModelError(
                f"{error}\n{self.named_by} names {self.base!r}. If that is a relative path: it was looked for in "
                f"{Path.cwd()}. Give the model's folder (--base)."
            ) from error


def locate(path: Path, base: str | None = None) -> Located:
    """Find the adapter in ``path``: an adapter's folder, a checkpoint, or the folder of a run of ``afa sft``.

    Args:
        path: the folder.
        base: the base model; unless given, the run's recipe names it, or else the adapter's configuration.

    Raises:
        NoAdapterError: no adapter there (the message says what there is instead), or no word of its base model.
        CorruptedAdapterError: the adapter's configuration cannot be read.
        RecipeError: the run's recipe cannot be read.
    """
    adapter = path if (path / CONFIG_NAME).is_file() else path / "adapter"
    if not (adapter / CONFIG_NAME).is_file():
        raise NoAdapterError(_nothing_in(path))
    recipe = _recipe_of(adapter.absolute())
    if recipe is None:
        named_by = adapter / CONFIG_NAME
        named, options = _from_config(named_by)
    else:
        named_by = recipe
        named, options = _from_recipe(recipe)
    if base is not None and base != named:
        return Located(adapter, base, {}, recipe, None)
    if not named:
        raise NoAdapterError(f"{named_by} does not say which base model the adapter is for. Name it (--base).")
    return Located(adapter, named, options, recipe, None if base else named_by)


def _recipe_of(adapter: Path) -> Path | None:
    """The recipe of the run that ``adapter`` (RUN/adapter or RUN/checkpoints/checkpoint-N) is of."""
    run = adapter.parent.parent if adapter.parent.name == "checkpoints" else adapter.parent
    is_part = adapter.name == "adapter" or adapter.parent.name == "checkpoints"
    return run / "recipe.yaml" if is_part and (run / "recipe.yaml").is_file() else None


def _from_recipe(path: Path) -> tuple[str | None, dict[str, Any]]:
    """Model and load options of a recipe; it was checked when the run started."""
    recipe = _read_recipe(path)
    train = recipe.get("train") or {}
    options = {
        "trust_remote_code": bool(train.get("trust_remote_code", False)),
        **(train.get("model_init_kwargs") or {}),
    }
    return recipe.get("model"), options


def _read_recipe(path: Path) -> dict[str, Any]:
    recipe = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(recipe, dict):
        raise NoAdapterError(f"{path} is damaged: it does not name a model.")
    return recipe


def _from_config(path: Path) -> tuple[str | None, dict[str, Any]]:
    """Model and revision of an adapter's configuration."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptedAdapterError(f"{path} cannot be read: {error}.") from error
    if not isinstance(config, dict):
        raise CorruptedAdapterError(f"{path} cannot be read: it holds no JSON object.")
    revision = config.get("revision")
    return config.get("base_model_name_or_path"), {"revision": revision} if revision else {}


def _nothing_in(path: Path) -> str:
    """What ``path`` is, as it holds no adapter, and what to give instead."""
    if not path.exists():
        return f"There is no folder {path} (looked for it in {Path.cwd()})."
    if not path.is_dir():
        return f"{path} is a file. Give an adapter's folder, or that of a run of afa sft."
    if (path / "config.json").is_file():
        return (
            f"{path} is a model's folder and holds no adapter ({CONFIG_NAME}). Give that of the adapter, or of its run."
        )
    recipe = path / "recipe.yaml"
    if not recipe.is_file():
        return (
            f"{path} holds no {CONFIG_NAME}, nor a folder adapter/ with one: neither an adapter nor a run of afa sft."
        )
    method = str(_read_recipe(recipe).get("method"))
    if method.startswith("eagle"):
        return (
            f"{path} is the run of an EAGLE draft. afa eagle export writes it for others, afa eagle eval measures it."
        )
    if method == "full":
        if (path / "model" / "config.json").is_file():
            model = path / "model"
            return f"{path} is a run with method=full, which has no adapter: the trained model is already in {model}."
        return f"{path} is an unfinished run with method=full, which has no adapter. Finish it: afa sft {recipe}"
    checkpoint = newest(path / "checkpoints")
    finish = f"{path} is an unfinished run without an adapter. Finish it (afa sft {recipe})"
    if checkpoint is not None:
        return f"{finish}, or give its newest sealed checkpoint, {checkpoint}."
    sealed = (
        "its checkpoint was not written to its end" if checkpoints_of(path / "checkpoints") else "it has no checkpoint"
    )
    return f"{finish}; {sealed}."
