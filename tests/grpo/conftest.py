"""A tiny model, prompts whose answers differ in reward, and the settings of a recipe that uses them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_chat import save_tiny_chat_model

REWARDS = '''
def plain(completions, **columns):
    """The share of ASCII characters: random text has some, and more can be learnt."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(character.isascii() for character in text) / max(len(text), 1) for text in texts]


def broken(completions, **columns):
    raise KeyError("gold")


def short(completions, **columns):
    return [1.0]


def not_a_number(completions, **columns):
    return [float("nan")] * len(completions)


def same(completions, **columns):
    return [0.5] * len(completions)
'''


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny chat model."""
    return save_tiny_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def settings(chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A complete recipe: 24 prompts to train on, 8 optimizer steps, a reward function of the user's own."""
    (tmp_path / "own_rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "train.jsonl"
    records = [{"prompt": f"Say {i}.", "completion": "aeiou"} for i in range(30)]
    data.write_text("\n".join(map(json.dumps, records)))
    return {
        "model": str(chat_model),
        "method": "afa-lora",
        "output": str(tmp_path / "run"),
        "data": {"source": "file", "train": str(data), "test_items": 6},
        "rewards": "own_rewards:plain",
        "adapter": {"r": 8, "lora_alpha": 16},
        "anneal": {"anneal_end": 0.5},
        "train": {
            "max_steps": 8,
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_completion_length": 6,
            "learning_rate": 0.02,
            "logging_steps": 1,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "seed": 0,
        },
        "evaluate": {"batch_size": 8},
    }
