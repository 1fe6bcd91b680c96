"""Read what there is to report: a study (arms × seeds), or runs and evaluations on their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from afa_lora.core.errors import AfaLoraError, closest
from afa_lora.evaluation.commonsense import Evaluation, read_evaluation
from afa_lora.report.curves import Curve, read_curve
from afa_lora.running.metrics import read_metrics
from afa_lora.settings import Section, validate
from afa_lora.tuning.folder import RunFolder

STUDY, RUN, EVALUATION = "study.json", "run", "evaluation"
RESULTS = "results.json"
FAILURE = "failure.json"  # beside a run: why it ended
HARNESS = "lm-evaluation-harness"  # the source of its numbers
# What decides whether two evaluations share a table: how the items were asked, and the fingerprint of the items. The
# rest says whose answers they are, or explains why the items differ.
DECISIVE = ("protocol", "prompt", "max_new_tokens", "beams", "data")
EXPLAINING = ("tasks", "limit")
TRAINED_ON = ("train_items", "train_fingerprint")  # the same for the arms of a study, seed by seed

T = TypeVar("T")


class StudyError(AfaLoraError, ValueError):
    """A folder cannot be reported on, or not in one table with the others."""


class ArmSettings(Section, extra="ignore"):
    """One arm, as ``study.json`` describes it."""

    name: str
    """As the tables show it."""
    slug: str
    """The name of its folder."""
    method: str
    """A method of ``afa sft``."""
    family: Literal["lora", "dora", "full"]
    """With which arms it is compared."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """What the arm is trained with."""
    paper: dict[str, float] = Field(default_factory=dict)
    """The paper's accuracies in percent, by task, and their ``average``."""


class StudySettings(Section, extra="ignore"):
    """What ``study.json`` holds."""

    artifact: str
    """The table or figure, as the command names it."""
    title: str
    """For people."""
    paper: str = ""
    """What of the paper it repeats."""
    scale: str
    """paper, small or tiny."""
    protocol: str | None = None
    """How the eight tasks are put to the models."""
    deviations: list[str] = Field(default_factory=list)
    """What differs from the paper."""
    seeds: list[int]
    """Of the trainings."""
    arms: list[ArmSettings]
    """What is compared, in the order of the tables."""


@dataclass(frozen=True)
class Training:
    """A finished training.

    Attributes:
        curve: loss and β.
        tokens_per_second: tokens in the optimizer's steps by seconds of training; ``None`` if they were not logged.
        peak_memory: bytes; on CUDA those of the device, elsewhere resident ones of the process.
        seconds: of training.
        own_test: correct answers, items and interval on the run's own test items; ``None`` if it had none.
        data: number and fingerprint of what it was trained on.
        provenance: of its last start, as `afa_lora.tuning.folder.RunFolder.record_start` wrote it.
    """

    curve: Curve
    tokens_per_second: float | None
    peak_memory: int
    seconds: float
    own_test: Mapping[str, Any] | None
    data: Mapping[str, Any]
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class SeedRun:
    """One training of an arm and its evaluation, as far as they are there."""

    seed: int | None
    training: Training | None
    evaluation: Evaluation | None
    status: str


@dataclass(frozen=True)
class Arm:
    """A row of the tables; the attributes are those of `ArmSettings`, and one run for each seed."""

    name: str
    slug: str
    method: str | None
    family: str | None
    settings: Mapping[str, Any]
    paper: Mapping[str, float]
    runs: tuple[SeedRun, ...]

    @property
    def evaluations(self) -> dict[int | None, Evaluation]:
        """The finished evaluations by seed."""
        return {run.seed: run.evaluation for run in self.runs if run.evaluation is not None}

    @property
    def trainings(self) -> list[Training]:
        """The finished trainings."""
        return [run.training for run in self.runs if run.training is not None]


@dataclass(frozen=True)
class Study:
    """What shares a table; the attributes are those of `StudySettings`, but ``None`` for runs on their own."""

    artifact: str | None
    title: str
    paper: str
    scale: str | None
    deviations: tuple[str, ...]
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]

    @property
    def evaluations(self) -> list[Evaluation]:
        """All finished evaluations."""
        return [evaluation for arm in self.arms for evaluation in arm.evaluations.values()]


