"""The model card of a run, beside the adapter and beside the model: what it is, how it was made, how to load it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from peft import LoraConfig, PeftConfig

from afa_lora import AfaLoraConfig, MergeReport, Schedule
from afa_lora.data import CommonsenseData, FileData, HubData, Items, TaskData
from afa_lora.data.commonsense import TASKS
from afa_lora.evaluation import Accuracy
from afa_lora.files import write_atomic
from afa_lora.models import EMBEDDED
from afa_lora.running.provenance import environment
from afa_lora.tuning.folder import RunFolder
from afa_lora.tuning.recipe import TuningRecipe, dump_recipe

METHODS = {
    "full": "full fine-tuning",
    "lora": "LoRA",
    "dora": "DoRA",
    "afa-lora": "AFA-LoRA (LoRA with an activation that is annealed away during training)",
    "afa-dora": "AFA-DoRA (DoRA with an activation that is annealed away during training)",
}
LOAD_BASE = """\
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({base!r})"""
LOAD_EMBEDDED = """\
from afa_lora.models import load_model

model, tokenizer = load_model({base!r})"""
LOAD_ADAPTER = """\
from {library} import {loader}
{load_base}
model = {call}(model, "path/to/this/folder")"""
LOAD_MODEL = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")"""


def write_cards(
    recipe: TuningRecipe,
    items: Items,
    folder: RunFolder,
    steps: int,
    rows: list[list[str]],
    merge: MergeReport | None,
    workflow: str = "sft",
) -> None:
    """Write README.md into the run's adapter and model folders, those of them that there are.

    Args:
        recipe: what was done.
        items: what was trained and tested on.
        folder: the run's.
        steps: optimizer steps of the training.
        rows: what was measured: its name, before, after.
        merge: how far merging has changed the logits, if it was merged.
        workflow: a tag for the hub.
    """
    shared = {**_facts(recipe, items, folder, steps, workflow), "merge": merge}
    shared |= {"columns": ["before", "after"], "rows": rows}
    for place, facts in (
        (folder.adapter, _adapter_facts(recipe, folder)),
        (folder.model, {"what": _what(recipe, "model"), "library": "transformers", "code": LOAD_MODEL}),
    ):
        if place.is_dir():
            write_atomic(place / "README.md", render_card({**shared, **facts}))


def render_card(facts: dict[str, Any]) -> str:
    """Fill the template; a fact that is missing is an error."""
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    text = (files("afa_lora.report") / "templates" / "model_card.md.jinja").read_text(encoding="utf-8")
    return environment.from_string(text).render(facts)


def _facts(recipe: TuningRecipe, items: Items, folder: RunFolder, steps: int, workflow: str) -> dict[str, Any]:
    config = PeftConfig.from_pretrained(str(folder.adapter)) if folder.adapter.is_dir() else None
    return {
        **facts_of_any(recipe, config, steps),
        "tags": list(dict.fromkeys([workflow, "trl", recipe.method, *(["afa-lora"] if recipe.anneals else [])])),
        "datasets": [recipe.data.name] if isinstance(recipe.data, HubData) else [],
        "method": METHODS[recipe.method],
        "data": f"{_source(recipe)}: {len(items.train):,} items to train on, {len(items.test):,} to test on",
        "learning_rate": recipe.train.get("learning_rate", "TRL's default"),
    }


def facts_of_any(recipe: TuningRecipe, config: PeftConfig | None, steps: int) -> dict[str, Any]:
    """What a card of any workflow says.

    Args:
        recipe: what was done.
        config: of the adapter that was trained, if there was one.
        steps: optimizer steps of the training.
    """
    return {
        "title": recipe.output.name,
        "base_model": EMBEDDED[recipe.model].hub if recipe.model in EMBEDDED else recipe.model,
        "adapter": config if isinstance(config, LoraConfig) else None,
        "targets": recipe.adapter.get("target_modules", "all-linear"),
        "anneal": _anneal(recipe, config, steps),
        "steps": steps,
        "seed": recipe.train.get("seed", 42),
        "versions": environment(),
        "recipe": dump_recipe(recipe).rstrip(),
    }


def load_code(model: str) -> str:
    """The lines of Python that load a recipe's model as ``model``."""
    return (LOAD_EMBEDDED if model in EMBEDDED else LOAD_BASE).format(base=model)


def _adapter_facts(recipe: TuningRecipe, folder: RunFolder) -> dict[str, Any]:
    config = PeftConfig.from_pretrained(str(folder.adapter)) if folder.adapter.is_dir() else None
    if isinstance(config, AfaLoraConfig):
        what = _what(recipe, "adapter that is still annealing: with β > 0 it is no plain LoRA, and afa_lora loads it")
        load = {"library": "afa_lora", "loader": "load_adapter", "call": "load_adapter"}
    else:
        what = _what(recipe, "plain adapter, which stock PEFT loads")
        load = {"library": "peft", "loader": "PeftModel", "call": "PeftModel.from_pretrained"}
    return {"what": what, "library": "peft", "code": LOAD_ADAPTER.format(load_base=load_code(recipe.model), **load)}


def _what(recipe: TuningRecipe, kind: str) -> str:
    return f"`{recipe.model}`, fine-tuned by {METHODS[recipe.method]}. This folder holds the {kind}."


def _anneal(recipe: TuningRecipe, config: PeftConfig | None, steps: int) -> dict[str, Any] | None:
    if not recipe.anneals:
        return None
    settings = recipe.anneal
    start, end = Schedule(settings.schedule, settings.anneal_start, settings.anneal_end).window(steps)
    beta = f"{config.beta:.4g}" if isinstance(config, AfaLoraConfig) else "0: the adapter is linear"
    return {**settings.model_dump(), "window": f"{start:g} to {end:g} of {steps}", "beta": beta}


def _source(recipe: TuningRecipe) -> str:
    data = recipe.data
    if isinstance(data, HubData):
        return data.name
    if isinstance(data, CommonsenseData):
        return f"commonsense: {data.file.name if data.file else ', '.join(data.tasks or TASKS)}"
    if isinstance(data, FileData):
        return Path(data.train).name
    return f"reasoning-gym {data.task}" if isinstance(data, TaskData) else str(getattr(data, "source", ""))


def accuracy_text(accuracy: Accuracy | None) -> str:
    """A share with its interval."""
    if accuracy is None:
        return "–"
    low, high = accuracy.interval
    return f"{accuracy.share:.1%} of {accuracy.items} (95 %: {low:.1%} to {high:.1%})"
