"""One item of the eight tasks, in the form of LLM-Adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from afa_lora.data.forms import all_faults
from afa_lora.data.records import DataError

ANSWER_PREFIX = "the correct answer is "


@dataclass(frozen=True)
class CommonsenseItem:
    """A question with its allowed answers.

    Attributes:
        task: a key of `afa_lora.data.commonsense.TASKS`; `UNKNOWN` in a mixed file whose form fits several tasks.
        index: its position in its set, from 0.
        instruction: the question, the options and the allowed answers, byte for byte as LLM-Adapters has it.
        choices: the allowed answers in order, such as ``("answer1", "answer2", "answer3")``.
        answer: the right one of them.
    """

    task: str
    index: int
    instruction: str
    choices: tuple[str, ...]
    answer: str

    @property
    def output(self) -> str:
        """What is learnt, such as ``the correct answer is answer2``."""
        return f"{ANSWER_PREFIX}{self.answer}"


def read_items(
    origin: str,
    rows: Iterable[tuple[str, Any]],
    read: Callable[[int, Mapping[str, Any]], CommonsenseItem],
) -> list[CommonsenseItem]:
    """Read every row of a file or split.

    Args:
        origin: the file or split, as messages name it.
        rows: each with the place where it stands, such as ``line 17``, or what is wrong there; "" if its number says
            all.
        read: takes a row's number, from 0, and the row.

    Raises:
        DataError: no rows, or rows that cannot be read: how many, and the places and faults of the first ones.
    """
    items: list[CommonsenseItem] = []
    faults: list[tuple[str, str]] = []
    for index, (place, row) in enumerate(rows):
        try:
            if isinstance(row, DataError):
                raise row
            if not isinstance(row, Mapping):
                raise DataError(f"expected an object with named fields, found {str(row)[:60]}.")
            items.append(read(index, row))
        except DataError as error:
            faults.append((f"item {index} ({place})" if place else f"item {index}", str(error)))
    if faults:
        raise DataError(all_faults(origin, faults))
    if not items:
        raise DataError(f"{origin} holds no items.")
    return items
