"""The folder of a run: what lies where, whose it is, and the results file."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import afa_lora
from afa_lora.data import Items, fingerprint
from afa_lora.evaluation import Accuracy
from afa_lora.files import write_atomic
from afa_lora.sft.recipe import Recipe, RecipeError, dump_recipe, parse_yaml

if TYPE_CHECKING:
    from afa_lora.sft.run import SftResult

PACKAGES = ("torch", "transformers", "peft", "trl")


@dataclass(frozen=True)
class RunFolder:
    """Where the parts of a run lie below ``path``."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The recipe, overrides and defaults included."""
        return self.path / "recipe.yaml"

    @property
    def checkpoints(self) -> Path:
        """The Trainer's checkpoints."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The trained adapter."""
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """The merged (or fully trained) model with its tokenizer."""
        return self.path / "model"

    @property
    def curves(self) -> Path:
        """Loss and β over training."""
        return self.path / "curves.png"

    @property
    def results(self) -> Path:
        """The numbers, and what they were made with."""
        return self.path / "results.json"

    @property
    def answers(self) -> Path:
        """Every generated answer to the test items, one JSON object a line."""
        return self.path / "answers.jsonl"

    def claim(self, recipe: Recipe) -> None:
        """Take the folder for this recipe.

        Raises:
            RecipeError: it holds a finished run, or an interrupted run of another recipe.
        """
        if self.results.is_file():
            raise RecipeError(
                f"output={str(self.path)!r} holds a finished run. Choose another output, or remove that folder."
            )
        dumped = dump_recipe(recipe)
        if self.checkpoints.is_dir() and any(self.checkpoints.iterdir()) and self.recipe.is_file():
            started = parse_yaml(self.recipe.read_text(encoding="utf-8"), str(self.recipe))
            changed = _differences(started, parse_yaml(dumped, "recipe"))
            if changed:
                raise RecipeError(
                    f"output={str(self.path)!r} holds an interrupted run of another recipe"
                    f" (other {', '.join(changed)})."
                    " Choose another output, remove that folder, or give the same settings again to go on."
                )
        write_atomic(self.recipe, dumped)

    def write_results(self, recipe: Recipe, items: Items, result: SftResult) -> None:
        """Write the numbers and the answers; a run counts as finished from here on."""
        if result.after is not None:
            lines = [json.dumps(asdict(answer), ensure_ascii=False) for answer in result.after.answers]
            write_atomic(self.answers, "\n".join(lines) + "\n")
        numbers = {
            "method": recipe.method,
            "accuracy_before": _numbers(result.before),
            "accuracy_after": _numbers(result.after),
            "test_loss": result.test_loss,
            "training_seconds": result.seconds,
            "peak_memory_bytes": result.peak_memory,
            "merge": asdict(result.merge) if result.merge else None,
            "loss": result.curve.loss,
            "beta": result.curve.beta,
            "data": {
                "train_items": len(items.train),
                "train_fingerprint": fingerprint(items.train),
                "test_items": len(items.test),
                "test_fingerprint": fingerprint(items.test),
            },
            "environment": {
                "python": platform.python_version(),
                "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
                "threads": torch.get_num_threads(),
                "afa-lora": afa_lora.__version__,
                **{package: version(package) for package in PACKAGES},
            },
        }
        write_atomic(self.results, json.dumps(numbers, indent=2) + "\n")


def _numbers(accuracy: Accuracy | None) -> dict[str, Any] | None:
    if accuracy is None:
        return None
    return {"correct": accuracy.correct, "items": accuracy.items, "interval_95": accuracy.interval}


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """The dotted keys at which two nested settings differ."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [prefix] if old != new else []
    keys = sorted(old.keys() | new.keys())
    return [key for k in keys for key in _differences(old.get(k), new.get(k), f"{prefix}.{k}" if prefix else k)]
