"""What one arm of an experiment takes: its data, its training and its test, by workflow."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from filelock import FileLock, Timeout
from rich.console import Console

from afa_lora.core.errors import InvalidSettingError
from afa_lora.data import fingerprint, load_data
from afa_lora.data.commonsense import CommonsenseItem, read_tests
from afa_lora.data.commonsense.sets import items_fingerprint
from afa_lora.data.load import load_prompts
from afa_lora.data.prompts import drop_long
from afa_lora.eagle import recipe as eagle
from afa_lora.evaluation.commonsense import evaluate_commonsense
from afa_lora.evaluation.loading import load_evaluated
from afa_lora.grpo import recipe as grpo
from afa_lora.models import read_parts
from afa_lora.reproduce.drafts import UNTRAINED, questions_fingerprint, write_accepted
from afa_lora.reproduce.jobs import FEATURES, QUESTIONS, Experiment, Job
from afa_lora.reproduce.runs import StudyError
from afa_lora.reproduce.scales import EagleScale, SftScale
from afa_lora.sft import Recipe, run_sft
from afa_lora.tuning.loading import model_options, training_precision, use_chat_template

if TYPE_CHECKING:
    from afa_lora.eagle.evaluation.questions import Question

ANSWERS = "answers"  # of the target, which the drafts of a study are scored on


class Work(Protocol):
    """How the arms of a workflow are trained and tested."""

    def fingerprints(self) -> tuple[str | None, str]:
        """Read the data. Returns the fingerprints of what is still to be trained on, if anything, and of the tests."""

    def do(self, job: Job) -> None:
        """Train and test, as far as that is not done."""


class SftWork:
    """A run of ``afa sft`` and an evaluation on the eight tasks.

    Args:
        experiment: whose arms these are.
        console: where progress goes.
        say: prints a line as it is.
    """

    def __init__(self, experiment: Experiment, console: Console, say: Callable[[str], None]) -> None:
        assert isinstance(experiment.scale, SftScale)
        self.experiment, self.asked, self.console, self.say = experiment, experiment.scale.evaluate, console, say

    def fingerprints(self) -> tuple[str | None, str]:
        jobs, train = self.experiment.jobs, None
        self.say(f"{len(self.tests):,} test items.")
        if not all(job.trained for job in jobs):
            recipe = _of_sft(jobs[0])
            train = fingerprint(load_data(recipe.data, lambda line: None).train)  # each training says the lines
        return train, items_fingerprint(self.tests)

    def do(self, job: Job) -> None:
        if job.trained:
            self.say("Trained already.")
        else:
            run_sft(_of_sft(job), self.console)
        self.evaluate(job)

    def evaluate(self, job: Job) -> None:
        """Put the eight tasks to the trained model."""
        free_memory()
        dtype = str(training_precision(job.recipe).compute).removeprefix("torch.")  # the same for every arm
        model, tokenizer = load_evaluated(str(job.run.path), dtype=dtype, report=self.say)
        adapter = None if job.recipe.method == "full" else str(job.run.adapter)
        named = {"model": job.recipe.model if adapter else str(job.run.model), "adapter": adapter}
        settings = self.asked.model_copy(update=named)
        evaluate_commonsense(model, tokenizer, self.tests, settings, job.evaluation, self.console)
        del model
        free_memory()

    @cached_property
    def tests(self) -> list[CommonsenseItem]:
        """The test items, the same for every arm."""
        return read_tests(self.experiment.data, self.asked.tasks, self.asked.limit, self.say)


class GrpoWork:
    """A run of ``afa grpo``, which tests itself; the arguments are those of `SftWork`."""

    def __init__(self, experiment: Experiment, console: Console, say: Callable[[str], None]) -> None:
        self.experiment, self.console, self.say = experiment, console, say

    def fingerprints(self) -> tuple[str | None, str]:
        jobs = self.experiment.jobs
        recipe = _of_grpo(jobs[0])
        items = load_prompts(recipe.data, lambda line: None)  # each training says the lines
        train, test = items.train, items.test
        limit, tokenizer = recipe.max_prompt_length, read_parts(recipe.model, **model_options(recipe)).tokenizer
        if limit is not None and tokenizer is not None:  # a training refuses a model without one
            use_chat_template(recipe, tokenizer)
            train, test = (drop_long(part, tokenizer, limit)[0] for part in (train, test))
        self.say(f"{len(test):,} test items.")
        return None if all(job.trained for job in jobs) else fingerprint(train), fingerprint(test)

    def do(self, job: Job) -> None:
        from afa_lora.grpo.run import run_grpo  # what samples is read only where something is sampled

        run_grpo(_of_grpo(job), self.console)
        free_memory()


class EagleWork:
    """A run of ``afa eagle train`` and an evaluation of ``afa eagle eval``; the arms share features and answers of the
    target. The arguments are those of `SftWork`."""

    def __init__(self, experiment: Experiment, console: Console, say: Callable[[str], None]) -> None:
        assert isinstance(experiment.scale, EagleScale)
        self.experiment, self.asked, self.console, self.say = experiment, experiment.scale.evaluate, console, say

    def fingerprints(self) -> tuple[str | None, str]:
        from afa_lora.eagle.features import FeatureStore, write_features

        jobs, train = self.experiment.jobs, None
        tests = questions_fingerprint(self.questions)  # read first: the features take long
        if not all(job.trained for job in jobs):
            folder = self.experiment.folder / FEATURES
            with self.alone_at(FEATURES):
                write_features(_of_eagle(jobs[0]), self.console)
            train = FeatureStore.open(folder, "train").digest
        return train, tests

    def do(self, job: Job) -> None:
        from afa_lora.eagle.run import run_eagle

        if job.trained:
            self.say("Trained already.")
        else:
            run_eagle(_of_eagle(job), self.console)
        free_memory()
        self.evaluate(job)

    def evaluate(self, job: Job) -> None:
        """Count what the target accepts of the arm's draft and, once for all arms, of an untrained one."""
        from afa_lora.eagle.evaluation import evaluate_drafts

        if not job.run.draft.is_dir():
            raise StudyError(f"{job}: its draft was not merged, so it cannot decode. Train until β is 0.")
        folder = self.experiment.folder / ANSWERS
        with self.alone_at(ANSWERS):
            given = {UNTRAINED: UNTRAINED, str(job): str(job.run.path)}
            model = _of_eagle(job).model
            found = evaluate_drafts(given, model, self.question_folder, self.asked, folder, self.console)
            write_accepted(found, UNTRAINED, self.questions, self.experiment.folder / UNTRAINED)
        write_accepted(found, str(job), self.questions, job.evaluation)
        free_memory()

    @contextmanager
    def alone_at(self, name: str) -> Iterator[None]:
        """Hold what all arms share; another process that holds it is waited for."""
        lock = FileLock(self.experiment.folder / f".{name}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            self.say(f"Waiting for another process, which is at {self.experiment.folder / name}.")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @property
    def question_folder(self) -> Path:
        """Where the sets of questions are.

        Raises:
            InvalidSettingError: no folder was given.
        """
        if self.experiment.data is None:
            raise InvalidSettingError(
                f"--data is missing: the folder with {QUESTIONS}/SET/question.jsonl, the questions that the drafts are "
                "measured on. SafeAILab/EAGLE on GitHub has them as eagle/data."
            )
        return self.experiment.data / QUESTIONS

    @cached_property
    def questions(self) -> list[Question]:
        """The questions, the same for every arm."""
        from afa_lora.eagle.evaluation.questions import load_questions

        return load_questions(self.question_folder, self.asked.sets, self.asked.limit)


WORK: dict[str, type[SftWork] | type[GrpoWork] | type[EagleWork]] = {
    "sft": SftWork,
    "grpo": GrpoWork,
    "eagle": EagleWork,
}


def _of_sft(job: Job) -> Recipe:
    assert isinstance(job.recipe, Recipe)
    return job.recipe


def _of_grpo(job: Job) -> grpo.Recipe:
    assert isinstance(job.recipe, grpo.Recipe)
    return job.recipe


def _of_eagle(job: Job) -> eagle.Recipe:
    assert isinstance(job.recipe, eagle.Recipe)
    return job.recipe


def free_memory() -> None:
    """Give back what the training before held: there may be no room for a second model beside it."""
    gc.collect()
    torch.cuda.empty_cache()
