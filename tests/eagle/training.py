"""A small training: a tiny chat target, conversations of many lengths, their features, and a recipe for them."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from afa_lora.eagle.features import write_features
from afa_lora.eagle.recipe import parse_recipe
from afa_lora.eagle.run import EagleResult, run_eagle
from tests.tiny_chat import save_tiny_chat_model

METHODS = ("eagle", "eagle+lora", "eagle+dora", "eagle+afa-lora", "eagle+afa-dora")
QUIET = Console(quiet=True)


def make_settings(folder: Path) -> dict[str, Any]:
    """A recipe without its ``output``: 12 conversations to train on, 3 held out, 4 epochs of 3 steps."""
    save_tiny_chat_model(folder / "target")
    conversations = folder / "conversations.jsonl"
    conversations.write_text("\n".join(json.dumps({"messages": _messages(number)}) for number in range(15)))
    settings = {
        "model": str(folder / "target"),
        "method": "eagle+afa-lora",
        "output": "unused",
        "data": {"conversations": [str(conversations)], "test_items": 3, "max_length": 150},
        "features": {"folder": str(folder / "features"), "dtype": "float32"},
        "adapter": {"r": 4, "lora_alpha": 8},
        "anneal": {"anneal_end": 0.5},
        "train": {
            "num_train_epochs": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.003,
            "logging_steps": 1,
            "save_strategy": "no",
            "seed": 0,
        },
    }
    write_features(parse_recipe(settings), QUIET)
    return settings


def train(settings: dict[str, Any], output: Path, **changes: Any) -> EagleResult:
    """Run the recipe with some sections merged with others, the rest replaced."""
    merged = {
        key: {**settings[key], **value} if isinstance(value, dict) and key in settings else value
        for key, value in changes.items()
    }
    return run_eagle(parse_recipe({**settings, "output": str(output), **merged}), QUIET)


def _messages(number: int) -> list[dict[str, str]]:
    """One or two turns; the lengths of the answers differ by a factor of 10."""
    answer = " ".join(["yes"] * (1 + 3 * (number % 4)))
    turns = [("user", f"Say yes to {number}."), ("assistant", answer)]
    if number % 3 == 0:
        turns += [("user", "And again?"), ("assistant", f"{number}: {answer}")]
    return [{"role": role, "content": content} for role, content in turns]
