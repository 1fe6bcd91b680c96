"""A tiny model and tiny data on disk, and the settings of a recipe that uses them."""

import json
from pathlib import Path
from typing import Any

import pytest

from afa_lora.sft import run as run_module
from tests.tiny_chat import save_tiny_chat_model


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny chat model."""
    return save_tiny_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def settings(chat_model: Path, tmp_path: Path) -> dict[str, Any]:
    """A complete recipe: 32 items whose answer is always the same, 16 optimizer steps."""
    data = tmp_path / "train.jsonl"
    records = [{"prompt": f"Say yes to {i}.", "completion": "yes"} for i in range(40)]
    data.write_text("\n".join(map(json.dumps, records)))
    return {
        "model": str(chat_model),
        "method": "afa-lora",
        "output": str(tmp_path / "run"),
        "data": {"source": "file", "train": str(data), "test_items": 8},
        "adapter": {"r": 8, "lora_alpha": 16},
        "train": {
            "max_steps": 16,
            "per_device_train_batch_size": 8,
            "learning_rate": 0.02,
            "logging_steps": 1,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "seed": 0,
        },
        "evaluate": {"max_new_tokens": 4, "batch_size": 8},
    }


@pytest.fixture
def learnt(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What the loss is on, as text: filled with a run's first batch when its training begins."""
    texts: set[str] = set()
    original = run_module.make_trainer

    def spy(model: Any, tokenizer: Any, *rest: Any) -> Any:
        trainer = original(model, tokenizer, *rest)
        batch = next(iter(trainer.get_train_dataloader()))
        texts.update(tokenizer.decode(labels[labels != -100]) for labels in batch["labels"])
        return trainer

    monkeypatch.setattr(run_module, "make_trainer", spy)
    return texts
