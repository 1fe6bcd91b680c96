"""Four kinds of source, one result. What is read, and what is left out of it, is said."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable

from afa_lora.data.commonsense import CommonsenseItem, read_mix, read_mix_file, read_tests
from afa_lora.data.files import read_files
from afa_lora.data.gsm8k import load_gsm8k
from afa_lora.data.hub import read_split
from afa_lora.data.records import DataError, Items, Record, Sample, counted, fingerprint, leaving_out
from afa_lora.data.sources import CommonsenseData, DataSource, FileData, Gsm8kData, HubData, TaskData
from afa_lora.data.tasks import make_samples

TEST_ITEMS = 100  # as many at most where data.test_items is not given
UNSET = " (data.test_items is not set)"
TEST_SEED_OFFSET = 1_000_003  # keeps a task's test items away from the train items of nearby seeds


def load_data(source: DataSource, report: Callable[[str], None] = print) -> Items:
    """Load the training and test items that a recipe asks for.

    Args:
        source: the recipe's ``data`` section.
        report: takes one line for each file or split that is read, and one for what becomes of the items.

    Raises:
        DataError: what is missing or malformed, and where.
    """
    if isinstance(source, TaskData):
        return _from_task(source, report)
    if isinstance(source, CommonsenseData):
        return _from_commonsense(source, report)
    if isinstance(source, FileData):
        train = read_files(source.train, source, report)
        test = read_files(source.test, source, report) if source.test else None
    else:
        train = read_split(source, source.train, report)
        test = read_split(source, source.test, report) if source.test else None
    if test is None:
        return _hold_out(train, source, report)
    return _keep_apart(_flat(train), _flat(test), source, report)


def load_prompts(source: TaskData | Gsm8kData | FileData | HubData, report: Callable[[str], None] = print) -> Items:
    """Load prompts and their right answers for reinforcement learning; arguments and errors are `load_data`'s."""
    return load_gsm8k(source, report) if isinstance(source, Gsm8kData) else load_data(source, report)


def _from_task(source: TaskData, report: Callable[[str], None]) -> Items:
    seen: set[str] = set()
    test_seed = source.seed + TEST_SEED_OFFSET
    wanted = TEST_ITEMS if source.test_items is None else source.test_items
    test = make_samples(source.task, source.options, wanted, test_seed, source.system, seen)
    train = make_samples(source.task, source.options, source.train_items, source.seed, source.system, seen)
    items = counted(len(train), "item(s)")
    report(f"{source.task}: {items} to train on and {len(test)} to test on, made with seed {source.seed}.")
    return Items(train, test)


def _from_commonsense(source: CommonsenseData, report: Callable[[str], None]) -> Items:
    if source.file is not None:
        mix = read_mix_file(source.file, source.folder, report)
    else:
        mix = read_mix(source.folder, source.tasks, report)
    tests = read_tests(source.folder, source.tasks, source.test_items, report) if source.test_items else []
    random.Random(source.seed).shuffle(mix)
    train = _cut([_to_sample(item, source.system) for item in mix], source.train_items)
    items = Items(train, [_to_sample(item, source.system) for item in tests])
    cut = {f"training item(s) beyond data.train_items={source.train_items}": len(mix) - len(train)}
    order = f"shuffled with seed {source.seed}, fingerprint {fingerprint(train)}"
    report(f"{_sizes(items)}, {order}{leaving_out(cut)}.")
    return items


def _to_sample(item: CommonsenseItem, system: str | None) -> Sample:
    user = {"role": "user", "content": item.instruction}
    prompt = (user,) if system is None else ({"role": "system", "content": system}, user)
    entry = {"task": item.task, "index": item.index, "answer": item.answer, "choices": item.choices}
    return Sample(prompt, item.output, entry)


