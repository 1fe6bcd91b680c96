"""What one arm of an experiment takes: its data, its training and its test, by workflow."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import torch
from rich.console import Console

from afa_lora.data import fingerprint, load_data
from afa_lora.data.commonsense import CommonsenseItem, read_tests
from afa_lora.data.commonsense.sets import items_fingerprint
from afa_lora.data.load import load_prompts
from afa_lora.data.prompts import drop_long
from afa_lora.evaluation.commonsense import evaluate_commonsense
from afa_lora.evaluation.loading import load_evaluated
from afa_lora.grpo import recipe as grpo
from afa_lora.models import read_parts
from afa_lora.reproduce.jobs import Experiment, Job
from afa_lora.reproduce.scales import SftScale
from afa_lora.sft import Recipe, run_sft
from afa_lora.tuning.loading import model_options, training_precision, use_chat_template


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


WORK: dict[str, type[SftWork] | type[GrpoWork]] = {"sft": SftWork, "grpo": GrpoWork}


def _of_sft(job: Job) -> Recipe:
    assert isinstance(job.recipe, Recipe)
    return job.recipe


def _of_grpo(job: Job) -> grpo.Recipe:
    assert isinstance(job.recipe, grpo.Recipe)
    return job.recipe


def free_memory() -> None:
    """Give back what the training before held: there may be no room for a second model beside it."""
    gc.collect()
    torch.cuda.empty_cache()
