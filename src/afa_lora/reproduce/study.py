"""Read what there is to report: a study (arms × seeds), or runs and evaluations on their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from afa_lora.core.errors import closest
from afa_lora.reproduce.drafts import UNTRAINED
from afa_lora.reproduce.families import Family
from afa_lora.reproduce.runs import (
    EVALUATION,
    RESULTS,
    RUN,
    Scores,
    SeedRun,
    StudyError,
    Training,
    Workflow,
    read_json,
    read_seed,
    with_failure,
    workflow_of,
)
from afa_lora.settings import Section, validate
from afa_lora.tuning.folder import RunFolder

STUDY = "study.json"
HARNESS = "lm-evaluation-harness"  # the source of its numbers
# What decides whether two tests share a table: how the items were asked, and the fingerprint of the items. The rest
# says whose answers they are, or explains why the items differ.
DECISIVE = {
    "sft": ("protocol", "prompt", "max_new_tokens", "beams", "data"),
    "grpo": ("rewards", "max_new_tokens", "data"),
    "eagle": ("target", "shapes", "max_new_tokens", "dtype", "data"),
}
EXPLAINING = {"sft": ("tasks", "limit"), "grpo": ("items",), "eagle": ("questions",)}
TITLES: dict[Workflow, str] = {"sft": "Runs", "grpo": "GRPO runs", "eagle": "EAGLE drafts"}  # of runs on their own


class ArmSettings(Section, extra="ignore"):
    """One arm, as ``study.json`` describes it."""

    name: str
    """As the tables show it."""
    slug: str
    """The name of its folder."""
    method: str
    """A method of the workflow."""
    family: Family
    """With which arms it is compared."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """What the arm is trained with."""
    paper: dict[str, float] = Field(default_factory=dict)
    """The paper's numbers in percent, by the suite's columns."""


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
    workflow: Workflow = "sft"
    """What an arm is a run of."""
    protocol: str | None = None
    """How the eight tasks are put to the models."""
    deviations: list[str] = Field(default_factory=list)
    """What differs from the paper."""
    seeds: list[int]
    """Of the trainings."""
    arms: list[ArmSettings]
    """What is compared, in the order of the tables."""


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
    def scores(self) -> dict[int | None, Scores]:
        """Those of the finished tests by seed."""
        return {run.seed: run.scores for run in self.runs if run.scores is not None}

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
    workflow: Workflow = "sft"

    @property
    def scores(self) -> list[Scores]:
        """Those of all finished tests."""
        return [scores for arm in self.arms for scores in arm.scores.values()]


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
    harness = {names[folder]: read_json(folder / RESULTS) for folder in others if _is_harness(folder)}
    _check_harness(harness)
    loose: dict[Workflow, list[Arm]] = {}
    for folder in others:
        if names[folder] not in harness:
            workflow, run = _read_loose(folder)
            loose.setdefault(workflow, []).append(Arm(names[folder], names[folder], None, None, {}, {}, (run,)))
    for workflow, arms in loose.items():
        studies.append(_checked(Study(None, TITLES[workflow], "", None, (), (), tuple(arms), workflow)))
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
    content = read_json(path)
    if not isinstance(content, dict):
        raise StudyError(f"{path} is damaged: it holds no JSON object. Restore the file.")
    read = validate(StudySettings, content, str(path))
    arms = []
    for arm in read.arms:
        _check_slug(arm.slug, path)
        places = [(seed, folder / arm.slug / f"seed-{seed}") for seed in read.seeds]
        runs = tuple(
            with_failure(read_seed(seed, place / RUN, place / EVALUATION, read.workflow), place)
            for seed, place in places
        )
        arms.append(Arm(**arm.model_dump(), runs=runs))
    if (folder / UNTRAINED / RESULTS).is_file():  # a draft that has learnt nothing; compared with nothing
        run = read_seed(None, folder / UNTRAINED / RUN, folder / UNTRAINED, read.workflow)
        arms.insert(0, Arm("Untrained draft", UNTRAINED, None, None, {}, {}, (run,)))
    _check_training_data(folder, arms)
    return _checked(
        Study(
            read.artifact,
            read.title,
            read.paper,
            read.scale,
            tuple(read.deviations),
            tuple(read.seeds),
            tuple(arms),
            read.workflow,
        )
    )


def asked(scores: Scores, workflow: Workflow) -> dict[str, Any]:
    """How the items were asked, and which."""
    return {key: scores.settings.get(key) for key in (*DECISIVE[workflow], *EXPLAINING[workflow])}


def _checked(study: Study) -> Study:
    """The study, if its evaluations are of one kind.

    Raises:
        StudyError: they are not; the message says what differs.
    """
    scores = study.scores
    for other in scores[1:]:
        here, there = asked(scores[0], study.workflow), asked(other, study.workflow)
        different = [key for key in here if here[key] != there[key]]
        if set(different) & set(DECISIVE[study.workflow]):
            listed = "\n  ".join(f"{key}: {here[key]!r} and {there[key]!r}" for key in different)
            raise StudyError(
                f"{scores[0].folder} and {other.folder} cannot share a table:\n  {listed}\nEvaluate both in the "
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


def _read_loose(folder: Path) -> tuple[Workflow, SeedRun]:
    """An evaluation, a run, or a folder with both in it."""
    if (folder / "items.jsonl").is_file() or (folder / "settings.json").is_file():
        return "sft", read_seed(None, folder / RUN, folder)
    run = folder if RunFolder(folder).recipe.is_file() else folder / RUN
    if run.is_dir() or (folder / EVALUATION).is_dir():
        workflow = workflow_of(run)
        return workflow, read_seed(None, run, folder / EVALUATION, workflow)
    raise StudyError(
        f"{folder} holds no study of afa reproduce ({STUDY}), no run of afa sft or afa grpo (recipe.yaml) and no "
        "evaluation of afa eval (settings.json)."
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [[part for part in folder.resolve().parts if part not in (RUN, EVALUATION)] for folder in folders]
    for length in range(1, max(map(len, parts), default=0)):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _is_harness(folder: Path) -> bool:
    results = read_json(folder / RESULTS) if (folder / RESULTS).is_file() else None
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
