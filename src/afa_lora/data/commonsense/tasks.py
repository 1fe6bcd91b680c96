"""The eight tasks: their wording in LLM-Adapters, where they come from, and how a record of each is rendered.

The wording follows ``dataset/<task>/{train,test}.json`` of AGI-Edgerunners/LLM-Adapters; every item of those files that
the tests find is rendered byte for byte, without an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from afa_lora.core.errors import closest
from afa_lora.data.commonsense.answers import ANSWERS, ENDINGS, OPTIONS, SOLUTIONS, TRUTHS
from afa_lora.data.commonsense.items import ANSWER_PREFIX, CommonsenseItem
from afa_lora.data.forms import unicode_text
from afa_lora.data.records import DataError

ANSWER_FORMAT = "Answer format: "
UNKNOWN = "unknown"
PARQUET = "refs/convert/parquet"  # the hub's own copy of data sets whose main branch is a program, which is not run

Question = tuple[str, Sequence[str], int]
"""The question, the options, and the position of the right one, from 0."""


@dataclass(frozen=True)
class Form:
    """The words around a question.

    Attributes:
        opening: what stands before the question.
        answers: the answers that can be allowed; an item with n options allows the first n.
        option: what stands before the number of an option; empty where the options are not listed.
        between: what separates the options.
        end: what stands before `ANSWER_FORMAT`.
    """

    opening: str
    answers: tuple[str, ...]
    option: str
    between: str = " "
    end: str = "\n\n"

    def render(self, question: str, options: Sequence[str]) -> str:
        """The instruction."""
        listed = self.between.join(f"{self.option}{i}: {option}" for i, option in enumerate(options, start=1))
        body = f"{question}\n\n{listed}" if self.option else question
        return f"{self.opening}{body}{self.end}{ANSWER_FORMAT}{'/'.join(self.answers[: len(options)])}"


TRUTH = Form("Please answer the following question with true or false, question: ", TRUTHS, option="")
SOLUTION = Form("Please choose the correct solution to the question: ", SOLUTIONS, "Solution", between="\n\n")
ANSWER = Form("Please choose the correct answer to the question: ", ANSWERS, "Answer")
ENDING = Form("Please choose the correct ending to complete the given sentence: ", ENDINGS, "Ending")
OPTION = Form(
    "Please choose the correct answer to fill in the blank to complete the given sentence: ", OPTIONS, "Option", end=" "
)


@dataclass(frozen=True)
class Task:
    """One of the eight.

    Attributes:
        name: its folder in LLM-Adapters.
        title: its name in the paper's tables.
        form: its wording.
        question: reads a record that has the columns of the hub's data set.
        label: the column that says which option is right.
        hub: the data set's id.
        config: its configuration.
        revision: its branch.
        test: the split that is tested on: validation where the labels of the test split are not public.
    """

    name: str
    title: str
    form: Form
    question: Callable[[Mapping[str, Any]], Question]
    label: str
    hub: str
    config: str | None = None
    revision: str | None = None
    test: str = "validation"

    def render(self, index: int, record: Mapping[str, Any]) -> CommonsenseItem:
        """Render a record of the original data set.

        Raises:
            DataError: a missing field or an impossible value; the caller knows where.
        """
        question, options, right = self.question(record)
        choices = self.form.answers[: len(options)]
        if not 2 <= len(options) == len(choices):
            raise DataError(f"it has {len(options)} options; from 2 to {len(self.form.answers)} are possible.")
        if right >= len(options):
            raise DataError(f"{self.label!r} names option {right + 1} of {len(options)}.")
        return CommonsenseItem(self.name, index, self.form.render(question, options), choices, choices[right])

    def accept(self, index: int, row: Mapping[str, Any]) -> CommonsenseItem:
        """Take over an item that is in the LLM-Adapters form already.

        Raises:
            DataError: a missing field, another form, or an answer that is not allowed; the caller knows where.
        """
        return _accept(self.name, self.form, index, row)


def accept_any(index: int, row: Mapping[str, Any]) -> CommonsenseItem:
    """Take over an item of a mixed file, which does not say its task.

    The wording tells BoolQ, HellaSwag, PIQA and WinoGrande. ARC, OpenBookQA and Social IQA share theirs: `UNKNOWN`.

    Raises:
        DataError: as `Task.accept`.
    """
    instruction = _text(row, "instruction")
    fitting = [task for task in TASKS.values() if instruction.startswith(task.form.opening)]
    if not fitting:
        openings = "; ".join(dict.fromkeys(task.form.opening.strip() for task in TASKS.values()))
        raise DataError(f"'instruction' begins like none of the eight tasks. They begin: {openings}")
    return _accept(fitting[0].name if len(fitting) == 1 else UNKNOWN, fitting[0].form, index, row)


def find_tasks(names: Sequence[str] | None) -> list[Task]:
    """The named tasks, or all, in the paper's order.

    Raises:
        DataError: no such task: the closest one; or an empty list.
    """
    if names is None:
        return list(TASKS.values())
    if not names:
        raise DataError(f"tasks names no task. Leave it out to take all eight, or choose of {', '.join(TASKS)}.")
    for name in names:
        if name not in TASKS:
            raise DataError(f"tasks: {name!r} is no task.{_closest_task(name)} Choose of {', '.join(TASKS)}.")
    return [task for task in TASKS.values() if task.name in names]


def _closest_task(name: str) -> str:
    spellings = {spelling.casefold(): task.name for task in TASKS.values() for spelling in (task.title, task.name)}
    near = get_close_matches(name.casefold(), spellings, n=1)
    return f" Did you mean {spellings[near[0]]!r}?" if near else ""


def _accept(task: str, form: Form, index: int, row: Mapping[str, Any]) -> CommonsenseItem:
    instruction, answer, output = (_text(row, name) for name in ("instruction", "answer", "output"))
    allowed = instruction.rpartition(ANSWER_FORMAT)[2]
    choices = tuple(allowed.split("/"))
    if not instruction.startswith(form.opening):
        raise DataError(f"'instruction' must begin with {form.opening!r}, and begins {instruction[:60]!r}.")
    if len(choices) < 2 or choices != form.answers[: len(choices)]:
        raise DataError(
            f"'instruction' must end with {ANSWER_FORMAT!r} and the allowed answers, such as "
            f"{'/'.join(form.answers[:4])}, and ends {instruction[-60:]!r}."
        )
    if answer not in choices:
        raise DataError(f"'answer' is {answer!r}, and allowed is one of {allowed}.")
    if output != f"{ANSWER_PREFIX}{answer}":
        raise DataError(f"'output' is {output[:60]!r}, and with this 'answer' must be {ANSWER_PREFIX + answer!r}.")
    if row.get("input"):
        raise DataError(f"'input' must be empty in this form, and is {str(row['input'])[:60]!r}.")
    return CommonsenseItem(task, index, instruction, choices, answer)


def _field(record: Mapping[str, Any], name: str) -> Any:
    if name not in record:
        raise DataError(f"there is no field {name!r}.{closest(name, record)} It has: {', '.join(record) or 'none'}.")
    return record[name]


def _text(record: Mapping[str, Any], name: str) -> str:
    return unicode_text(name, _field(record, name))


def _texts(record: Mapping[str, Any], name: str) -> list[str]:
    values = _field(record, name)
    if not isinstance(values, list):
        raise DataError(f"{name!r} must be a list of texts, not {type(values).__name__}.")
    return [unicode_text(f"{name}[{i}]", value) for i, value in enumerate(values)]


def _right(record: Mapping[str, Any], name: str, labels: Sequence[str]) -> int:
    value = str(_field(record, name)).strip()
    if value not in labels:
        raise DataError(f"{name!r} is {value!r}, and must be one of {', '.join(labels)}.")
    return labels.index(value)


def _lettered(record: Mapping[str, Any], question: str) -> Question:
    choices = _field(record, "choices")
    if not isinstance(choices, Mapping):
        raise DataError(f"'choices' must hold 'text' and 'label', not be {type(choices).__name__}.")
    texts, labels = _texts(choices, "text"), _texts(choices, "label")
    if len(texts) != len(labels):
        raise DataError(f"'choices' has {len(texts)} texts and {len(labels)} labels.")
    return _text(record, question), texts, _right(record, "answerKey", labels)


def _arc(record: Mapping[str, Any]) -> Question:
    return _lettered(record, "question")


def _openbookqa(record: Mapping[str, Any]) -> Question:
    return _lettered(record, "question_stem")


def _boolq(record: Mapping[str, Any]) -> Question:
    return f"{_text(record, 'question')}?", TRUTHS, _right(record, "answer", ("True", "False"))


def _hellaswag(record: Mapping[str, Any]) -> Question:
    sentence = f"{_text(record, 'activity_label')}: {_text(record, 'ctx')}"
    return sentence, _texts(record, "endings"), _right(record, "label", tuple("0123"))


def _piqa(record: Mapping[str, Any]) -> Question:
    return _text(record, "goal"), [_text(record, "sol1"), _text(record, "sol2")], _right(record, "label", tuple("01"))


def _social_i_qa(record: Mapping[str, Any]) -> Question:
    question = f"{_text(record, 'context')} {_text(record, 'question')}"
    options = [_text(record, name) for name in ("answerA", "answerB", "answerC")]
    return question, options, _right(record, "label", tuple("123"))


def _winogrande(record: Mapping[str, Any]) -> Question:
    options = [_text(record, "option1"), _text(record, "option2")]
    return _text(record, "sentence"), options, _right(record, "answer", tuple("12"))


TASKS = {
    task.name: task
    for task in (
        Task("ARC-Challenge", "ARC-C", ANSWER, _arc, "answerKey", "allenai/ai2_arc", "ARC-Challenge", test="test"),
        Task("ARC-Easy", "ARC-E", ANSWER, _arc, "answerKey", "allenai/ai2_arc", "ARC-Easy", test="test"),
        Task("boolq", "BoolQ", TRUTH, _boolq, "answer", "google/boolq"),
        Task("hellaswag", "HellaSwag", ENDING, _hellaswag, "label", "Rowan/hellaswag"),
        Task("openbookqa", "OpenBookQA", ANSWER, _openbookqa, "answerKey", "allenai/openbookqa", "main", test="test"),
        Task("piqa", "PIQA", SOLUTION, _piqa, "label", "ybisk/piqa", revision=PARQUET),
        Task("social_i_qa", "Social IQA", ANSWER, _social_i_qa, "label", "allenai/social_i_qa", revision=PARQUET),
        Task("winogrande", "WinoGrande", OPTION, _winogrande, "answer", "allenai/winogrande", "winogrande_xl"),
    )
}
"""The eight tasks by name, in the paper's order."""