def _keep_apart(
    train: list[Sample], test: list[Sample], source: FileData | HubData, report: Callable[[str], None]
) -> Items:
    """Cut both lists to the wanted lengths; drop training items whose prompt is tested on."""
    wanted = min(TEST_ITEMS, len(test)) if source.test_items is None else source.test_items
    if wanted > len(test):
        raise DataError(
            f"data.test_items={wanted}, but data.test has only {counted(len(test), 'item(s)')}. "
            f"Set data.test_items to {len(test)} or less; 0 tests on none."
        )
    tested = {str(sample.prompt) for sample in test[:wanted]}
    untested = [sample for sample in train if str(sample.prompt) not in tested]
    if not untested:
        raise DataError(
            f"There is nothing to train on: the prompts of all {counted(len(train), 'training item(s)')} are also "
            "tested on. Name another data.train or data.test."
        )
    items = Items(_cut(untested, source.train_items), test[:wanted])
    asked = f"the first {wanted}{UNSET}" if source.test_items is None else f"data.test_items={wanted}"
    left_out = {
        "training item(s) whose prompt is also tested on": len(train) - len(untested),
        f"training item(s) beyond data.train_items={source.train_items}": len(untested) - len(items.train),
        f"test item(s) beyond {asked}": len(test) - len(items.test),
    }
    report(f"{_sizes(items)}{leaving_out(left_out)}.")
    return items


def _hold_out(records: list[Record], source: FileData | HubData, report: Callable[[str], None]) -> Items:
    """Test on some groups of records and train on the others, so that neither has what the other asks or answers."""
    groups = _groups(records)
    groups = random.Random(source.seed).sample(groups, len(groups))
    # The largest group is trained on: whatever the seed, as much as possible can be held out.
    largest = max(range(len(groups)), key=lambda i: (len(groups[i]), i))
    groups.append(groups.pop(largest))
    total = sum(map(len, groups))
    wanted = _held_out(source.test_items, total, total - len(groups[-1]))
    held_out: list[Sample] = []
    position = 0
    while len(held_out) < wanted:
        held_out += groups[position]
        position += 1
    rest = _flat(groups[position:])
    items = Items(_cut(rest, source.train_items), held_out[:wanted])
    left_out = {
        f"item(s) of the held-out records beyond the {wanted}": len(held_out) - wanted,
        f"training item(s) beyond data.train_items={source.train_items}": len(rest) - len(items.train),
    }
    origin = f", held out with seed {source.seed}{UNSET if source.test_items is None else ''}" if wanted else ""
    report(f"{_sizes(items)}{origin}{leaving_out(left_out)}.")
    return items


def _groups(records: list[Record]) -> list[list[Sample]]:
    """Put records that share a prompt together, directly or through others."""
    group_of = list(range(len(records)))  # a forest: each record points to one of its group, the root to itself
    first_with: dict[str, int] = {}

    def root(index: int) -> int:
        while group_of[index] != index:
            group_of[index] = index = group_of[group_of[index]]
        return index

    for index, record in enumerate(records):
        for sample in record:
            group_of[root(index)] = root(first_with.setdefault(str(sample.prompt), index))
    groups: defaultdict[int, list[Sample]] = defaultdict(list)
    for index, record in enumerate(records):
        groups[root(index)] += record
    return list(groups.values())


def _held_out(wanted: int | None, total: int, most: int) -> int:
    """How many items to hold out of so many, of which at most ``most`` can be."""
    number = min(TEST_ITEMS, max(1, total // 10), max(1, most)) if wanted is None else wanted
    if number > most:
        asked = "" if wanted is None else f"data.test_items={wanted}, but "
        can = f"only {most} of the {total} items" if most else "none of the items"
        fewer = f"Set data.test_items to {most} or less, or give" if most else "Give"
        raise DataError(
            f"{asked}{can} can be held out to test on: items of one record, and records that share a prompt, stay "
            f"together, and some must be left to train on. {fewer} data.test a file or split of its own; "
            "data.test_items=0 tests on none."
        )
    return number


def _cut(samples: list[Sample], wanted: int | None) -> list[Sample]:
    if wanted is not None and len(samples) < wanted:
        raise DataError(
            f"data.train_items={wanted}, but there are only {len(samples)} to train on. "
            f"Set data.train_items to {len(samples)} or less, or leave it out to take all."
        )
    return samples[:wanted]


def _flat(records: list[Record]) -> list[Sample]:
    return [sample for record in records for sample in record]


def _sizes(items: Items) -> str:
    return f"{counted(len(items.train), 'item(s)')} to train on, {len(items.test)} to test on"
