"""Answers in generated text: the first match of the task's pattern."""

import pytest

from afa_lora.data import CommonsenseData, Sample
from afa_lora.data.commonsense import TASKS, find_answer
from afa_lora.evaluation import score_for
from tests.data.commonsense_items import RECORDS

ALLOWED = {
    "boolq": ["true", "false"],
    "piqa": ["solution1", "solution2"],
    "hellaswag": ["ending1", "ending2", "ending3", "ending4"],
    "winogrande": ["option1", "option2"],
    "ARC-Easy": ["answer1", "answer2", "answer3", "answer4"],
    "social_i_qa": ["answer1", "answer2", "answer3"],
}


@pytest.mark.parametrize("task", ALLOWED)
def test_each_answer_is_found(task: str) -> None:
    item = TASKS[task].render(0, RECORDS[task])
    assert list(item.choices) == ALLOWED[task]
    for answer in item.choices:
        assert find_answer(f" the correct answer is {answer}", item.choices) == answer
        assert find_answer(answer, item.choices) == answer


@pytest.mark.parametrize(
    ("choices", "text", "found"),
    [
        (("answer1", "answer2"), "\nanswer2, not answer1", "answer2"),
        (("answer1", "answer2", "answer3"), "answer5", "answer5"),  # the task's pattern, not the item's
        (("answer1", "answer2"), "answer6 or answer3", "answer3"),
        (("answer1", "answer2"), "the correct answer is 2", None),
        (("ending1", "ending2", "ending3", "ending4"), "ending5", None),
        (("ending1", "ending2", "ending3", "ending4"), "ending12", "ending1"),
        (("option1", "option2"), "Option1", None),
        (("solution1", "solution2"), "option1", None),
        (("true", "false"), "untrue, so false", "true"),
        (("true", "false"), "True", None),
        (("true", "false"), "", None),
    ],
)
def test_the_first_match_counts(choices: tuple[str, ...], text: str, found: str | None) -> None:
    assert find_answer(text, choices) == found


def test_the_scorer_takes_the_first_answer() -> None:
    score = score_for(CommonsenseData(source="commonsense"))
    item = TASKS["ARC-Easy"].render(0, RECORDS["ARC-Easy"])
    sample = Sample((), item.output, {"answer": item.answer, "choices": item.choices})
    given = ["the correct answer is answer4", "answer4 or answer1", "answer1 or answer4", "fire"]
    assert [score(text, sample) for text in given] == [1.0, 1.0, 0.0, 0.0]
