"""The log-probabilities of the tokens that transformers samples, taken where they are sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel


class SampledLogProbs(LogitsProcessor):
    """Changes nothing; notes log π(token) at the sampling temperature for every token that is sampled.

    It sees the logits before the temperature, top-k, top-p and min-p: what it notes is the whole policy's, as the
    trainer computes it. Of the logits only the last step's are kept.

    Args:
        temperature: of the sampling.
    """

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature
        self._logits: Tensor | None = None  # (batch, vocabulary), of the token that is being sampled
        self._noted: list[Tensor] = []  # (batch,) for each token

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._note(input_ids[:, -1])
        self._logits = scores
        return scores

    def of(self, completions: Sequence[Sequence[int]]) -> list[list[float]]:
        """The log-probabilities of the tokens of each completion, once all are sampled."""
        steps = len(self._noted) + 1
        assert self._logits is not None
        last = [tokens[-1] if len(tokens) == steps else 0 for tokens in completions]
        self._note(torch.tensor(last, device=self._logits.device))
        rows = torch.stack(self._noted, dim=1).tolist()  # (batch, steps)
        return [row[: len(tokens)] for row, tokens in zip(rows, completions, strict=True)]

    def _note(self, tokens: Tensor) -> None:
        if self._logits is None:
            return  # these are the prompts'
        scaled = self._logits.float() / self._temperature
        chosen = scaled.gather(1, tokens.unsqueeze(1)).squeeze(1)
        self._noted.append(chosen - scaled.logsumexp(1))


@contextmanager
def noting(model: PreTrainedModel, sampled: SampledLogProbs) -> Iterator[None]:
    """Have ``model.generate`` note what it samples inside the block."""
    generate: Any = model.generate
    model.generate = partial(generate, logits_processor=LogitsProcessorList([sampled]))  # type: ignore[assignment]
    try:
        yield
    finally:
        del model.generate
