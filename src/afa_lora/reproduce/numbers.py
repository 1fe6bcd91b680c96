"""All numbers of a report, computed from a study's files: what its page, its tables and its JSON show."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from afa_lora.data.commonsense import TASKS
from afa_lora.evaluation.statistics import (
    bootstrap_average_interval,
    bootstrap_interval,
    gap_closed,
    holm,
    paired_test,
    seed_interval,
)
from afa_lora.report.curves import mean_curve
from afa_lora.report.formats import POINTS, TOKENS
from afa_lora.reproduce.accepted import accepted_columns
from afa_lora.reproduce.families import WITHOUT_ADAPTER, is_baseline
from afa_lora.reproduce.outcome import outcome
from afa_lora.reproduce.rewards import paper_gaps, training_rewards
from afa_lora.reproduce.runs import Scores, Workflow
from afa_lora.reproduce.seeds import common_seeds, compared_seeds, mean_over_seeds
from afa_lora.reproduce.study import Arm, Study, asked

AVERAGE = "average"
ITEMS = "items"  # what an interval is over where there is one seed


def study_numbers(study: Study) -> dict[str, Any]:
    """The numbers of one table and of what stands around it.

    Accuracies, shares and intervals are in [0, 1], the paper's accuracies in percent, times in seconds, memory in
    bytes. An accuracy is ``{"mean", "interval_95", "over", "items_interval_95", "per_seed"}``: the interval is
    Student's over the seeds, with one seed the bootstrap over the items, which ``items_interval_95`` is in any case.

    In a study of GRPO ``accuracy`` is that of rewards: of the greedy answers to the test items, the task
    ``validation``. There each arm has ``training_rewards`` too. In one of EAGLE drafts it is of accepted tokens: the
    draft tokens that a cycle has accepted, the mean over a prompt's cycles and over the shapes of decoding, and each
    arm has them by set and shape as ``accepted``.
    """
    baselines = _baselines(study)
    arms = [_arm_numbers(arm, baselines, study.workflow) for arm in study.arms]
    _adjust([arm["comparison"] for arm in arms if arm["comparison"] and arm["family"] not in WITHOUT_ADAPTER])
    scores = study.scores
    numbers = {
        "artifact": study.artifact,
        "title": study.title,
        "paper": study.paper,
        "scale": study.scale,
        "deviations": list(study.deviations),
        "seeds": list(study.seeds),
        "evaluation": asked(scores[0], study.workflow) if scores else None,
        "tasks": _tasks(scores[0]) if scores else [],
        "arms": arms,
        "provenance": _provenance(study),
    }
    if study.workflow != "sft":
        numbers["workflow"] = study.workflow
    return {**numbers, "outcome": outcome(numbers)}


def _baselines(study: Study) -> dict[str, Arm]:
    """The arms that others are compared with: LoRA, DoRA and full fine-tuning, by family."""
    return {arm.family: arm for arm in study.arms if arm.family and arm.method and is_baseline(arm.method)}


def _arm_numbers(arm: Arm, baselines: Mapping[str, Arm], workflow: Workflow) -> dict[str, Any]:
    full = baselines.get("full")
    alone = arm.family in WITHOUT_ADAPTER
    own = baselines.get("lora", baselines.get("dora")) if alone else baselines.get(arm.family or "")
    compares = own is not None and own is not arm and bool(common_seeds(arm.scores, own.scores))
    closes = compares and arm is not full and full is not None
    numbers = {
        "name": arm.name,
        "slug": arm.slug,
        "method": arm.method,
        "family": arm.family,
        "settings": dict(arm.settings),
        "seeds": [run.seed for run in arm.runs if run.scores],
        "unfinished": [{"seed": run.seed, "status": run.status} for run in arm.runs if not run.scores],
        "accuracy": _accuracies(list(arm.scores.values())),
        "unparsed": _unparsed(arm.scores.values()),
        "comparison": _comparison(arm, own, workflow) if compares and own else None,
        "gap_closed": _gap_closed(arm, own, full) if closes and own and full else None,
        "paper": dict(arm.paper),
        "paper_gap_closed": _paper_gap(arm, own, full) if own and own is not arm and full else None,
        "training": _training(arm),
    }
    if workflow == "eagle":
        numbers["accepted"] = accepted_columns(arm, own if compares else None)
    if workflow == "grpo":
        others = (own, full) if own and full and arm not in (own, full) else None
        numbers["training_rewards"] = training_rewards(arm, others)
        numbers["paper_gaps_closed"] = paper_gaps(arm, *others) if others else {}
    return numbers


def _accuracies(scores: Sequence[Scores]) -> dict[str, Any]:
    """For each task and for the average of them; empty where nothing is finished."""
    if not scores:
        return {}
    tasks = list(scores[0].by_task)
    answers = [_answers(seed) for seed in scores]
    shares = {task: [float(seed[i].mean()) for seed in answers] for i, task in enumerate(tasks)}
    shares[AVERAGE] = [float(np.mean([task.mean() for task in seed])) for seed in answers]
    means = _seed_means(answers)
    items = {task: bootstrap_interval(correct) for task, correct in zip(tasks, means, strict=True)}
    items[AVERAGE] = bootstrap_average_interval(means)
    return {
        key: {**mean_over_seeds(values, items[key], ITEMS), "items_interval_95": items[key], "per_seed": values}
        for key, values in shares.items()
    }


def _seed_means(answers: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """For each task (items,) the share of the seeds that are right."""
    return [np.mean(task, axis=0) for task in zip(*answers, strict=True)]


def _answers(scores: Scores) -> list[np.ndarray]:
    """For each task (items,) whether the item was answered right, or the reward of the answer."""
    return list(scores.by_task.values())


def _comparison(arm: Arm, baseline: Arm, workflow: Workflow) -> dict[str, Any]:
    """The paired test over items, the seeds averaged; with two or more, also the difference's interval over them."""
    seeds = common_seeds(arm.scores, baseline.scores)
    ours, theirs = ([_answers(side.scores[seed]) for seed in seeds] for side in (arm, baseline))
    test = paired_test(_seed_means(ours), _seed_means(theirs))
    differences = [
        float(np.mean([a.mean() - b.mean() for a, b in zip(mine, other, strict=True)]))
        for mine, other in zip(ours, theirs, strict=True)
    ]
    return {
        "baseline": baseline.name,
        "unit": TOKENS if workflow == "eagle" else POINTS,
        **compared_seeds(arm, seeds),
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
    sides = (arm, baseline, full)
    seeds = common_seeds(*(side.scores for side in sides))
    if not seeds:
        return None
    afa, lora, all_weights = ([_answers(side.scores[seed]) for seed in seeds] for side in sides)
    return {**asdict(gap_closed(afa, lora, all_weights)), **compared_seeds(arm, seeds)}


def _paper_gap(arm: Arm, baseline: Arm, full: Arm) -> float | None:
    if arm is full or any(AVERAGE not in side.paper for side in (arm, baseline, full)):
        return None
    gap = full.paper[AVERAGE] - baseline.paper[AVERAGE]
    return (arm.paper[AVERAGE] - baseline.paper[AVERAGE]) / gap if gap else None


def _unparsed(scores: Collection[Scores]) -> float | None:
    """The share of the answers in which none of the allowed ones was found; ``None`` where nothing was looked for."""
    unparsed = [seed.unparsed for seed in scores if seed.unparsed is not None]
    if not scores or len(unparsed) < len(scores):
        return None
    return sum(unparsed) / sum(seed.items for seed in scores)


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


def _tasks(scores: Scores) -> list[dict[str, Any]]:
    return [
        {"name": name, "title": TASKS[name].title if name in TASKS else name, "items": len(items)}
        for name, items in scores.by_task.items()
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
    facts += [dict(scores.environment) for scores in study.scores]
    for fact in facts:
        for key, value in fact.items():
            if value is not None and str(value) not in found.setdefault(key, []):
                found[key].append(str(value))
    return found


def _commit(git: Mapping[str, Any] | None) -> str | None:
    if git is None:
        return None
    return git["commit"] + (f" with {git['changed_files']} changed files" if git["changed_files"] else "")
