"""Folders of studies, runs and evaluations with chosen numbers, in the form that `afa reproduce` and `afa eval` leave.

Reports only read files, so files with made-up numbers are all that they need.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from afa_lora.data.commonsense import TASKS
from afa_lora.running.provenance import environment

PAPER = {"LoRA": 85.57, "AFA-LoRA A-σ-B": 85.95, "Full": 87.07}
SETTINGS = {
    "protocol": "paper",
    "prompt": "alpaca",
    "tasks": None,
    "limit": 50,
    "max_new_tokens": 32,
    "beams": 1,
    "model": "smollm2-135m",
    "adapter": None,
}
DATA = "d0d0d0d0d0d0d0d0"


def arm(name: str, method: str, **changes: Any) -> dict[str, Any]:
    """One arm of ``study.json``."""
    slug = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.replace("σ", "s")).strip("-")
    settings: dict[str, Any] = {"model": "smollm2-135m", "train": {"learning_rate": 1e-4, "num_train_epochs": 3}}
    if method.startswith("afa"):
        settings["anneal"] = {"activation": "relu", "placement": name.split()[-1], "anneal_end": 0.3}
    paper = {**{task: 80.0 + i for i, task in enumerate(TASKS)}, "average": PAPER[name]} if name in PAPER else {}
    return {
        "name": name,
        "slug": slug,
        "method": method,
        "family": method.removeprefix("afa-"),
        "settings": settings,
        "paper": paper,
        **changes,
    }


ARMS = (arm("Full", "full"), arm("LoRA", "lora"), arm("AFA-LoRA A-σ-B", "afa-lora"))


def write_study(
    folder: Path,
    shares: Mapping[str, float],
    arms: Sequence[Mapping[str, Any]] = ARMS,
    seeds: Sequence[int] = (0, 1),
    items: int = 50,
    **changes: Any,
) -> Path:
    """Write a study; an arm without a share of right answers is not there yet.

    Args:
        folder: of the study.
        shares: for each arm's name the share of right answers.
        arms: from `arm`.
        seeds: of the trainings.
        items: of each task.
        changes: keys of ``study.json``.
    """
    study = {
        "artifact": "table1",
        "title": "Commonsense reasoning",
        "paper": "Table 1 of arXiv 2512.22455",
        "scale": "tiny",
        "protocol": "paper",
        "deviations": ["The model is SmolLM2-135M, in the paper Llama-3-8B."],
        "seeds": list(seeds),
        "arms": list(arms),
        **changes,
    }
    write_json(folder / "study.json", study)
    for number, one in enumerate(arms):
        for seed in seeds:
            if one["name"] in shares:
                place = folder / one["slug"] / f"seed-{seed}"
                write_run(place / "run", one["method"], seed=100 * number + seed)
                write_evaluation(place / "evaluation", shares[one["name"]], seed=seed, items=items)
    return folder


def write_evaluation(
    folder: Path, share: float, seed: int = 0, items: int = 50, tasks: Sequence[str] = tuple(TASKS), **settings: Any
) -> Path:
    """Write an evaluation in which about ``share`` of the items are right: the easiest ones, but for some noise."""
    rng, difficulty = np.random.default_rng([seed, round(1000 * share)]), np.random.default_rng(7)
    lines, numbers = [], {}
    for task in tasks:
        luck = difficulty.random(items)
        right = luck + 0.1 * rng.normal(size=items) < share if 0 < share < 1 else np.full(items, bool(share))
        for index in rng.permutation(items):
            given = None if luck[index] > 0.95 and not right[index] else "answer1"
            answer = "answer1" if right[index] else "answer2"
            line = {"task": task, "index": int(index), "answer": answer, "given": given, "correct": bool(right[index])}
            lines.append({**line, "text": f"the correct answer is {given}"})
        found = {"correct": int(right.sum()), "items": items, "accuracy": float(right.mean())}
        unparsed = sum(line["given"] is None for line in lines if line["task"] == task)
        numbers[task] = {**found, "unparsed": unparsed, "interval_95": [0.0, 1.0]}
    settings = {**SETTINGS, "weights": f"{seed:016x}", "dtype": "float32", "data": DATA, **settings}
    results = {
        "protocol": settings["protocol"],
        "source": "afa-lora",
        "tasks": numbers,
        "average": {"accuracy": float(np.mean([n["accuracy"] for n in numbers.values()])), "interval_95": [0.0, 1.0]},
        "unparsed": sum(n["unparsed"] for n in numbers.values()),
        "seconds": 100.0,
        "items_per_second": items * len(tasks) / 100,
        "settings": settings,
        "environment": environment(),
    }
    write_json(folder / "settings.json", settings)
    write_json(folder / "results.json", results)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "items.jsonl").write_text(text, encoding="utf-8")
    return folder


def write_run(folder: Path, method: str, seed: int = 0, steps: int = 120, data: str = "a" * 16) -> Path:
    """Write the run of a training whose loss falls, with an annealing window of 30 % if the method has one.

    ``data`` is the fingerprint of what it is trained on.
    """
    rng = np.random.default_rng(seed)
    gain = {"full": 0.3, "lora": 0.0}.get(method, 0.1)
    entries = []
    for step in range(1, steps + 1):
        loss = 1.2 - gain + 2.0 * math.exp(-step / 15) + 0.05 * rng.normal()
        entry = {"step": step, "seconds": 0.5 * step, "loss": loss, "num_tokens": 400.0 * step}
        if method.startswith("afa"):
            entry["afa/beta"] = max(0.0, 1 - step / (0.3 * steps))
        entries.append(entry)
    provenance = {
        "time": "2026-01-01T00:00:00+00:00",
        "command": ["afa", "sft"],
        "git": {"commit": "c0ffee" * 6 + "c0ff", "changed_files": 0},
        "data": {"train_items": 300, "train_fingerprint": data, "test_items": 0, "test_fingerprint": "b" * 16},
        "environment": environment(),
    }
    results = {
        "method": method,
        "accuracy_before": None,
        "accuracy_after": None,
        "test_loss": None,
        "training_seconds": 0.5 * steps,
        "peak_memory_bytes": 900 * 2**20 + seed,
        "data": provenance["data"],
        "environment": provenance["environment"],
    }
    write_json(folder / "provenance.json", [provenance])
    write_json(folder / "results.json", results)
    (folder / "recipe.yaml").write_text(f"method: {method}\n", encoding="utf-8")
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    return folder


def write_grpo_study(folder: Path, rewards: Mapping[str, float], steps: int = 50, items: int = 200) -> Path:
    """Write a study of GRPO with one seed; ``rewards`` are the arms' means of rewards that are 1 or 0 for each item."""
    arms = [
        arm("Full", "full"),
        arm("LoRA", "lora"),
        arm("AFA-LoRA A-σ-B", "afa-lora"),
        arm("AFA-LoRA late", "afa-lora"),
    ]
    for one, reward in zip(arms, (90.0, 80.0, 84.0, 92.0), strict=True):
        one["paper"] = {"3B train": reward + 5, "3B validation": reward}
    write_study(folder, {}, arms=arms, seeds=[0], title="Reinforcement learning", workflow="grpo", protocol=None)
    for number, one in enumerate(arms):
        if one["name"] in rewards:
            run = folder / one["slug"] / "seed-0" / "run"
            write_grpo_run(run, one["method"], rewards[one["name"]], number, steps, items)
    return folder


