"""GSM8K: word problems whose worked answer ends in ``#### number``."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from afa_lora.data.files import READERS, read_files
from afa_lora.data.hub import read_split
from afa_lora.data.records import DataError, Items, Sample, counted, fingerprint, leaving_out
from afa_lora.data.sources import FileData, Gsm8kData, HubData

HUB, CONFIG = "openai/gsm8k", "main"
COLUMNS = {"prompt": "question", "completion": "answer"}
ANSWER = re.compile(r"#### (-?[0-9.,]+)")
MOST_TESTED = 100  # items, where data.test_items is not given

FORM = (
    "(GSM8K: records with a question and an answer that ends in '#### number', from the folder data.folder or "
    f"from {HUB} of the hub.)"
)

Part = Literal["train", "test"]


def load_gsm8k(source: Gsm8kData, report: Callable[[str], None] = print) -> Items:
    """Load the questions to train and to test on, each with the number that answers it.

    A sample's prompt is the question and the instruction, its completion the number, without commas, and its entry
    the record: ``question`` and ``answer``. Training items come in the order that the seed gives, the test items are
    the first of the test set.

    Raises:
        DataError: what is missing or malformed, and where; a record without an answer.

    Source: prompt and answer as ``examples/data_preprocess/gsm8k.py`` of https://github.com/volcengine/verl has them.
    """
    train = _read(source, "train", report)
    test = [] if source.test_items == 0 else _read(source, "test", report)
    tested = _first(test, source.test_items)
    questions = {sample.entry["question"] for sample in tested}
    untested = [sample for sample in train if sample.entry["question"] not in questions]
    random.Random(source.seed).shuffle(untested)
    if source.train_items is not None and source.train_items > len(untested):
        raise DataError(
            f"data.train_items={source.train_items}, but there are only {len(untested)} to train on. "
            f"Set data.train_items to {len(untested)} or less, or leave it out to take all."
        )
    items = Items(untested[: source.train_items], tested)
    unset = " (data.test_items is not set)" if source.test_items is None else ""
    left_out = {
        "training item(s) whose question is also tested on": len(train) - len(untested),
        f"training item(s) beyond data.train_items={source.train_items}": len(untested) - len(items.train),
        f"test item(s) beyond the first {len(tested)}{unset}": len(test) - len(tested),
    }
    sizes = f"{counted(len(items.train), 'item(s)')} to train on, {len(items.test)} to test on"
    order = f"shuffled with seed {source.seed}, fingerprint {fingerprint(items.train)}"
    report(f"{sizes}, {order}{leaving_out(left_out)}.")
    return items


def final_number(answer: str) -> str | None:
    """The number after the first ``####`` of a worked answer, commas removed; None if there is none."""
    match = ANSWER.search(answer)
    return match[1].replace(",", "") if match else None


def _first(test: list[Sample], wanted: int | None) -> list[Sample]:
    if wanted is not None and wanted > len(test):
        raise DataError(
            f"data.test_items={wanted}, but the test set has only {counted(len(test), 'item(s)')}. "
            f"Set data.test_items to {len(test)} or less; 0 tests on none."
        )
    return test[: MOST_TESTED if wanted is None else wanted]


def _read(source: Gsm8kData, part: Part, report: Callable[[str], None]) -> list[Sample]:
    path = None if source.folder is None else _find(source.folder, part)
    origin = f"{HUB} ({CONFIG}), split {part!r}" if path is None else str(path)
    try:
        if path is None:
            hub = HubData(source="hub", name=HUB, config=CONFIG, columns=COLUMNS, system=source.system)
            records = read_split(hub, part, report)
        else:
            file = FileData(source="file", train=path, columns=COLUMNS, system=source.system)
            records = read_files(path, file, report)
    except DataError as error:
        raise DataError(f"{error} {FORM}") from error
    samples = [sample for record in records for sample in record]
    return [
        _to_sample(sample, source.instruction, f"{origin}, record {i}") for i, sample in enumerate(samples, start=1)
    ]


def _find(folder: Path, part: Part) -> Path:
    names = [f"{part}{kind}" for kind in (".jsonl", *READERS)]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"data.folder={folder} has no {part} set of GSM8K. Looked for {', '.join(dict.fromkeys(names))} in it. "
        f"Leave data.folder out to take {HUB} from the hub."
    )


def _to_sample(read: Sample, instruction: str, place: str) -> Sample:
    *before, asked = read.prompt
    question = asked["content"]
    number = final_number(read.completion)
    if number is None:
        raise DataError(
            f"{place} has no answer: {read.completion[-60:]!r} does not end in '#### number' (question: "
            f"{question[:60]!r}). Rewards and tests compare with that number: complete the record or take it out."
        )
    asked = {**asked, "content": f"{question} {instruction}" if instruction else question}
    return Sample((*before, asked), number, {"question": question, "answer": read.completion})
