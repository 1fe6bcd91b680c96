"""From a scale and its arms to one recipe and one folder for each arm and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afa_lora.core.errors import InvalidSettingError, unknown_name
from afa_lora.evaluation.commonsense import EvaluationSettings
from afa_lora.reproduce.study import EVALUATION, RESULTS, RUN, ArmSettings, StudySettings
from afa_lora.reproduce.suite import Scale, Suite, merged, read_suite, slug
from afa_lora.sft import Recipe, parse_recipe
from afa_lora.tuning.folder import RunFolder

SHARED = ("model", "data", "load", "adapter", "anneal", "train")  # what a scale has of a recipe


@dataclass(frozen=True)
class Job:
    """One arm with one seed.

    Attributes:
        arm: the arm's name.
        seed: of the training.
        recipe: what is trained; its ``output`` is `run`.
        folder: where training and evaluation lie.
    """

    arm: str
    seed: int
    recipe: Recipe
    folder: Path

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    @property
    def run(self) -> RunFolder:
        """The folder of the training."""
        return RunFolder(self.recipe.output)

    @property
    def evaluation(self) -> Path:
        """The folder of the evaluation."""
        return self.folder / EVALUATION

    @property
    def trained(self) -> bool:
        """Whether the training is finished."""
        return self.run.results.is_file()

    @property
    def done(self) -> bool:
        """Whether training and evaluation are finished."""
        return self.trained and (self.evaluation / RESULTS).is_file()


@dataclass(frozen=True)
class Experiment:
    """Arms and seeds of a suite at one scale, with the settings that the command line has changed.

    Attributes:
        artifact: the table or figure, as the command names it.
        suite: its file.
        scale_name: the scale's name.
        scale: the scale.
        folder: where everything is written.
        data: the folder of the eight tasks; ``None`` takes them from the hub.
        jobs: what is run, seed by seed: a table with one seed comes before any second one.
    """

    artifact: str
    suite: Suite
    scale_name: str
    scale: Scale
    folder: Path
    data: Path | None
    jobs: tuple[Job, ...]

    @property
    def evaluate(self) -> EvaluationSettings:
        """How each arm is tested."""
        return self.scale.evaluate

    @property
    def arms(self) -> dict[str, Recipe]:
        """A recipe for each arm: that of its first seed."""
        first = self.jobs[0].seed
        return {job.arm: job.recipe for job in self.jobs if job.seed == first}

    @property
    def seeds(self) -> list[int]:
        """The seeds of each arm."""
        return list(dict.fromkeys(job.seed for job in self.jobs))

    @property
    def deviations(self) -> list[str]:
        """What differs from the paper."""
        return [*self.suite.deviations, *self.scale.deviations]

    def describe(self) -> StudySettings:
        """What ``study.json`` says."""
        recipes = self.arms
        return StudySettings(
            artifact=self.artifact,
            title=self.suite.title,
            paper=self.suite.paper,
            scale=self.scale_name,
            protocol=self.evaluate.protocol,
            deviations=self.deviations,
            seeds=self.seeds,
            arms=[self._describe(name, recipes[name]) for name in self.suite.arm_names if name in recipes],
        )

    def _describe(self, name: str, recipe: Recipe) -> ArmSettings:
        settings = recipe.model_dump(mode="json", include={*SHARED})
        del settings["train"]["seed"]
        if not recipe.anneals:
            del settings["anneal"]
        return ArmSettings(
            name=name,
            slug=slug(name),
            method=recipe.method,
            family=recipe.method.removeprefix("afa-"),  # type: ignore[arg-type]
            settings=settings,
            paper=dict(zip(self.suite.columns, self.suite.arm(name).paper, strict=False)),
        )


def load_experiment(
    path: Path,
    scale_name: str,
    folder: Path,
    data: Path | None = None,
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    overrides: Sequence[str] = (),
) -> Experiment:
    """Read a suite and lay out its jobs.

    Args:
        path: the suite's file; its name is the artifact's.
        scale_name: one of its scales.
        folder: where everything will be written.
        data: the folder of the eight tasks and of ``data.file``; ``None`` takes the tasks from the hub.
        arms: names of arms, or of their folders; the scale's own unless given.
        seeds: the scale's own unless given.
        overrides: settings of the scale to change, such as ``train.learning_rate=1e-4``.

    Raises:
        RecipeError: the file or an override is wrong; one line for each mistake.
        InvalidSettingError: there is no such scale or arm, or the data have no such place.
    """
    if data is not None and not data.is_dir():
        raise InvalidSettingError(f"--data {data}: there is no such folder (looked for it in {Path.cwd()}).")
    suite, scale = read_suite(path, scale_name, overrides)
    chosen = [_arm(suite, name) for name in arms] or scale.arms or suite.arm_names
    ordered = [name for name in suite.arm_names if name in chosen]
    jobs = []
    for seed in dict.fromkeys(seeds or scale.seeds):
        for name in ordered:
            place = folder / slug(name) / f"seed-{seed}"
            settings = _settings(suite, scale, name, data) | {"output": place / RUN}
            settings["train"] = {**settings["train"], "seed": seed}
            jobs.append(Job(name, seed, parse_recipe(settings, f"{path}, arm {name}"), place))
    return Experiment(path.stem, suite, scale_name, scale, folder, data, tuple(jobs))


def _arm(suite: Suite, name: str) -> str:
    """The arm of that name, however it is written: ``afa-lora a-s-b`` is ``AFA-LoRA A-σ-B``."""
    for known in suite.arm_names:
        if slug(known) == slug(name):
            return known
    raise unknown_name("--arms", name, suite.arm_names)


def _settings(suite: Suite, scale: Scale, name: str, data: Path | None) -> dict[str, Any]:
    """The recipe of an arm, without its seed and its output."""
    arm = suite.arm(name)
    settings = scale.model_dump(include={*SHARED}, exclude_unset=True)
    changes = scale.changes(arm.method).model_dump(exclude_unset=True)
    settings = merged(merged(settings, changes), arm.model_dump(include={"anneal"}, exclude_unset=True))
    settings["train"] = settings.get("train", {})
    if data is not None:
        settings["data"]["folder"] = data
        if scale.data.file is not None:
            settings["data"]["file"] = data / scale.data.file
    # The evaluation merges the adapter in memory and tests the arm, so that the run need not.
    return settings | {"method": arm.method, "merge": False, "evaluate": {"before": False}}
