"""A task of lm-evaluation-harness whose data lie beside it: towns, one of three right by chance."""

import json
import random
from pathlib import Path
from typing import Any

import yaml

TASK = {
    "task": "towns",
    "tag": "of_ours",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "training_split": "train",
    "test_split": "test",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_target": "{{right}}",
    "doc_to_choice": "{{choices}}",
    "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")],
    "metadata": {"version": 3.0},
}
GROUP = {
    "group": "all_towns",
    "task": ["towns"],
    "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    "metadata": {"version": 1.0},
}


def make_docs(count: int) -> list[dict[str, Any]]:
    draw = random.Random(0)
    names = [f"{first}{last}" for first in ("bel", "kor", "wald") for last in ("", "burg", "hausen")]
    return [
        {"question": f"Where is {i}?", "choices": draw.sample(names, 3), "right": draw.randrange(3)}
        for i in range(count)
    ]


DOCS = make_docs(40)


def save_tasks(folder: Path) -> Path:
    """Write the task, a group with it, and the data of both; return the folder."""
    files = {"test": DOCS, "train": [{"question": "Which?", "choices": ["a", "b"], "right": 1}]}
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {
        "data_files": {name: str(folder / f"{name}.jsonl") for name in files},
        "cache_dir": str(folder / "cache"),
    }
    (folder / "towns.yaml").write_text(yaml.safe_dump({**TASK, "dataset_kwargs": data}))
    (folder / "group.yaml").write_text(yaml.safe_dump(GROUP))
    return folder
