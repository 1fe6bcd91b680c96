"""Small sets of the eight tasks, as the original data sets have them, and what they become."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LETTERS = {"text": ["a stone", "a bird", "the sun"], "label": ["A", "B", "C"]}

RECORDS: dict[str, dict[str, Any]] = {
    "ARC-Challenge": {"id": "x1", "question": "What flies?", "choices": LETTERS, "answerKey": "B"},
    "ARC-Easy": {
        "id": "x2",
        "question": "What is hot?",
        "choices": {"text": ["ice", "rain", "fog", "fire"], "label": ["1", "2", "3", "4"]},
        "answerKey": "4",
    },
    "boolq": {"question": "do birds fly", "answer": True, "passage": "Birds have wings."},
    "hellaswag": {
        "ind": 4,
        "activity_label": "Cooking",
        "ctx_a": "A man cuts an onion.",
        "ctx_b": "he",
        "ctx": "A man cuts an onion. he",
        "endings": ["cries.", "flies.", "[step] sings  twice.", "melts."],
        "label": "0",
    },
    "openbookqa": {"id": "7-1", "question_stem": "The sun is", "choices": LETTERS, "answerKey": "C"},
    "piqa": {"goal": "open a jar", "sol1": "turn the lid ", "sol2": "turn  the table", "label": 0},
    "social_i_qa": {
        "context": "Kim fell.",
        "question": "How does Kim feel?",
        "answerA": "hurt",
        "answerB": "tall",
        "answerC": "rich",
        "label": "1",
    },
    "winogrande": {
        "sentence": "The cup fits in the box since the _ is large.",
        "option1": "cup",
        "option2": "box",
        "answer": "2",
    },
}
"""A record of each data set on the hub."""

RENDERED = {
    "ARC-Challenge": (
        "Please choose the correct answer to the question: What flies?\n\n"
        "Answer1: a stone Answer2: a bird Answer3: the sun\n\nAnswer format: answer1/answer2/answer3",
        "answer2",
    ),
    "ARC-Easy": (
        "Please choose the correct answer to the question: What is hot?\n\n"
        "Answer1: ice Answer2: rain Answer3: fog Answer4: fire\n\nAnswer format: answer1/answer2/answer3/answer4",
        "answer4",
    ),
    "boolq": (
        "Please answer the following question with true or false, question: do birds fly?\n\nAnswer format: true/false",
        "true",
    ),
    "hellaswag": (
        "Please choose the correct ending to complete the given sentence: Cooking: A man cuts an onion. he\n\n"
        "Ending1: cries. Ending2: flies. Ending3: [step] sings  twice. Ending4: melts.\n\n"
        "Answer format: ending1/ending2/ending3/ending4",
        "ending1",
    ),
    "openbookqa": (
        "Please choose the correct answer to the question: The sun is\n\n"
        "Answer1: a stone Answer2: a bird Answer3: the sun\n\nAnswer format: answer1/answer2/answer3",
        "answer3",
    ),
    "piqa": (
        "Please choose the correct solution to the question: open a jar\n\n"
        "Solution1: turn the lid \n\nSolution2: turn  the table\n\nAnswer format: solution1/solution2",
        "solution1",
    ),
    "social_i_qa": (
        "Please choose the correct answer to the question: Kim fell. How does Kim feel?\n\n"
        "Answer1: hurt Answer2: tall Answer3: rich\n\nAnswer format: answer1/answer2/answer3",
        "answer1",
    ),
    "winogrande": (
        "Please choose the correct answer to fill in the blank to complete the given sentence: "
        "The cup fits in the box since the _ is large.\n\nOption1: cup Option2: box Answer format: option1/option2",
        "option2",
    ),
}
"""The instruction and the answer that LLM-Adapters would have of it."""

QUESTION = {
    "ARC-Challenge": "question",
    "ARC-Easy": "question",
    "boolq": "question",
    "hellaswag": "ctx",
    "openbookqa": "question_stem",
    "piqa": "goal",
    "social_i_qa": "context",
    "winogrande": "sentence",
}
"""The column of each record that `numbered` changes."""


def numbered(task: str, count: int, start: int = 0) -> list[dict[str, Any]]:
    """Different records of a task."""
    column = QUESTION[task]
    return [{**RECORDS[task], column: f"{i} {RECORDS[task][column]}"} for i in range(start, start + count)]


def row(task: str, number: int | None = None, **changes: Any) -> dict[str, Any]:
    """An item of a task in the LLM-Adapters form; a number makes it another question."""
    instruction, answer = RENDERED[task]
    if number is not None:
        opening, colon, rest = instruction.partition(": ")
        instruction = f"{opening}{colon}{number} {rest}"
    return {
        "instruction": instruction,
        "input": "",
        "output": f"the correct answer is {answer}",
        "answer": answer,
        **changes,
    }


def rows(task: str, count: int, start: int = 0) -> list[dict[str, Any]]:
    """Different items of a task in the LLM-Adapters form."""
    return [row(task, number) for number in range(start, start + count)]


def write_json(path: Path, content: Any) -> Path:
    """Write as JSON; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4))
    return path


def write_lines(path: Path, records: list[Any]) -> Path:
    """Write as JSON lines; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def write_folder(folder: Path, train: Mapping[str, int], test: Mapping[str, int]) -> Path:
    """A folder in the LLM-Adapters form with so many items of each task; no train item is a test item."""
    for task, count in train.items():
        write_json(folder / task / "train.json", rows(task, count, start=1000))
    for task, count in test.items():
        write_json(folder / task / "test.json", rows(task, count))
    return folder
