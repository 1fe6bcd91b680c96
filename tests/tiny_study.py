"""Tiny studies: suites of four or five arms of a few optimizer steps each, and the items that are made up for them."""

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


REWARDS = '''
def vowels(completions, **columns):
    """The share of vowels: random text has some, and more can be learnt."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in texts]
'''


def save_tiny_prompts(folder: Path) -> Path:
    """30 prompts and a reward function of the user's own, ``tiny_rewards:vowels``, in a folder to be in."""
    (folder / "tiny_rewards.py").write_text(REWARDS)
    records = [{"prompt": f"Say {i}.", "completion": "aeiou"} for i in range(30)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder


def tiny_grpo_suite(model: Path, prompts: Path) -> dict[str, Any]:
    """The settings of a suite of GRPO, for the model in that folder and the prompts in the other."""
    return {
        "title": "A tiny table of rewards",
        "paper": "Table 0",
        "workflow": "grpo",
        "figure": "rewards.png",
        "columns": ["3B train", "3B validation"],
        "arms": {
            "Full fine-tuning": {"method": "full", "paper": [97.0, 90.0]},
            "LoRA": {"method": "lora", "paper": [95.0, 80.0]},
            "AFA-LoRA A-σ-B": {"method": "afa-lora", "paper": [96.0, 84.0]},
            "AFA-LoRA σ-A-B-σ": {"method": "afa-lora", "anneal": {"placement": "σ-A-B-σ"}, "paper": [96.0, 92.0]},
        },
        "scales": {
            "tiny": {
                "model": str(model),
                "data": {"source": "file", "train": str(prompts / "prompts.jsonl"), "test_items": 6},
                "rewards": "tiny_rewards:vowels",
                "adapter": {"r": 8, "lora_alpha": 16},
                "anneal": {"activation": "relu", "anneal_end": 0.3},
                "train": {
                    "max_steps": 10,
                    "per_device_train_batch_size": 8,
                    "num_generations": 4,
                    "max_completion_length": 6,
                    "learning_rate": 0.02,
                    "logging_steps": 1,
                    "gradient_checkpointing": False,
                    "save_steps": 2,
                },
                "methods": {"full": {"train": {"learning_rate": 0.002}}},
                "evaluate": {"batch_size": 8},
            }
        },
    }


def save_tiny_drafts_data(folder: Path) -> Path:
    """Twelve conversations, and two sets of three questions each, in the folder of a study of EAGLE drafts."""
    conversations = folder / "conversations" / "sharegpt_tiny"
    conversations.mkdir(parents=True)
    turns = [{"human": f"Say {n} twice.", "gpt": f"{n} {n}"} for n in range(12)]
    rows = [
        {"id": f"{n}_0", "conversations": [{"from": who, "value": text} for who, text in turn.items()]}
        for n, turn in enumerate(turns)
    ]
    (conversations / "part.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("red", "blue"):
        questions = [{"question_id": n, "turns": [f"{name} {n}?", "And more?"][: 1 + n % 2]} for n in range(3)]
        (folder / "eagle" / name).mkdir(parents=True)
        (folder / "eagle" / name / "question.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    return folder
