"""Run the arms of an experiment one after the other: each is an ordinary run of its workflow, and a test.

Any number of processes may do so in the same folder: each takes the next arm that nobody holds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from rich.console import Console

from afa_lora.core.errors import AfaLoraError
from afa_lora.eagle.evaluation.run import DraftEvaluationStopped
from afa_lora.evaluation.commonsense.run import EvaluationStopped
from afa_lora.files import remove_leftovers, write_atomic
from afa_lora.report.curves import mean_curve, plot_curves
from afa_lora.report.rewards import plot_rewards
from afa_lora.report.tables import terminal_table
from afa_lora.reproduce.jobs import Experiment, Job
from afa_lora.reproduce.record import LOCK, check_data, record
from afa_lora.reproduce.report import LOSS_LABELS, make_report
from afa_lora.reproduce.rewards import mean_reward_curve
from afa_lora.reproduce.runs import FAILURE, RESULTS
from afa_lora.reproduce.study import Study, read_study
from afa_lora.reproduce.work import WORK, Work
from afa_lora.running.stopping import terminable
from afa_lora.tuning.failures import RunInterrupted

PAGE, TABLE = "report.html", "table.md"


def run_experiment(experiment: Experiment, console: Console | None = None) -> dict[str, str]:
    """Train and evaluate every arm with every seed, as far as that is not done, and report.

    A part that is done is skipped, one that was interrupted goes on. An arm that fails is told and the others go on. Of
    several processes that call this with the same folder each takes the next arm that nobody holds; the last one to
    end reports on all.

    Args:
        experiment: from `load_experiment`.
        console: where progress goes; standard output unless given.

    Returns:
        what has failed here, and why.

    Raises:
        StudyError: the folder holds another study, or arms of other data.
        DataError: the data cannot be read.
        RunInterrupted, EvaluationStopped, DraftEvaluationStopped: Ctrl-C or SIGTERM.
    """
    record(experiment)
    runner = _Runner(experiment, console or Console())
    try:
        with terminable():
            runner.run_all()
    except KeyboardInterrupt:
        raise RunInterrupted("Interrupted. The same command again goes on where it was.") from None
    _report(experiment, runner.console)
    return runner.failures


@dataclass
class _Runner:
    """The arms of one process."""

    experiment: Experiment
    console: Console
    failures: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.time)

    def run_all(self) -> None:
        """Take jobs until none is left that nobody holds."""
        left = list(self.experiment.jobs)
        self.check_data()
        while taken := [job for job in left if self.take(job)]:
            left = [job for job in left if job not in taken]
        for job in left:
            self.say(f"{job}: another process is at it.")
        if self.failures:  # whoever has launched the processes together would end the others with the first that fails
            for job in left:
                with FileLock(job.folder / LOCK):
                    pass

    def check_data(self) -> None:
        """Read the data before anything is trained: they may not be there, or not be those of the finished arms."""
        if not all(job.done for job in self.experiment.jobs):
            check_data(self.experiment.folder, *self.work.fingerprints())

    def take(self, job: Job) -> bool:
        """Do a job unless another process holds it; returns whether nothing is left to do here."""
        with _held(job.folder) as free:
            if not free:
                return False
            if job.done:
                self.say(f"{job}: done already.")
            elif _failed_since(job, self.started):
                self.say(f"{job}: it has failed in another process; it is not tried again now.")
            else:
                self.do(job)
            return True

    def do(self, job: Job) -> None:
        """Train and evaluate; a failure that the user can mend is kept for the end."""
        number = self.experiment.jobs.index(job) + 1
        self.console.rule(f"{number}/{len(self.experiment.jobs)}  {job}")
        failure = job.folder / FAILURE
        failure.unlink(missing_ok=True)
        remove_leftovers(job.folder)
        try:
            self.work.do(job)
        except (RunInterrupted, EvaluationStopped, DraftEvaluationStopped):
            raise
        except (AfaLoraError, torch.OutOfMemoryError) as error:
            self.failures[str(job)] = str(error)
            write_atomic(failure, json.dumps({"time": time.time(), "message": str(error)}, ensure_ascii=False) + "\n")
            self.say(f"{job} has failed: {error}")

    @cached_property
    def work(self) -> Work:
        """How these arms are trained and tested."""
        return WORK[self.experiment.suite.workflow](self.experiment, self.console, self.say)

    def say(self, text: str) -> None:
        """Print a line as it is: paths and other people's messages may hold square brackets."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _report(experiment: Experiment, console: Console) -> None:
    """Write what there is by now; of several processes the last one to end finds all of it there."""
    folder, figure = experiment.folder, experiment.suite.figure
    with FileLock(folder / LOCK):
        made = make_report([folder])
        for name, content in ((PAGE, made.page), (TABLE, made.markdown), (RESULTS, made.json)):
            write_atomic(folder / name, content)
        if figure is not None:
            _plot(read_study(folder), folder / figure)
    for study in made.numbers["studies"]:
        console.print(terminal_table(study))
        for sentence in study["outcome"]:
            console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    for name in (PAGE, TABLE, RESULTS, *([figure] if figure else [])):
        console.print(folder / name, markup=False, highlight=False, soft_wrap=True)


def _plot(study: Study, path: Path) -> None:
    """The suite's own figure: losses, or rewards, of all arms."""
    trained = {arm.name: arm.trainings for arm in study.arms if arm.trainings}
    if study.workflow == "grpo":
        rewards = {name: [t.rewards.curve for t in trainings if t.rewards] for name, trainings in trained.items()}
        plot_rewards([mean_reward_curve(name, curves) for name, curves in rewards.items()], path)
    else:
        curves = [mean_curve(name, [t.curve for t in trainings]) for name, trainings in trained.items()]
        plot_curves(curves, path, LOSS_LABELS[study.workflow])


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Hold the folder of a job while the block runs; yields whether nobody else does."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _failed_since(job: Job, start: float) -> bool:
    """Whether another process has tried a job in vain since this one began."""
    failure = job.folder / FAILURE
    return failure.is_file() and json.loads(failure.read_text(encoding="utf-8"))["time"] > start
