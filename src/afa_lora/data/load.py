"""The ``data`` section of a recipe: three sources, one result."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated, Any, Literal

from datasets import load_dataset
from pydantic import Field, NonNegativeInt, PositiveInt

from afa_lora.data.files import read_samples
from afa_lora.data.records import DataError, Items, Sample, read_record
from afa_lora.data.settings import Section
from afa_lora.data.tasks import make_samples

TEST_SEED_OFFSET = 1_000_003  # keeps a task's test items away from the train items of nearby seeds


class _Source(Section):
    system: str | None = None
    """A system message to put before every prompt; an empty one is allowed. Without it the chat template decides."""
    test_items: NonNegativeInt = 100
    """How many items to test on."""
    seed: int = 0
    """Decides which items a task makes, or which items are held out of the training items."""


class TaskData(_Source):
    """A task of reasoning-gym."""

    source: Literal["reasoning-gym"]
    task: str
    """The task's name, such as ``chain_sum``."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The task's own settings, such as ``min_terms``."""
    train_items: PositiveInt = 1000
    """How many items to train on."""


class FileData(_Source):
    """JSON or JSONL files; `afa_lora.data.records.read_record` lists the forms. Paths are relative to where you are."""

    source: Literal["file"]
    train: Path
    """The file to train on."""
    test: Path | None = None
    """The file to test on; without it, test items are held out of the training file."""
    train_items: PositiveInt | None = None
    """Take only the first so many training items."""


class HubData(_Source):
    """A data set of the Hugging Face Hub, or any other that `datasets.load_dataset` finds."""

    source: Literal["hub"]
    name: str
    """The data set's id."""
    config: str | None = None
    """The data set's configuration, where it has several."""
    train: str = "train"
    """The split to train on."""
    test: str | None = None
    """The split to test on; without it, test items are held out of the training split."""
    columns: dict[str, str] = Field(default_factory=dict)
    """New names for columns, as ``prompt: question``: what is called ``question`` there is the ``prompt``."""
    train_items: PositiveInt | None = None
    """Take only the first so many training items."""


DataSource = Annotated[TaskData | FileData | HubData, Field(discriminator="source")]


def load_data(source: TaskData | FileData | HubData) -> Items:
    """Load the training and test items that a recipe asks for.

    Raises:
        DataError: what is missing or malformed, and where.
    """
    if isinstance(source, TaskData):
        return _from_task(source)
    if isinstance(source, FileData):
        train = read_samples(source.train, source.system)
        test = read_samples(source.test, source.system) if source.test else None
    else:
        train = _read_split(source, source.train)
        test = _read_split(source, source.test) if source.test else None
    return _split(train, test, source)


def _from_task(source: TaskData) -> Items:
    seen: set[str] = set()
    test_seed = source.seed + TEST_SEED_OFFSET
    test = make_samples(source.task, source.options, source.test_items, test_seed, source.system, seen)
    train = make_samples(source.task, source.options, source.train_items, source.seed, source.system, seen)
    return Items(train, test)


def _split(train: list[Sample], test: list[Sample] | None, source: FileData | HubData) -> Items:
    """Cut both lists to the wanted lengths; drop training items whose prompt is tested on."""
    if test is None:
        shuffled = random.Random(source.seed).sample(train, len(train))
        test, train = shuffled[: source.test_items], shuffled[source.test_items :]
    if len(test) < source.test_items:
        raise DataError(f"data.test_items={source.test_items}, but there are only {len(test)} items to test on.")
    test = test[: source.test_items]
    tested = {str(sample.prompt) for sample in test}
    train = [sample for sample in train if str(sample.prompt) not in tested][: source.train_items]
    if len(train) < (source.train_items or 1):
        raise DataError(f"data.train_items={source.train_items or 1}, but there are only {len(train)} to train on.")
    return Items(train, test)


def _read_split(source: HubData, split: str) -> list[Sample]:
    try:
        rows = load_dataset(source.name, source.config, split=split)
    except (OSError, ValueError) as error:
        raise DataError(f"data.name={source.name!r}, split {split!r}, cannot be loaded: {error}") from error
    old_to_new = {old: new for new, old in source.columns.items()}
    missing = set(old_to_new) - set(rows.column_names)
    if missing:
        raise DataError(f"data.columns names {sorted(missing)}, but {source.name} has {rows.column_names}.")
    samples: list[Sample] = []
    for number, row in enumerate(rows.rename_columns(old_to_new)):
        try:
            samples += read_record(row, source.system)
        except DataError as error:
            raise DataError(f"{source.name}, split {split!r}, item {number}: the record {error}.") from error
    return samples