@dataclass(frozen=True)
class Findings:
    """What there is to report.

    Attributes:
        studies: each a table.
        harness: the ``results.json`` of lm-evaluation-harness by the runs' names: other prompts, another scoring, so a
            table of its own.
    """

    studies: tuple[Study, ...]
    harness: Mapping[str, Mapping[str, Any]]


def read_findings(folders: Sequence[Path]) -> Findings:
    """Read what a user names: each study is a table of its own, all other runs and evaluations share one.

    Raises:
        StudyError: a folder is none of these, is damaged, or cannot share the table.
    """
    given = list(dict.fromkeys(folders))
    for folder in given:
        _check_exists(folder)
    studies = [read_study(folder) for folder in given if (folder / STUDY).is_file()]
    others = [folder for folder in given if not (folder / STUDY).is_file()]
    names = dict(zip(others, _names(others), strict=True))
    harness = {names[folder]: _read_json(folder / RESULTS) for folder in others if _is_harness(folder)}
    _check_harness(harness)
    loose = [_loose_arm(names[folder], _read_loose(folder)) for folder in others if names[folder] not in harness]
    if loose:
        studies.append(_checked(Study(None, "Runs", "", None, (), (), tuple(loose))))
    return Findings(tuple(studies), harness)


def read_study(folder: Path) -> Study:
    """Read a study as far as it has come; an arm without results is there with its status.

    Raises:
        StudyError: there is none in ``folder``, a file of it is damaged, its evaluations are not of one kind, or with
            one seed its arms were trained on different data.
        EvaluationError: the files of an evaluation do not agree.
    """
    path = folder / STUDY
    if not path.is_file():
        raise StudyError(f"{path} does not exist, so {folder} holds no study of afa reproduce.")
    content = _read_json(path)
    if not isinstance(content, dict):
        raise StudyError(f"{path} is damaged: it holds no JSON object. Restore the file.")
    read = validate(StudySettings, content, str(path))
    arms = []
    for arm in read.arms:
        _check_slug(arm.slug, path)
        places = [(seed, folder / arm.slug / f"seed-{seed}") for seed in read.seeds]
        runs = tuple(_with_failure(_read_seed(seed, place / RUN, place / EVALUATION), place) for seed, place in places)
        arms.append(Arm(**arm.model_dump(), runs=runs))
    _check_training_data(folder, arms)
    return _checked(
        Study(read.artifact, read.title, read.paper, read.scale, tuple(read.deviations), tuple(read.seeds), tuple(arms))
    )


def asked(evaluation: Evaluation) -> dict[str, Any]:
    """How the items were asked, and which."""
    return {key: evaluation.settings.get(key) for key in (*DECISIVE, *EXPLAINING)}


def _checked(study: Study) -> Study:
    """The study, if its evaluations are of one kind.

    Raises:
        StudyError: they are not; the message says what differs.
    """
    evaluations = study.evaluations
    for other in evaluations[1:]:
        here, there = asked(evaluations[0]), asked(other)
        different = [key for key in here if here[key] != there[key]]
        if set(different) & set(DECISIVE):
            listed = "\n  ".join(f"{key}: {here[key]!r} and {there[key]!r}" for key in different)
            raise StudyError(
                f"{evaluations[0].folder} and {other.folder} cannot share a table:\n  {listed}\nEvaluate both in the "
                "same way, or report on them one at a time."
            )
    return study


def _check_training_data(folder: Path, arms: Sequence[Arm]) -> None:
    """Refuse arms that saw other items, or the same in another order, with the same seed."""
    first: dict[int | None, tuple[Path, Mapping[str, Any]]] = {}
    for arm in arms:
        for run in arm.runs:
            if run.training is None:
                continue
            place, data = folder / arm.slug / f"seed-{run.seed}" / RUN, run.training.data
            other, known = first.setdefault(run.seed, (place, data))
            if different := [f"{key}: {known[key]!r} and {data[key]!r}" for key in data if known[key] != data[key]]:
                raise StudyError(
                    "\n  ".join([f"{other} and {place} were trained on other data:", *different])
                    + "\nTrain all arms on the same: remove the folders of those that are to be trained again."
                )


