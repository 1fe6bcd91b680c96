"""One training of an arm and the test of what it gave, read from its folders as far as they have come."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from afa_lora.core.errors import AfaLoraError
from afa_lora.evaluation.commonsense import Evaluation, read_evaluation
from afa_lora.report.curves import Curve, read_curve
from afa_lora.report.rewards import RewardCurve, read_reward_curve
from afa_lora.running.metrics import read_metrics
from afa_lora.settings import parse_yaml
from afa_lora.tuning.folder import RunFolder

RUN, EVALUATION = "run", "evaluation"
RESULTS = "results.json"
FAILURE = "failure.json"  # beside a run: why it ended
TRAINED_ON = ("train_items", "train_fingerprint")  # the same for the arms of a study, seed by seed
VALIDATION = "validation"  # the one task of a GRPO training

T = TypeVar("T")
Workflow = Literal["sft", "grpo", "eagle"]


class StudyError(AfaLoraError, ValueError):
    """A folder cannot be reported on, or not in one table with the others."""


@dataclass(frozen=True)
class Rewards:
    """What a GRPO training has got for its completions.

    Attributes:
        curve: mean rewards by step, and β.
        groups: how many groups of completions were scored.
        equal_groups: how many of them had equal rewards.
    """

    curve: RewardCurve
    groups: int
    equal_groups: int


@dataclass(frozen=True)
class Training:
    """A finished training.

    Attributes:
        curve: loss and β.
        rewards: those of a GRPO training; ``None`` for any other.
        tokens_per_second: tokens in the optimizer's steps by seconds of training; ``None`` if they were not logged.
        peak_memory: bytes; on CUDA those of the device, elsewhere resident ones of the process.
        seconds: of training.
        own_test: correct answers, items and interval on the run's own test items; ``None`` if it had none, or if they
            are what the arms are compared by.
        data: number and fingerprint of what it was trained on.
        provenance: of its last start, as `afa_lora.tuning.folder.RunFolder.record_start` wrote it.
    """

    curve: Curve
    rewards: Rewards | None
    tokens_per_second: float | None
    peak_memory: int
    seconds: float
    own_test: Mapping[str, Any] | None
    data: Mapping[str, Any]
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Scores:
    """What a trained model has reached on the test items.

    Attributes:
        folder: where that is read from.
        settings: how the items were asked, and the fingerprint of the items as ``data``.
        by_task: for each task (items,): whether the answer is right, or its reward; by index.
        unparsed: answers in which nothing was found to judge; ``None`` where nothing was looked for.
        environment: where it was measured.
        columns: of a draft, by set and shape (prompts, 3): draft tokens that were accepted, all tokens of the cycles,
            cycles. ``by_task`` has accepted tokens a cycle, the mean over the shapes, so that each prompt counts once.
    """

    folder: Path
    settings: Mapping[str, Any]
    by_task: Mapping[str, np.ndarray]
    unparsed: int | None
    environment: Mapping[str, Any]
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def items(self) -> int:
        """How many items there are in all."""
        return sum(len(scores) for scores in self.by_task.values())


@dataclass(frozen=True)
class SeedRun:
    """One training of an arm and its test, as far as they are there."""

    seed: int | None
    training: Training | None
    scores: Scores | None
    status: str


def read_seed(seed: int | None, run: Path, evaluation: Path, workflow: Workflow = "sft") -> SeedRun:
    """Read a training and its test.

    Args:
        seed: of the training.
        run: the folder of the training.
        evaluation: that of its test; a GRPO training has it in its own folder.
        workflow: of the training.

    Raises:
        StudyError: a file is damaged.
        EvaluationError: the files of an evaluation do not agree.
    """
    finished = (run / RESULTS).is_file()
    training = _read_training(run, workflow) if finished else None
    if workflow == "grpo":
        scores = _read_rewards(run) if finished else None
        untested = "no test items"
    elif workflow == "eagle":
        done = (evaluation / RESULTS).is_file()
        scores = _read_accepted(evaluation) if done else None
        untested = "not measured"
    else:
        done = (evaluation / RESULTS).is_file()
        scores = _scores(read_from(evaluation, read_evaluation)) if done else None
        untested = "evaluation not finished" if evaluation.is_dir() else "not evaluated"
    if scores:
        status = "finished"
    elif training or (workflow != "grpo" and evaluation.is_dir()):
        status = untested
    else:
        status = "training not finished" if run.is_dir() else "not started"
    return SeedRun(seed, training, scores, status)


def with_failure(run: SeedRun, place: Path) -> SeedRun:
    """The run, with the message that it has ended with, if it has failed."""
    failure = place / FAILURE
    if run.scores or not failure.is_file():
        return run
    return replace(run, status=f"failed: {read_json(failure)['message']}")


def workflow_of(run: Path) -> Workflow:
    """What a folder with a ``recipe.yaml`` is a run of."""
    folder = RunFolder(run)
    recipe = _read_recipe(folder) if folder.recipe.is_file() else {}
    if str(recipe.get("method", "")).startswith("eagle"):
        return "eagle"
    return "grpo" if "rewards" in recipe else "sft"


def _read_recipe(run: RunFolder) -> dict[str, Any]:
    return read_from(run.recipe, lambda file: parse_yaml(file.read_text(encoding="utf-8"), str(file)))


def _scores(evaluation: Evaluation) -> Scores:
    results = evaluation.results
    by_task = {
        task: np.array([right for _, right in sorted(evaluation.correct[task].items())], dtype=bool)
        for task in results["tasks"]
    }
    return Scores(
        evaluation.folder, evaluation.settings, by_task, results.get("unparsed"), results.get("environment", {})
    )


def _read_training(folder: Path, workflow: Workflow) -> Training:
    run = RunFolder(folder)
    results, provenance = read_json(run.results), read_json(run.provenance)
    logged = [entry for entry in read_from(run.metrics, read_metrics) if "loss" in entry]
    tokens = logged[-1].get("num_tokens") if logged else None
    speed = tokens / logged[-1]["seconds"] if tokens else results.get("tokens_per_second")
    try:
        rewards = None
        if workflow == "grpo":
            curve = read_reward_curve(folder.name, read_metrics(run.metrics))
            rewards = Rewards(curve, results["groups"], results["groups_with_equal_rewards"])
        return Training(
            curve=read_curve(folder.name, logged),
            rewards=rewards,
            tokens_per_second=speed,
            peak_memory=results["peak_memory_bytes"],
            seconds=results["training_seconds"],
            own_test=None if rewards or workflow == "eagle" else results["accuracy_after"],
            data={key: provenance[-1]["data"][key] for key in TRAINED_ON},
            provenance=provenance[-1],
        )
    except (KeyError, IndexError, TypeError) as error:
        raise StudyError(
            f"{folder} is no run of afa {workflow}, or a damaged one: {error!r} in its results."
        ) from error


def _read_rewards(folder: Path) -> Scores | None:
    """The rewards of the answers to a GRPO training's own test items; ``None`` if it had none."""
    run = RunFolder(folder)
    results, recipe = read_json(run.results), _read_recipe(run)
    try:
        tested = results["after"]
        if tested is None:
            return None
        settings = {
            "rewards": recipe["rewards"],
            "max_new_tokens": recipe["evaluate"]["max_new_tokens"] or recipe["train"].get("max_completion_length"),
            "data": results["data"]["test_fingerprint"],
            "items": tested["items"],
        }
        by_task = {VALIDATION: np.array(tested["rewards"], dtype=float)}
        return Scores(folder, settings, by_task, None, results["environment"])
    except (KeyError, TypeError, ValueError) as error:
        raise StudyError(f"{folder} is no run of afa grpo, or a damaged one: {error!r} in its results.") from error


