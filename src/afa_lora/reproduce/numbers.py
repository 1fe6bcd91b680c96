"""All numbers of a report, computed from a study's files: what its page, its tables and its JSON show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from afa_lora.data.commonsense import TASKS
from afa_lora.evaluation.commonsense import Evaluation
from afa_lora.evaluation.statistics import (
    Interval,
    bootstrap_average_interval,
    bootstrap_interval,
    gap_closed,
    holm,
    paired_test,
    seed_interval,
)
from afa_lora.report.curves import mean_curve
from afa_lora.reproduce.outcome import outcome
from afa_lora.reproduce.study import Arm, Study, asked

AVERAGE = "average"
ITEMS, SEEDS = "items", "seeds"  # what an interval is over


def study_numbers(study: Study) -> dict[str, Any]:
    """The numbers of one table and of what stands around it.

    Accuracies, shares and intervals are in [0, 1], the paper's accuracies in percent, times in seconds, memory in
    bytes. An accuracy is ``{"mean", "interval_95", "over", "items_interval_95", "per_seed"}``: the interval is
    Student's over the seeds, with one seed the bootstrap over the items, which ``items_interval_95`` is in any case.
    """
    baselines = _baselines(study)
    arms = [_arm_numbers(arm, baselines) for arm in study.arms]
    _adjust([arm["comparison"] for arm in arms if arm["comparison"] and arm["family"] != "full"])
    evaluations = study.evaluations
    numbers = {
        "artifact": study.artifact,
        "title": study.title,
        "paper": study.paper,
        "scale": study.scale,
        "deviations": list(study.deviations),
        "seeds": list(study.seeds),
        "evaluation": asked(evaluations[0]) if evaluations else None,
        "tasks": _tasks(evaluations[0]) if evaluations else [],
        "arms": arms,
        "provenance": _provenance(study),
    }
    return {**numbers, "outcome": outcome(numbers)}


def _baselines(study: Study) -> dict[str, Arm]:
    """The arms that others are compared with: LoRA, DoRA and full fine-tuning, by family."""
    return {arm.family: arm for arm in study.arms if arm.family and arm.method == arm.family}


def _arm_numbers(arm: Arm, baselines: Mapping[str, Arm]) -> dict[str, Any]:
    full = baselines.get("full")
    own = baselines.get("lora", baselines.get("dora")) if arm is full else baselines.get(arm.family or "")
    compares = own is not None and own is not arm and bool(_common(arm, own))
    closes = compares and arm is not full and full is not None
    return {
        "name": arm.name,
        "slug": arm.slug,
        "method": arm.method,
        "family": arm.family,
        "settings": dict(arm.settings),
        "seeds": [run.seed for run in arm.runs if run.evaluation],
        "unfinished": [{"seed": run.seed, "status": run.status} for run in arm.runs if not run.evaluation],
        "accuracy": _accuracies(list(arm.evaluations.values())),
        "unparsed": _unparsed(arm.evaluations.values()),
        "comparison": _comparison(arm, own) if compares and own else None,
        "gap_closed": _gap_closed(arm, own, full) if closes and own and full else None,
        "paper": dict(arm.paper),
        "paper_gap_closed": _paper_gap(arm, own, full) if own and own is not arm and full else None,
        "training": _training(arm),
    }


def _accuracies(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """For each task and for the average of them; empty where nothing is finished."""
    if not evaluations:
        return {}
    tasks = list(evaluations[0].results["tasks"])
    answers = [_answers(evaluation) for evaluation in evaluations]
    shares = {task: [float(seed[i].mean()) for seed in answers] for i, task in enumerate(tasks)}
    shares[AVERAGE] = [float(np.mean([task.mean() for task in seed])) for seed in answers]
    means = _seed_means(answers)
    items = {task: bootstrap_interval(correct) for task, correct in zip(tasks, means, strict=True)}
    items[AVERAGE] = bootstrap_average_interval(means)
    return {key: _value(values, items[key]) for key, values in shares.items()}


def _value(per_seed: Sequence[float], over_items: Interval) -> dict[str, Any]:
    mean, over_seeds = seed_interval(per_seed)
    return {
        "mean": mean,
        "interval_95": over_seeds or over_items,
        "over": SEEDS if over_seeds else ITEMS,
        "items_interval_95": over_items,
        "per_seed": list(per_seed),
    }


def _seed_means(answers: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """For each task (items,) the share of the seeds that are right."""
    return [np.mean(task, axis=0) for task in zip(*answers, strict=True)]


def _answers(evaluation: Evaluation) -> list[np.ndarray]:
    """For each task (items,) whether the item was answered right, by index."""
    return [
        np.array([right for _, right in sorted(evaluation.correct[task].items())], dtype=bool)
        for task in evaluation.results["tasks"]
    ]


def _common(arm: Arm, other: Arm) -> list[int | None]:
    """The seeds that are finished in both."""
    return [seed for seed in arm.evaluations if seed in other.evaluations]


def _compared(arm: Arm, seeds: Sequence[int | None]) -> dict[str, list[int | None]]:
    """The seeds that a comparison is over, and the planned ones that it is not."""
    return {"seeds": list(seeds), "missing_seeds": [run.seed for run in arm.runs if run.seed not in seeds]}


def _comparison(arm: Arm, baseline: Arm) -> dict[str, Any]:
    """The paired test over items, the seeds averaged; with two or more, also the difference's interval over them."""
    seeds = _common(arm, baseline)
    ours, theirs = ([_answers(side.evaluations[seed]) for seed in seeds] for side in (arm, baseline))
    test = paired_test(_seed_means(ours), _seed_means(theirs))
    differences = [
        float(np.mean([a.mean() - b.mean() for a, b in zip(mine, other, strict=True)]))
        for mine, other in zip(ours, theirs, strict=True)
    ]
    return {
        "baseline": baseline.name,
        **_compared(arm, seeds),
        **asdict(test),
        "p_adjusted": test.p_value,
        "per_seed": differences,
        "seed_interval_95": seed_interval(differences)[1],
    }


