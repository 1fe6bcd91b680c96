"""What may be answered, and how an answer is found in generated text: the patterns of LLM-Adapters' evaluation."""

from __future__ import annotations

import re
from collections.abc import Sequence

TRUTHS = ("true", "false")
SOLUTIONS = ("solution1", "solution2")
ANSWERS = ("answer1", "answer2", "answer3", "answer4", "answer5")
ENDINGS = ("ending1", "ending2", "ending3", "ending4")
OPTIONS = ("option1", "option2")

PATTERNS = {
    answer: re.compile("|".join(family))
    for family in (TRUTHS, SOLUTIONS, ANSWERS, ENDINGS, OPTIONS)
    for answer in family
}
"""For each answer the pattern of all that may stand in its place."""


def find_answer(text: str, choices: Sequence[str]) -> str | None:
    """The first answer in a generated text, or None where there is none.

    As in LLM-Adapters (``commonsense_evaluate.py``), the pattern is that of the task, not of the item, and upper case
    does not count: ``answer4`` is found, and wrong, where an item has three answers; ``True`` is not found.

    Args:
        text: what the model wrote.
        choices: the item's allowed answers.
    """
    found = PATTERNS[choices[0]].search(text)
    return found[0] if found else None