def _read_accepted(folder: Path) -> Scores:
    """Of each prompt the mean over its cycles; one without a cycle, whose answer is one token, is left out."""
    content = read_json(folder / RESULTS)
    try:
        totals = {
            (name, shape): _prompt_totals(counts)
            for name, shapes in content["cycles"].items()
            for shape, counts in shapes.items()
        }
        settings, environment = content["settings"], content["environment"]
    except (AttributeError, KeyError, TypeError) as error:
        raise StudyError(f"{folder} holds no accepted tokens, or damaged ones: {error!r} in its results.") from error
    by_set = {
        name: np.mean([values[:, 0] / values[:, 2] for (of, _), values in totals.items() if of == name], axis=0)
        for name in content["cycles"]
    }
    columns = {f"{name} {shape}": values for (name, shape), values in totals.items()}
    return Scores(folder, settings, by_set, None, environment, columns)


def _prompt_totals(counts: dict[str, Any]) -> np.ndarray:
    """(prompts, 3)."""
    kept = [prompt for _, prompt in sorted(counts.items()) if prompt["accepted"]]
    rows = [(sum(prompt["accepted"]), prompt["tokens"], len(prompt["accepted"])) for prompt in kept]
    return np.array(rows, dtype=float).reshape(-1, 3)


def read_json(path: Path) -> Any:
    """The content of a file.

    Raises:
        StudyError: it is damaged or missing.
    """
    return read_from(path, lambda file: json.loads(file.read_text(encoding="utf-8")))


def read_from(path: Path, read: Callable[[Path], T]) -> T:
    """What ``read`` gives, with the file named if it is damaged."""
    try:
        return read(path)
    except AfaLoraError:
        raise
    except (ValueError, FileNotFoundError) as error:
        raise StudyError(f"{path} is damaged or missing: {error}. Run the arm again, or restore the file.") from error
