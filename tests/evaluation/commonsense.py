"""Items of two of the eight tasks, made up; started as a program it evaluates a model on them until it is killed."""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from afa_lora.data.commonsense import CommonsenseItem
from afa_lora.evaluation.commonsense import Evaluation, EvaluationSettings, evaluate_commonsense
from afa_lora.models import load_model

CHOICES = {"boolq": ("true", "false"), "ARC-Easy": ("answer1", "answer2", "answer3")}
MANY = 60


def make_items(count: int) -> list[CommonsenseItem]:
    """So many of each task, of different lengths."""
    return [
        CommonsenseItem(task, i, f"Is {task} number {i} {'very ' * (i % 4)}hard?", choices, choices[i % len(choices)])
        for task, choices in CHOICES.items()
        for i in range(count)
    ]


def run(path: Path, folder: Path, count: int = 5, **settings: Any) -> Evaluation:
    """Evaluate the model in a folder on ``count`` items of each task, quickly."""
    quick = {"max_new_tokens": 6, "batch_size": 2, **settings}
    loaded, tokenizer = load_model(str(path))
    asked = EvaluationSettings.model_validate(quick)
    return evaluate_commonsense(loaded, tokenizer, make_items(count), asked, folder, Console(quiet=True))


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), MANY, protocol=sys.argv[3])