def _read_seed(seed: int | None, run: Path, evaluation: Path) -> SeedRun:
    training = _read_training(run) if (run / RESULTS).is_file() else None
    answered = _from(evaluation, read_evaluation) if (evaluation / RESULTS).is_file() else None
    if answered:
        status = "finished"
    elif evaluation.is_dir():
        status = "evaluation not finished"
    elif training:
        status = "not evaluated"
    else:
        status = "training not finished" if run.is_dir() else "not started"
    return SeedRun(seed, training, answered, status)


def _with_failure(run: SeedRun, place: Path) -> SeedRun:
    """The run, with the message that it has ended with, if it has failed."""
    failure = place / FAILURE
    if run.evaluation or not failure.is_file():
        return run
    return replace(run, status=f"failed: {_read_json(failure)['message']}")


def _read_training(folder: Path) -> Training:
    run = RunFolder(folder)
    results, provenance = _read_json(run.results), _read_json(run.provenance)
    logged = [entry for entry in _from(run.metrics, read_metrics) if "loss" in entry]
    tokens = logged[-1].get("num_tokens") if logged else None
    try:
        return Training(
            curve=read_curve(folder.name, logged),
            tokens_per_second=tokens / logged[-1]["seconds"] if tokens else None,
            peak_memory=results["peak_memory_bytes"],
            seconds=results["training_seconds"],
            own_test=results["accuracy_after"],
            data={key: provenance[-1]["data"][key] for key in TRAINED_ON},
            provenance=provenance[-1],
        )
    except (KeyError, IndexError, TypeError) as error:
        raise StudyError(f"{folder} is no run of afa sft, or a damaged one: {error!r} in its results.") from error


def _read_loose(folder: Path) -> SeedRun:
    """An evaluation, a run, or a folder with both in it."""
    if (folder / "items.jsonl").is_file() or (folder / "settings.json").is_file():
        return _read_seed(None, folder / RUN, folder)
    if (folder / "recipe.yaml").is_file():
        return _read_seed(None, folder, folder / EVALUATION)
    if (folder / RUN).is_dir() or (folder / EVALUATION).is_dir():
        return _read_seed(None, folder / RUN, folder / EVALUATION)
    raise StudyError(
        f"{folder} holds no study of afa reproduce ({STUDY}), no run of afa sft (recipe.yaml) and no evaluation of afa "
        "eval (settings.json)."
    )


def _loose_arm(name: str, run: SeedRun) -> Arm:
    return Arm(name, name, None, None, {}, {}, (run,))


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [[part for part in folder.resolve().parts if part not in (RUN, EVALUATION)] for folder in folders]
    for length in range(1, max(map(len, parts), default=0)):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _is_harness(folder: Path) -> bool:
    results = _read_json(folder / RESULTS) if (folder / RESULTS).is_file() else None
    return isinstance(results, dict) and results.get("source") == HARNESS


def _check_harness(runs: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse runs of one task with other items or prompts, of which the harness keeps a hash."""
    first: dict[str, tuple[str, str]] = {}
    for name, results in runs.items():
        for task, numbers in results["tasks"].items():
            other, known = first.setdefault(task, (name, numbers["hash"]))
            if known != numbers["hash"]:
                raise StudyError(
                    f"{other} and {name} cannot share a table: {HARNESS} gave them other items or prompts of {task}. "
                    "Evaluate both in the same way, or report on them one at a time."
                )


def _check_exists(folder: Path) -> None:
    if not folder.is_dir():
        beside = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise StudyError(f"{folder} is no folder.{closest(folder.name, beside)}")


def _check_slug(slug: str, path: Path) -> None:
    if Path(slug).name != slug or slug in ("", ".."):
        raise StudyError(f"{path}: arms.slug = {slug!r} is no name of a folder inside the study.")


def _read_json(path: Path) -> Any:
    return _from(path, lambda file: json.loads(file.read_text(encoding="utf-8")))


def _from(path: Path, read: Callable[[Path], T]) -> T:
    """What ``read`` gives, with the file named if it is damaged."""
    try:
        return read(path)
    except AfaLoraError:
        raise
    except (ValueError, FileNotFoundError) as error:
        raise StudyError(f"{path} is damaged or missing: {error}. Run the arm again, or restore the file.") from error
