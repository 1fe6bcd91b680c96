"""A tiny study: a suite of five arms, four optimizer steps each, and items of the eight tasks made up for it."""

import json
from pathlib import Path
from typing import Any

import pytest

from afa_lora.data.commonsense import TASKS
from afa_lora.settings import dump_yaml

TRAINED_ON = ("ARC-Easy", "boolq")


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the eight tasks."""
    return save_tiny_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def suite(chat_model: Path, tmp_path: Path) -> Path:
    """The file of the suite."""
    path = tmp_path / "table0.yaml"
    path.write_text(dump_yaml(tiny_suite(chat_model)))
    return path


def save_tiny_tasks(folder: Path) -> Path:
    """Two test items of each task, and 16 train items of two of them, in the form of LLM-Adapters."""
    for name, task in TASKS.items():
        for part, count in (("test", 2), ("train", 16 if name in TRAINED_ON else 0)):
            if count:
                (folder / name).mkdir(exist_ok=True)
                items = [_item(task.form, f"{part} {i}: sky?") for i in range(count)]
                (folder / name / f"{part}.json").write_text(json.dumps(items))
    return folder


def _item(form: Any, question: str) -> dict[str, str]:
    answer = form.answers[0]
    options = ["blue", "green"] if form.option else ["", ""]
    instruction = form.render(question, options)
    return {"instruction": instruction, "input": "", "output": f"the correct answer is {answer}", "answer": answer}


def tiny_suite(model: Path) -> dict[str, Any]:
    """The settings of the suite, for the model in that folder."""
    return {
        "title": "A tiny table",
        "paper": "Table 0",
        "columns": [*TASKS, "average"],
        "arms": {
            "Full": {"method": "full", "paper": [90.0] * 9},
            "LoRA": {"method": "lora", "paper": [80.0] * 9},
            "AFA-LoRA A-σ-B": {"method": "afa-lora", "paper": [85.0] * 9},
            "AFA-LoRA σ-A-B-σ": {"method": "afa-lora", "anneal": {"placement": "σ-A-B-σ"}},
            "DoRA": {"method": "dora"},
        },
        "scales": {
            "tiny": {
                "model": str(model),
                "data": {"source": "commonsense"},
                "adapter": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"]},
                "anneal": {"activation": "relu"},
                "train": {
                    "max_steps": 4,
                    "per_device_train_batch_size": 4,
                    "learning_rate": 1e-3,
                    "chat_template_path": "alpaca",
                    "completion_only_loss": False,
                    "gradient_checkpointing": False,
                    "max_length": 400,
                    "logging_steps": 1,
                    "save_steps": 2,
                },
                "methods": {"full": {"train": {"learning_rate": 1e-4}}},
                "evaluate": {"max_new_tokens": 2, "limit": 2},
            }
        },
    }
