"""How an answer is compared with the right one."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import reasoning_gym

from afa_lora.data import CommonsenseData, DataSource, Sample, TaskData
from afa_lora.data.commonsense import find_answer

Score = Callable[[str, Sample], float]
"""Takes a generated answer and its sample, gives a number in [0, 1]; 1 is right."""


def score_for(source: DataSource) -> Score:
    """The scorer that belongs to a data source: reasoning-gym's own for its tasks, `first_answer` for the eight
    commonsense tasks, else `exact_match`."""
    if isinstance(source, CommonsenseData):
        return first_answer
    if not isinstance(source, TaskData):
        return exact_match
    task_score = reasoning_gym.get_score_answer_fn(source.task)
    return lambda answer, sample: float(task_score(answer, dict(sample.entry)))


def first_answer(answer: str, sample: Sample) -> float:
    """1 if the first of the task's answers in the text is the right one, as LLM-Adapters counts."""
    return float(find_answer(answer, sample.entry["choices"]) == sample.entry["answer"])


def exact_match(answer: str, sample: Sample) -> float:
    """1 if the answer equals the completion but for case, runs of white space and a full stop at the end."""
    return float(_normalised(answer) == _normalised(sample.completion))


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).removesuffix(".").rstrip()
