"""The model card of a run, beside the adapter and beside the model: what it is, how it was made, how to load it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined
from peft import LoraConfig, PeftConfig

from afa_lora import AfaLoraConfig, Schedule
from afa_lora.data import CommonsenseData, FileData, HubData, Items
from afa_lora.data.commonsense import TASKS
from afa_lora.evaluation import Accuracy
from afa_lora.files import write_atomic
from afa_lora.models import EMBEDDED
from afa_lora.running.provenance import environment
from afa_lora.sft.recipe import Recipe, dump_recipe

if TYPE_CHECKING:
    from afa_lora.sft.run import SftResult

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


def write_cards(recipe: Recipe, items: Items, result: SftResult) -> None:
    """Write README.md into the run's adapter and model folders, those of them that there are."""
    shared = _facts(recipe, items, result)
    for folder, facts in (
        (result.folder.adapter, _adapter_facts(recipe, result)),
        (result.folder.model, {"what": _what(recipe, "model"), "library": "transformers", "code": LOAD_MODEL}),
    ):
        if folder.is_dir():
            write_atomic(folder / "README.md", render_card({**shared, **facts}))


def render_card(facts: dict[str, Any]) -> str:
    """Fill the template; a fact that is missing is an error."""
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    text = (files("afa_lora.report") / "templates" / "model_card.md.jinja").read_text(encoding="utf-8")
    return environment.from_string(text).render(facts)


def _facts(recipe: Recipe, items: Items, result: SftResult) -> dict[str, Any]:
    config = PeftConfig.from_pretrained(str(result.folder.adapter)) if result.folder.adapter.is_dir() else None
    return {
        "title": recipe.output.name,
        "base_model": EMBEDDED[recipe.model].hub if recipe.model in EMBEDDED else recipe.model,
        "tags": list(dict.fromkeys(["sft", "trl", recipe.method, *(["afa-lora"] if recipe.anneals else [])])),
        "datasets": [recipe.data.name] if isinstance(recipe.data, HubData) else [],
        "method": METHODS[recipe.method],
        "adapter": config if isinstance(config, LoraConfig) else None,
        "targets": recipe.adapter.get("target_modules", "all-linear"),
        "anneal": _anneal(recipe, config, result.steps),
        "data": f"{_source(recipe)}: {len(items.train):,} items to train on, {len(items.test):,} to test on",
        "steps": result.steps,
        "learning_rate": recipe.train.get("learning_rate", "TRL's default"),
        "seed": recipe.train.get("seed", 42),
        "rows": _rows(result),
        "merge": result.merge,
        "versions": environment(),
        "recipe": dump_recipe(recipe).rstrip(),
    }


def _adapter_facts(recipe: Recipe, result: SftResult) -> dict[str, Any]:
    config = PeftConfig.from_pretrained(str(result.folder.adapter)) if result.folder.adapter.is_dir() else None
    if isinstance(config, AfaLoraConfig):
        what = _what(recipe, "adapter that is still annealing: with β > 0 it is no plain LoRA, and afa_lora loads it")
        load = {"library": "afa_lora", "loader": "load_adapter", "call": "load_adapter"}
    else:
        what = _what(recipe, "plain adapter, which stock PEFT loads")
        load = {"library": "peft", "loader": "PeftModel", "call": "PeftModel.from_pretrained"}
    load_base = (LOAD_EMBEDDED if recipe.model in EMBEDDED else LOAD_BASE).format(base=recipe.model)
    return {"what": what, "library": "peft", "code": LOAD_ADAPTER.format(load_base=load_base, **load)}


def _what(recipe: Recipe, kind: str) -> str:
    return f"`{recipe.model}`, fine-tuned by {METHODS[recipe.method]}. This folder holds the {kind}."


def _anneal(recipe: Recipe, config: PeftConfig | None, steps: int) -> dict[str, Any] | None:
    if not recipe.anneals:
        return None
    settings = recipe.anneal
    start, end = Schedule(settings.schedule, settings.anneal_start, settings.anneal_end).window(steps)
    beta = f"{config.beta:.4g}" if isinstance(config, AfaLoraConfig) else "0: the adapter is linear"
    return {**settings.model_dump(), "window": f"{start:g} to {end:g} of {steps}", "beta": beta}


def _source(recipe: Recipe) -> str:
    if isinstance(recipe.data, HubData):
        return recipe.data.name
    if isinstance(recipe.data, CommonsenseData):
        return f"commonsense: {recipe.data.file.name if recipe.data.file else ', '.join(recipe.data.tasks or TASKS)}"
    return Path(recipe.data.train).name if isinstance(recipe.data, FileData) else f"reasoning-gym {recipe.data.task}"


def _rows(result: SftResult) -> list[list[str]]:
    rows = []
    if result.after is not None:
        rows.append(["accuracy of generated answers", _accuracy(result.before), _accuracy(result.after)])
    if result.test_loss is not None:
        rows.append(["loss on the right answers (nats per token)", "–", f"{result.test_loss:.4f}"])
    return rows


def _accuracy(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return "–"
    low, high = accuracy.interval
    return f"{accuracy.share:.1%} of {accuracy.items} (95 %: {low:.1%} to {high:.1%})"