def write_grpo_run(
    folder: Path, method: str, reward: float, seed: int = 0, steps: int = 50, items: int = 200, data: str = "a" * 16
) -> Path:
    """Write the run of a GRPO training whose mean reward rises from 0 to ``reward``, which its test has too.

    ``data`` is the fingerprint of what it is tested on; without ``items`` it is not tested.
    """
    write_run(folder, method, seed, steps)
    results = json.loads((folder / "results.json").read_text())
    rng = np.random.default_rng(seed)
    sampled = [reward * min(1.0, 2 * step / steps) + 0.01 * rng.normal() for step in range(1, steps + 1)]
    right = (np.random.default_rng(7).permutation(items) < round(reward * items)).astype(float)
    tested = {"reward": float(right.mean()), "rewards": right.tolist(), "items": items} if items else None
    results |= {"after": tested, "groups": 8 * steps, "groups_with_equal_rewards": steps}
    results["data"]["test_fingerprint"] = data
    write_json(folder / "results.json", results)
    recipe = {"method": method, "rewards": [{"function": "task"}], "evaluate": {"max_new_tokens": None}}
    write_json(folder / "recipe.yaml", {**recipe, "train": {"max_completion_length": 8}})  # JSON is YAML
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps({**entry, "reward": mean}) + "\n" for entry, mean in zip(entries, sampled, strict=True)]
    (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def write_harness(folder: Path, value: float, items_hash: str = "h" * 16) -> Path:
    """Write what `afa eval harness` leaves."""
    metrics = [
        {"metric": "acc", "filter": "none", "value": value, "stderr": 0.01, "higher_is_better": True},
        {"metric": "acc_norm", "filter": "none", "value": value + 0.05, "stderr": None, "higher_is_better": True},
    ]
    task = {
        "version": 1.0,
        "num_fewshot": 0,
        "metrics": metrics,
        "hash": items_hash,
        "items": 200,
        "items_in_all": 2376,
    }
    results = {"source": "lm-evaluation-harness", "version": "0.4.13", "tasks": {"arc_easy": task}, "groups": {}}
    write_json(folder / "results.json", results)
    return folder


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
