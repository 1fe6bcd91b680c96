"""A few minutes that show the whole way: the same training as LoRA and as AFA-LoRA, merged and compared."""

from __future__ import annotations

import gc
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from afa_lora.report.curves import plot_curves
from afa_lora.sft.recipe import Recipe, parse_recipe
from afa_lora.sft.run import SftResult, run_sft
from afa_lora.sft.summary import comparison

METHODS = {"lora": "LoRA", "afa-lora": "AFA-LoRA"}

# Sums and differences of two two-digit numbers: 16,200 different items, none of the tested ones is trained on.
SETTINGS: dict[str, Any] = {
    "model": "smollm2-135m",
    "data": {
        "source": "reasoning-gym",
        "task": "chain_sum",
        "options": {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2},
        "system": "",  # the chat template's own system message would double the tokens of an item
        "train_items": 320,
        "test_items": 150,
    },
    "adapter": {"r": 16, "lora_alpha": 32},
    "train": {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "linear",
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 0,
    },
    "evaluate": {"max_new_tokens": 8, "batch_size": 50},
}


def run_demo(out: Path, console: Console) -> dict[str, SftResult]:
    """Train, merge and test both methods with the same data, order, seed and initial A, and print the comparison.

    Args:
        out: a folder of its own; an earlier demonstration in it is replaced.
        console: where everything is printed.

    Returns:
        the results by method.
    """
    console.print(
        "SmolLM2-135M-Instruct learns to add and subtract two-digit numbers, as LoRA and as AFA-LoRA.\n", soft_wrap=True
    )
    results: dict[str, SftResult] = {}
    for method in METHODS:
        recipe = _recipe(method, out / method, test_before=not results)
        if (recipe.output / "recipe.yaml").is_file():  # of an earlier demonstration
            shutil.rmtree(recipe.output)
        results[method] = run_sft(recipe, console)
        gc.collect()
    curves = out / "curves.png"
    plot_curves([replace(result.curve, name=METHODS[method]) for method, result in results.items()], curves)

    before = results["lora"].before
    console.print()
    console.print(comparison({METHODS[method]: result for method, result in results.items()}, before))
    _say_where(results["afa-lora"], curves, console)
    return results


def _recipe(method: str, output: Path, test_before: bool) -> Recipe:
    evaluate = {**SETTINGS["evaluate"], "before": test_before}
    return parse_recipe({**SETTINGS, "method": method, "output": str(output), "evaluate": evaluate})


def _say_where(result: SftResult, curves: Path, console: Console) -> None:
    lines = (
        "The test items were not trained on. One run each: a difference inside the intervals says nothing.",
        "",
        f"curves          {curves}",
        f"adapter         {result.folder.adapter}  (plain LoRA: stock PEFT, vLLM, SGLang load it)",
        f"merged model    {result.folder.model}  (plain Llama: anything loads it)",
        f"answers         {result.folder.answers}",
        "",
        "What to type next:",
        f"  afa inspect {result.folder.adapter}",
        "  afa schedule",
        "  afa sft recipes/sft/quickstart.yaml anneal.activation=gelu output=runs/gelu",
    )
    console.print("\n".join(lines), soft_wrap=True, markup=False, highlight=False)
