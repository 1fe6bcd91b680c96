"""The rendering equals the files of LLM-Adapters byte for byte: every item of all that are there."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from afa_lora.data import DataError
from afa_lora.data.commonsense import TASKS, CommonsenseItem, read_mix, read_tests
from afa_lora.data.commonsense.files import read_set
from tests.data.commonsense_items import RECORDS, RENDERED

READY = [
    ("ARC-Challenge", "train", 1119),
    ("ARC-Challenge", "test", 1172),
    ("ARC-Easy", "train", 2251),
    ("ARC-Easy", "test", 2376),
    ("boolq", "train", 9427),
    ("boolq", "test", 3270),
    ("openbookqa", "train", 4957),
    ("openbookqa", "test", 500),
    ("piqa", "test", 1838),
    ("social_i_qa", "test", 1954),
    ("winogrande", "test", 1267),
]
"""The files in the LLM-Adapters form, and how many items the data set has."""

OPTION = r"(?:Answer|Solution|Ending|Option)(\d): "


def unrender(task: str, row: dict[str, Any]) -> dict[str, Any]:
    """The hub's record of an item: the inverse of the rendering, written from the files alone."""
    body, _, allowed = row["instruction"].rpartition("Answer format: ")
    body = body.partition("correct ending to complete the given sentence: ")[2] or body.partition(": ")[2]
    if task == "boolq":
        question = body.removesuffix("?\n\n")
        return {"question": question, "answer": row["answer"] == "true"}
    question, _, listed = body.partition("\n\n")
    separator = "\n\n" if task == "piqa" else " "
    listed = listed.removesuffix(" " if task == "winogrande" else "\n\n")
    options = re.split(f"(?:^|{separator}){OPTION}", listed)[2::2]
    right = int(row["answer"][-1])
    assert len(options) == len(allowed.split("/"))
    if task == "piqa":
        return {"goal": question, "sol1": options[0], "sol2": options[1], "label": right - 1}
    if task == "winogrande":
        return {"sentence": question, "option1": options[0], "option2": options[1], "answer": str(right)}
    if task == "social_i_qa":
        context, _, asked = question.rpartition(" ")
        answers = dict(zip(("answerA", "answerB", "answerC"), options, strict=True))
        return {"context": context, "question": asked, **answers, "label": str(right)}
    letters = "ABCDE"[: len(options)]
    column = "question_stem" if task == "openbookqa" else "question"
    choices = {"text": options, "label": list(letters)}
    return {column: question, "choices": choices, "answerKey": letters[right - 1]}


def as_row(item: CommonsenseItem) -> dict[str, str]:
    return {"instruction": item.instruction, "input": "", "output": item.output, "answer": item.answer}


@pytest.mark.parametrize("task", TASKS)
def test_a_record_of_the_hub(task: str) -> None:
    item = TASKS[task].render(7, RECORDS[task])
    assert (item.instruction, item.answer) == RENDERED[task]
    assert (item.task, item.index) == (task, 7)
    assert item.output == f"the correct answer is {item.answer}"
    assert item.instruction.endswith(f"Answer format: {'/'.join(item.choices)}")


@pytest.mark.parametrize(("task", "part", "count"), READY)
def test_every_item_of_a_file_is_rendered_byte_for_byte(real_data: Path, task: str, part: Any, count: int) -> None:
    path = real_data / "commonsense" / task / f"{part}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    rendered = [TASKS[task].render(i, unrender(task, row)) for i, row in enumerate(rows)]
    assert [as_row(item) for item in rendered] == rows
    assert read_set(real_data / "commonsense", TASKS[task], part, [].append) == rendered
    assert len(rows) == count
    assert path.read_text(encoding="utf-8").strip() == json.dumps([as_row(item) for item in rendered], indent=4)


FIRST = {
    ("ARC-Challenge", "train"): {
        "question": "George wants to warm his hands quickly by rubbing them. "
        "Which skin surface will produce the most heat?",
        "choices": {
            "text": ["dry palms", "wet palms", "palms covered with oil", "palms covered with lotion"],
            "label": ["A", "B", "C", "D"],
        },
        "answerKey": "A",
    },
    ("boolq", "train"): {"question": "do iran and afghanistan speak the same language", "answer": True},
    ("openbookqa", "train"): {
        "question_stem": "The sun is responsible for",
        "choices": {
            "text": [
                "puppies learning new tricks",
                "children growing up and getting old",
                "flowers wilting in a vase",
                "plants sprouting, blooming and wilting",
            ],
            "label": ["A", "B", "C", "D"],
        },
        "answerKey": "D",
    },
    ("winogrande", "test"): {
        "sentence": "Sarah was a much better surgeon than Maria so _ always got the easier cases.",
        "option1": "Sarah",
        "option2": "Maria",
        "answer": "2",
    },
}
"""The first records of data sets on the hub, as their pages show them."""


