"""The ``data`` section of a recipe: one class for each kind of source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from afa_lora.settings.section import Section


class _Source(Section):
    system: str | None = None
    """A system message to put before every prompt; an empty one is allowed. Without it the chat template decides."""
    test_items: NonNegativeInt | None = None
    """How many items to test on: the first ones of ``test``, or so many held out of the training items. Without a
    number: 100 or as many as there are, of held-out ones a tenth of all if that is less. A task makes 100."""
    seed: int = 0
    """Decides which items a task makes, or which records are held out of the training items."""


class TaskData(_Source):
    """A task of reasoning-gym."""

    source: Literal["reasoning-gym"]
    task: str
    """The task's name, such as ``chain_sum``."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The task's own settings, such as ``min_terms``."""
    train_items: PositiveInt = 1000
    """How many items to train on."""


class RecordData(_Source):
    """What files and hub data sets have in common: records, whose columns tell their form."""

    columns: dict[str, str] = Field(default_factory=dict)
    """New names for columns, as ``prompt: question``: what is called ``question`` there is the ``prompt``."""
    form: Literal["prompt-completion", "messages", "instruction", "sharegpt"] | None = None
    """The form of the records, where their columns fit more than one; `afa_lora.data.forms.read_record` lists them."""
    train_items: PositiveInt | None = None
    """Take only so many training items: the first ones, or, where test items are held out, as many drawn with
    ``seed``."""


class FileData(RecordData):
    """JSON, JSONL, CSV or Parquet files, or folders of them. Paths are relative to where you are."""

    source: Literal["file"]
    train: Path
    """The file or folder to train on."""
    test: Path | None = None
    """The file or folder to test on; without it, whole records are held out of the training items, together with all
    that share a prompt with them."""


class HubData(RecordData):
    """A data set of the Hugging Face Hub, or any other that `datasets.load_dataset` finds."""

    source: Literal["hub"]
    name: str
    """The data set's id."""
    config: str | None = None
    """The data set's configuration, where it has several."""
    train: str = "train"
    """The split to train on."""
    test: str | None = None
    """The split to test on; without it, whole records are held out of the training split, together with all that share
    a prompt with them."""


class CommonsenseData(_Source):
    """The eight commonsense tasks in the form of LLM-Adapters, from a folder, a file or the hub. Train items that are
    also in a test set are left out."""

    source: Literal["commonsense"]
    folder: Path | None = None
    """The folder of the tasks: ``<task>/train.json`` and ``<task>/test.json``, or the original files. Without it and
    ``file``: the hub's original data sets."""
    file: Path | None = None
    """Train on this file, ``commonsense_170k.json`` or one of that form; the test sets are those of ``folder``, or else
    of the hub."""
    tasks: list[str] | None = None
    """The tasks' names, such as ``ARC-Easy``; unless given, all whose train set is there."""
    train_items: PositiveInt | None = None
    """Take only so many training items, of all tasks together, drawn with ``seed``."""
    test_items: NonNegativeInt = 0
    """How many items of each task to test on, drawn from its test set by a fixed seed; ``afa eval`` tests on all."""
    seed: int = 0
    """The order of the training items."""

    @model_validator(mode="after")
    def _one_choice(self) -> CommonsenseData:
        if self.file is not None and self.tasks is not None:
            raise ValueError("tasks is for a folder or the hub: the items of a file do not say their task")
        return self


class Gsm8kData(_Source):
    """GSM8K, grade-school word problems whose answer is a number: from a folder, or from the hub."""

    source: Literal["gsm8k"]
    folder: Path | None = None
    """The folder with ``train.jsonl`` and ``test.jsonl``, or files of that name of another kind; records have a
    ``question`` and an ``answer`` that ends in ``#### number``. Without it: ``openai/gsm8k`` of the hub."""
    instruction: str = 'Let\'s think step by step and output the final answer after "####".'
    """What follows each question, one space behind it; the default is verl's. An empty one adds nothing."""
    train_items: PositiveInt | None = None
    """Take only so many training items, drawn with ``seed``."""
    seed: int = 0
    """The order of the training items."""


DataSource = Annotated[TaskData | FileData | HubData | CommonsenseData, Field(discriminator="source")]
"""The ``data`` section of a recipe; ``source`` says which of the four it is."""