def _adjust(comparisons: Sequence[dict[str, Any]]) -> None:
    """Holm's adjustment for so many arms being compared with their baselines."""
    for comparison, p_value in zip(comparisons, holm([c["p_value"] for c in comparisons]), strict=True):
        comparison["p_adjusted"] = p_value


def _gap_closed(arm: Arm, baseline: Arm, full: Arm) -> dict[str, Any] | None:
    seeds = [seed for seed in _common(arm, baseline) if seed in full.evaluations]
    if not seeds:
        return None
    afa, lora, all_weights = ([_answers(side.evaluations[seed]) for seed in seeds] for side in (arm, baseline, full))
    gap = gap_closed(afa, lora, all_weights)
    return {**asdict(gap), **_compared(arm, seeds)}


def _paper_gap(arm: Arm, baseline: Arm, full: Arm) -> float | None:
    if arm is full or any(AVERAGE not in side.paper for side in (arm, baseline, full)):
        return None
    gap = full.paper[AVERAGE] - baseline.paper[AVERAGE]
    return (arm.paper[AVERAGE] - baseline.paper[AVERAGE]) / gap if gap else None


def _unparsed(evaluations: Iterable[Evaluation]) -> float | None:
    """The share of the answers in which none of the allowed ones was found; ``None`` where nothing was looked for."""
    results = [evaluation.results for evaluation in evaluations]
    if not results or any(entry.get("unparsed") is None for entry in results):
        return None
    items = sum(task["items"] for entry in results for task in entry["tasks"].values())
    return sum(entry["unparsed"] for entry in results) / items


def _training(arm: Arm) -> dict[str, Any] | None:
    """Means over the seeds."""
    trainings = arm.trainings
    if not trainings:
        return None
    speeds = [training.tokens_per_second for training in trainings if training.tokens_per_second is not None]
    curve = mean_curve(arm.name, [training.curve for training in trainings])
    return {
        "seeds": len(trainings),
        "tokens_per_second": float(np.mean(speeds)) if speeds else None,
        "peak_memory_bytes": max(training.peak_memory for training in trainings),
        "seconds": float(np.mean([training.seconds for training in trainings])),
        "final_loss": curve.final_loss,
        "annealing_window": curve.window,
        "own_test": trainings[0].own_test if len(trainings) == 1 else None,
    }


def _tasks(evaluation: Evaluation) -> list[dict[str, Any]]:
    return [
        {"name": name, "title": TASKS[name].title if name in TASKS else name, "items": task["items"]}
        for name, task in evaluation.results["tasks"].items()
    ]


def _provenance(study: Study) -> dict[str, list[str]]:
    """Versions, hardware, commits and fingerprints: every value that occurs."""
    found: dict[str, list[str]] = {}
    trainings = [training for arm in study.arms for training in arm.trainings]
    facts = [
        {
            **training.provenance["environment"],
            "git commit": _commit(training.provenance.get("git")),
            "training data": f"{training.data['train_items']} items, fingerprint {training.data['train_fingerprint']}",
        }
        for training in trainings
    ]
    facts += [evaluation.results.get("environment", {}) for evaluation in study.evaluations]
    for fact in facts:
        for key, value in fact.items():
            if value is not None and str(value) not in found.setdefault(key, []):
                found[key].append(str(value))
    return found


def _commit(git: Mapping[str, Any] | None) -> str | None:
    if git is None:
        return None
    return git["commit"] + (f" with {git['changed_files']} changed files" if git["changed_files"] else "")