@pytest.mark.parametrize(("task", "part"), FIRST)
def test_the_first_record_of_the_hub_is_the_first_item_of_the_file(real_data: Path, task: str, part: Any) -> None:
    items = read_set(real_data / "commonsense", TASKS[task], part, [].append)
    assert items
    assert TASKS[task].render(0, FIRST[task, part]) == items[0]


@pytest.mark.parametrize(("task", "count"), [("piqa", 1838), ("social_i_qa", 1954)])
def test_the_original_records_become_the_ready_file(real_data: Path, tmp_path: Path, task: str, count: int) -> None:
    (tmp_path / task).mkdir()
    for file in (real_data / "commonsense" / task).glob("raw_*"):
        (tmp_path / task / file.name).symlink_to(file)
    said: list[str] = []
    rendered = read_tests(tmp_path, [task], report=said.append)
    assert rendered == read_tests(real_data / "commonsense", [task], report=[].append)
    assert len(rendered) == count
    assert said[0].endswith(f": {count} test items of {task}, rendered from the original records.")


@pytest.mark.parametrize(
    ("task", "part", "count", "characters"),
    [("hellaswag", "test", 10_042, 11_099_046), ("social_i_qa", "train", 33_410, 14_379_571)],
)
def test_the_published_file_is_as_long(real_data: Path, task: str, part: Any, count: int, characters: int) -> None:
    """LLM-Adapters' own files are not among the data; public copies have so many characters."""
    items = read_set(real_data / "commonsense", TASKS[task], part, [].append)
    assert items
    assert len(items) == count
    assert len(json.dumps([as_row(item) for item in items], indent=4)) == characters


def test_hellaswag_as_text_lacks_the_marks(real_data: Path, tmp_path: Path) -> None:
    (tmp_path / "hellaswag").mkdir()
    for file in (real_data / "commonsense" / "hellaswag").glob("*.bz2"):
        (tmp_path / "hellaswag" / file.name).symlink_to(file)
    text = read_tests(tmp_path, ["hellaswag"], report=[].append)
    marked = read_tests(real_data / "commonsense", ["hellaswag"], report=[].append)
    assert [item.answer for item in text] == [item.answer for item in marked]
    assert not any("[step]" in item.instruction for item in text)
    assert sum("[step]" in item.instruction for item in marked) > 6000
    assert sum(a == b for a, b in zip(text, marked, strict=True)) == 3241  # as published where there is no mark


def test_all_that_is_there(real_data: Path) -> None:
    said: list[str] = []
    mix = read_mix(real_data / "commonsense", report=said.append)
    assert len(mix) == 61_396
    assert said[5].endswith(
        "raw_train_l.jsonl: 10234 train items of winogrande, rendered from the original records, the largest of 4 "
        ".jsonl files; not read: raw_train_m.jsonl, raw_train_s.jsonl, raw_train_xs.jsonl."
    )
    assert said[6].endswith("commonsense: no train set of hellaswag, piqa.")
    assert said[7] == (
        "61396 train items, 37 of them with the instruction of an earlier one (ARC-Challenge 1119, ARC-Easy 2249, "
        "boolq 9427, openbookqa 4957, social_i_qa 33410, winogrande 10234), compared with 8 test sets; left out: "
        "2 ARC-Easy items found in a test set."
    )
    assert len(read_tests(real_data / "commonsense", report=[].append)) == 22_419


@pytest.mark.parametrize(
    ("task", "changes", "fault"),
    [
        ("piqa", {"goal": None}, "'goal' must be a text, not null."),
        ("piqa", {"label": -1}, "'label' is '-1', and must be one of 0, 1."),
        ("piqa", {"label": ""}, "'label' is '', and must be one of 0, 1."),
        ("winogrande", {"answer": "12"}, "'answer' is '12', and must be one of 1, 2."),
        ("hellaswag", {"endings": ["a", "b", "c"], "label": "3"}, "'label' names option 4 of 3."),
        ("hellaswag", {"endings": ["a"] * 5}, "it has 5 options; from 2 to 4 are possible."),
        ("hellaswag", {"endings": "abcd"}, "'endings' must be a list of texts, not str."),
        ("ARC-Easy", {"answerKey": "E"}, "'answerKey' is 'E', and must be one of 1, 2, 3, 4."),
        ("ARC-Easy", {"choices": ["a"]}, "'choices' must hold 'text' and 'label', not be list."),
        ("ARC-Easy", {"choices": {"text": ["a", "b"], "label": ["A"]}}, "'choices' has 2 texts and 1 labels."),
        ("boolq", {"answer": None}, "'answer' is 'None', and must be one of True, False."),
    ],
)
def test_an_impossible_record(task: str, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(DataError) as caught:
        TASKS[task].render(0, {**RECORDS[task], **changes})
    assert str(caught.value) == fault
