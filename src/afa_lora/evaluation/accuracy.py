"""The share of generated answers that are right, with the uncertainty that so many items leave."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from afa_lora.data import Sample
from afa_lora.evaluation.generate import generate_answers
from afa_lora.evaluation.scoring import Score

Z_95 = 1.959964  # 97.5% quantile of the normal distribution


@dataclass(frozen=True)
class Answer:
    """One generated answer beside the right one."""

    question: str
    right: str
    given: str
    score: float


@dataclass(frozen=True)
class Accuracy:
    """Scored answers to the test items."""

    answers: tuple[Answer, ...]

    @property
    def correct(self) -> int:
        """How many answers have the full score of 1."""
        return sum(answer.score >= 1.0 for answer in self.answers)

    @property
    def items(self) -> int:
        """How many items were tested."""
        return len(self.answers)

    @property
    def share(self) -> float:
        """The accuracy, in [0, 1]."""
        return self.correct / self.items

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the accuracy; it tells something at 0% and at 100% too."""
        n, p, z = self.items, self.share, Z_95
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    score: Score,
    *,
    max_new_tokens: int,
    batch_size: int,
    advance: Callable[[int], object] = lambda count: None,
) -> Accuracy:
    """Generate an answer to each sample and score it; the arguments are those of `generate_answers`."""
    given = generate_answers(
        model,
        tokenizer,
        [sample.prompt for sample in samples],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        advance=advance,
    )
    return Accuracy(
        tuple(
            Answer(sample.prompt[-1]["content"], sample.completion, answer, score(answer, sample))
            for sample, answer in zip(samples, given, strict=True)
        )
    )
