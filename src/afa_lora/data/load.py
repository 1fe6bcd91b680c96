"""Three kinds of source, one result. What is read, and what is left out of it, is said."""

from __future__ import annotations

import random
from collections.abc import Callable

from afa_lora.data.files import read_files
from afa_lora.data.hub import read_split
from afa_lora.data.records import DataError, Items, Sample, leaving_out
from afa_lora.data.sources import FileData, HubData, TaskData
from afa_lora.data.tasks import make_samples

TEST_SEED_OFFSET = 1_000_003  # keeps a task's test items away from the train items of nearby seeds


def load_data(source: TaskData | FileData | HubData, report: Callable[[str], None] = print) -> Items:
    """Load the training and test items that a recipe asks for.

    Args:
        source: the recipe's ``data`` section.
        report: takes one line for each file or split that is read, and one for what becomes of the items.

    Raises:
        DataError: what is missing or malformed, and where.
    """
    if isinstance(source, TaskData):
        return _from_task(source, report)
    if isinstance(source, FileData):
        train = read_files(source.train, source, report)
        test = read_files(source.test, source, report) if source.test else None
    else:
        train = read_split(source, source.train, report)
        test = read_split(source, source.test, report) if source.test else None
    return _split(train, test, source, report)


def _from_task(source: TaskData, report: Callable[[str], None]) -> Items:
    seen: set[str] = set()
    test_seed = source.seed + TEST_SEED_OFFSET
    test = make_samples(source.task, source.options, source.test_items, test_seed, source.system, seen)
    train = make_samples(source.task, source.options, source.train_items, source.seed, source.system, seen)
    report(f"{source.task}: {len(train)} items to train on and {len(test)} to test on, made with seed {source.seed}.")
    return Items(train, test)


def _split(
    train: list[Sample], test: list[Sample] | None, source: FileData | HubData, report: Callable[[str], None]
) -> Items:
    """Cut both lists to the wanted lengths; drop training items whose prompt is tested on."""
    origin = "" if test is not None or not source.test_items else f", held out with seed {source.seed}"
    if test is None:
        _check_test_items(source.test_items, len(train), len(train) - 1)
        shuffled = random.Random(source.seed).sample(train, len(train))
        test, train = shuffled[: source.test_items], shuffled[source.test_items :]
    _check_test_items(source.test_items, len(test), len(test))
    tested = {str(sample.prompt) for sample in test[: source.test_items]}
    untested = [sample for sample in train if str(sample.prompt) not in tested]
    _check_train_items(source.train_items, len(untested), len(train))
    items = Items(untested[: source.train_items], test[: source.test_items])
    left_out = {
        "training items whose prompt is also tested on": len(train) - len(untested),
        f"training items beyond data.train_items={source.train_items}": len(untested) - len(items.train),
        f"test items beyond data.test_items={source.test_items}": len(test) - len(items.test),
    }
    report(f"{len(items.train)} items to train on, {len(items.test)} to test on{origin}{leaving_out(left_out)}.")
    return items


def _check_test_items(wanted: int, there: int, most: int) -> None:
    if wanted > most:
        held_out = "" if there == most else ", of which at least one must be left to train on"
        raise DataError(
            f"data.test_items={wanted}, but there are only {there} items{held_out}. "
            f"Set data.test_items to {most} or less; 0 tests on none."
        )


def _check_train_items(wanted: int | None, there: int, read: int) -> None:
    if not there:
        raise DataError(
            f"There is nothing to train on: the prompts of all {read} training items are also tested on. "
            "Name another data.train or data.test."
        )
    if wanted is not None and there < wanted:
        raise DataError(
            f"data.train_items={wanted}, but there are only {there} to train on. "
            f"Set data.train_items to {there} or less, or leave it out to take all."
        )
