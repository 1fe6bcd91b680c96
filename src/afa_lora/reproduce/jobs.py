"""From a scale and its arms to one recipe and one folder for each arm and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afa_lora import sft
from afa_lora.core.errors import InvalidSettingError, unknown_name
from afa_lora.data.sources import Gsm8kData
from afa_lora.eagle import recipe as eagle
from afa_lora.grpo import recipe as grpo
from afa_lora.reproduce.families import family_of
from afa_lora.reproduce.runs import EVALUATION, RESULTS, RUN
from afa_lora.reproduce.scales import EagleScale, GrpoScale, Scale, SftScale, VerlScale
from afa_lora.reproduce.study import ArmSettings, StudySettings
from afa_lora.reproduce.suite import Suite, merged, read_suite, slug
from afa_lora.tuning.folder import RunFolder
from afa_lora.tuning.recipe import TuningRecipe

PARSERS = {"sft": sft.parse_recipe, "grpo": grpo.parse_recipe, "eagle": eagle.parse_recipe}


FEATURES = "features"  # of the target, which the arms of EAGLE share
CONVERSATIONS, QUESTIONS = "conversations", "eagle"  # in the folder of their data


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
    recipe: TuningRecipe
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
        """Whether training and evaluation are finished; a run of ``afa grpo`` tests itself."""
        return self.trained and (isinstance(self.recipe, grpo.Recipe) or (self.evaluation / RESULTS).is_file())


@dataclass(frozen=True)
class Experiment:
    """Arms and seeds of a suite at one scale, with the settings that the command line has changed.

    Attributes:
        artifact: the table or figure, as the command names it.
        suite: its file.
        scale_name: the scale's name.
        scale: the scale.
        folder: where everything is written.
        data: the folder of the data; ``None`` takes them from the hub.
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
    def arms(self) -> dict[str, TuningRecipe]:
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
            workflow=self.suite.workflow,
            protocol=self.scale.evaluate.protocol if isinstance(self.scale, SftScale) else None,
            deviations=self.deviations,
            seeds=self.seeds,
            arms=[self._describe(name, recipes[name]) for name in self.suite.arm_names if name in recipes],
        )

    def _describe(self, name: str, recipe: TuningRecipe) -> ArmSettings:
        settings = recipe.model_dump(mode="json", include={*self.scale.recipe_keys})
        del settings["train"]["seed"]
        settings.get("features", {}).pop("folder", None)
        if not recipe.anneals:
            del settings["anneal"]
        return ArmSettings(
            name=name,
            slug=slug(name),
            method=recipe.method,
            family=family_of(recipe.method),
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
        data: the folder of the eight tasks and of ``data.file``, that of GSM8K, or one with ``conversations`` and
            ``eagle`` in it; ``None`` takes them from the hub.
        arms: names of arms, or of their folders; the scale's own unless given.
        seeds: the scale's own unless given.
        overrides: settings of the scale to change, such as ``train.learning_rate=1e-4``.

    Raises:
        RecipeError: the file or an override is wrong; one line for each mistake.
        InvalidSettingError: there is no such scale or arm, the data have no such place, or verl runs the scale.
    """
    if data is not None and not data.is_dir():
        raise InvalidSettingError(f"--data {data}: there is no such folder (looked for it in {Path.cwd()}).")
    suite, scale = read_suite(path, scale_name, overrides)
    if isinstance(scale, VerlScale):
        raise InvalidSettingError(
            f"The scale {scale_name!r} of {path.stem} is run by verl, not from here: --dry-run prints the command of "
            "each arm, to be launched on the machines that have the GPUs."
        )
    jobs = []
    for seed in dict.fromkeys(seeds or scale.seeds):
        for name in chosen_arms(suite, arms or scale.arms):
            place = folder / slug(name) / f"seed-{seed}"
            settings = _settings(suite, scale, name, data) | {"output": place / RUN}
            if isinstance(scale, EagleScale):
                settings["features"] = {**settings.get("features", {}), "folder": folder / FEATURES}
            settings["train"] = {**settings["train"], "seed": seed}
            jobs.append(Job(name, seed, PARSERS[suite.workflow](settings, f"{path}, arm {name}"), place))
    return Experiment(path.stem, suite, scale_name, scale, folder, data, tuple(jobs))


def chosen_arms(suite: Suite, names: Sequence[str]) -> list[str]:
    """The arms of these names, however they are written, in the suite's order; all of them if none is named.

    Raises:
        InvalidSettingError: there is no such arm.
    """
    chosen = [_arm(suite, name) for name in names] or suite.arm_names
    return [name for name in suite.arm_names if name in chosen]


def _arm(suite: Suite, name: str) -> str:
    """The arm of that name, however it is written (``afa-lora a-s-b`` is ``AFA-LoRA A-σ-B``), or the only one of that
    method."""
    for known in suite.arm_names:
        if slug(known) == slug(name):
            return known
    of_method = [known for known in suite.arm_names if suite.arm(known).method == name]
    if len(of_method) == 1:
        return of_method[0]
    raise unknown_name("--arms", name, suite.arm_names)


def _settings(suite: Suite, scale: Scale, name: str, data: Path | None) -> dict[str, Any]:
    """The recipe of an arm, without its seed and its output."""
    arm = suite.arm(name)
    keys = {*scale.recipe_keys} | ({"evaluate"} if isinstance(scale, GrpoScale) else set())
    settings = scale.model_dump(include=keys, exclude_unset=True)
    changes = scale.changes(arm.method).model_dump(exclude_unset=True)
    settings = merged(merged(settings, changes), arm.model_dump(include={"anneal"}, exclude_unset=True))
    settings["train"] = settings.get("train", {})
    if data is not None:
        settings["data"] |= _placed(scale, data)
    if isinstance(scale, EagleScale):
        return settings | {"method": arm.method}
    # What is tested is the arm, once: an adapter is merged in memory or is as good as merged, with β = 0.
    return settings | {
        "method": arm.method,
        "merge": False,
        "evaluate": {**settings.get("evaluate", {}), "before": False},
    }


def _placed(scale: Scale, data: Path) -> dict[str, Any]:
    """Where the data are, as the recipe says it.

    Raises:
        InvalidSettingError: they are none that have a folder.
    """
    if isinstance(scale, SftScale):
        return {"folder": data} | ({"file": data / scale.data.file} if scale.data.file is not None else {})
    if isinstance(scale, GrpoScale) and isinstance(scale.data, Gsm8kData):
        return {"folder": data}
    if isinstance(scale, EagleScale):
        folder = data / CONVERSATIONS
        there = sorted(folder.glob("sharegpt*")) or [folder]  # files of other data may lie beside ShareGPT's
        return {"conversations": list(map(str, there))} if folder.is_dir() else {}
    raise InvalidSettingError(
        f"--data {data}: this scale does not read a folder; its data are said by its settings data.*. Leave it out."
    )
