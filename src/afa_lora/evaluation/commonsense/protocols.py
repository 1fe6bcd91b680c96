"""The two ways to put a task to a model. Each takes the items of one task, and answers them batch by batch."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from afa_lora.data.alpaca import use_alpaca_template
from afa_lora.data.commonsense import ANSWER_PREFIX, CommonsenseItem, find_answer
from afa_lora.evaluation.commonsense.folder import EvaluationError
from afa_lora.evaluation.commonsense.likelihood import Likelihood, to_question
from afa_lora.evaluation.commonsense.settings import EvaluationSettings
from afa_lora.evaluation.generate import generate_batch, longest_first

# Tokens of a batch, unless its size is given. A processor is fastest while the batch fits into its cache; the weights
# are read once for each generated token, so that generating wants more prompts at a time.
SCORED_TOKENS = {"cpu": 512}
GENERATED_TOKENS = {"cpu": 4096}
TOKENS = 16_384  # on any other device


@dataclass(frozen=True)
class Reply:
    """What a model says to an item: one of the answers or ``None``, and what the protocol records beside it."""

    given: str | None
    record: dict[str, Any]


class Asked(Protocol):
    """The items of one task, ready to be put to a model."""

    batches: list[list[int]]
    """Positions of the items that are computed together; the same in every process that evaluates them."""

    def answer(self, batch: Sequence[int]) -> list[Reply]:
        """The replies to one of `batches`."""


def render_prompts(
    tokenizer: PreTrainedTokenizerBase, items: Sequence[CommonsenseItem], settings: EvaluationSettings
) -> list[str]:
    """The text in front of each answer.

    Raises:
        EvaluationError: the chat template is asked for, and there is none.
    """
    if settings.prompt == "alpaca":
        tokenizer = copy.copy(tokenizer)  # its own template stays
        use_alpaca_template(tokenizer)
    elif tokenizer.chat_template is None:
        raise EvaluationError("prompt='chat': the model has no chat template. Use prompt='alpaca' (--prompt alpaca).")
    messages = [[{"role": "user", "content": item.instruction}] for item in items]
    return [str(tokenizer.apply_chat_template(m, tokenize=False, add_generation_prompt=True)) for m in messages]


class Generated:
    """Protocol ``paper``: an answer is generated, and the first match of the task's pattern in it counts."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        items: Sequence[CommonsenseItem],
        prompts: Sequence[str],
        settings: EvaluationSettings,
    ) -> None:
        self._model, self._tokenizer, self._settings, self._items = model, tokenizer, settings, items
        self._token_ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
        lengths = [len(ids) + settings.max_new_tokens for ids in self._token_ids]
        tokens = GENERATED_TOKENS.get(model.device.type, TOKENS) // settings.beams
        self.batches = longest_first(lengths, settings.batch_size, tokens)

    def answer(self, batch: Sequence[int]) -> list[Reply]:
        """Generate, no further than to the first answer: what follows it does not count."""
        choices = self._items[0].choices  # the pattern is the task's, whichever item it is asked for
        texts = generate_batch(
            self._model,
            self._tokenizer,
            [self._token_ids[i] for i in batch],
            max_new_tokens=self._settings.max_new_tokens,
            beams=self._settings.beams,
            done=(lambda text: find_answer(text, choices) is not None) if self._settings.beams == 1 else None,
        )
        return [Reply(find_answer(text, choices), {"text": text}) for text in texts]


class Scored:
    """Protocol ``likelihood``: the allowed answer with the largest log-probability."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        items: Sequence[CommonsenseItem],
        prompts: Sequence[str],
        settings: EvaluationSettings,
    ) -> None:
        self._items = items
        self._questions = [
            to_question(tokenizer, prompt, [ANSWER_PREFIX + choice for choice in item.choices])
            for item, prompt in zip(items, prompts, strict=True)
        ]
        self._likelihood = Likelihood(model, self._questions)
        lengths = [len(question.shared) - self._likelihood.known for question in self._questions]
        tokens = SCORED_TOKENS.get(model.device.type, TOKENS)
        self.batches = longest_first(lengths, settings.batch_size, tokens)

    def answer(self, batch: Sequence[int]) -> list[Reply]:
        """Score; of equally likely answers the first counts.

        Raises:
            EvaluationError: a log-probability is not a number.
        """
        replies = []
        for i, sums in zip(batch, self._likelihood.score([self._questions[i] for i in batch]), strict=True):
            item = self._items[i]
            if any(math.isnan(value) for value in sums):
                raise EvaluationError(f"{item.task}, item {item.index}: the model's log-probabilities are not numbers.")
            log_probs = dict(zip(item.choices, sums, strict=True))
            replies.append(Reply(max(log_probs, key=log_probs.__getitem__), {"log_probs": log_probs}))
        return replies


PROTOCOLS: dict[str, type[Generated] | type[Scored]] = {"paper": Generated, "likelihood": Scored}
