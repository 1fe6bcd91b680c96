"""How likely a model finds each allowed answer: what answers and items have in common is computed once.

Padding is always to the right, where causality hides it. So positions are those of the unpadded text, nothing needs a
mask, and no kind of attention or recurrence can tell a padded batch from single items.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer


@dataclass(frozen=True)
class Question:
    """A prompt with its allowed answers, in tokens.

    Attributes:
        shared: the prompt, and what all answers begin with.
        start: index in ``shared`` of the first token that is the answers'.
        rests: how each answer goes on after ``shared``; at least one token each.
    """

    shared: tuple[int, ...]
    start: int
    rests: tuple[tuple[int, ...], ...]


def to_question(tokenizer: PreTrainedTokenizerBase, prompt: str, answers: Sequence[str]) -> Question:
    """Tokenize the prompt together with each answer, so that no token is cut where the two meet.

    Args:
        tokenizer: adds no special tokens here; ``prompt`` has those that it needs.
        prompt: what stands before the answers.
        answers: different texts, none of them empty.
    """
    alone = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    wholes = [tokenizer(prompt + answer, add_special_tokens=False)["input_ids"] for answer in answers]
    shared = min(_common(wholes), min(map(len, wholes)) - 1)
    start = min(_common([alone, *wholes]), shared)
    return Question(tuple(wholes[0][:shared]), start, tuple(tuple(whole[shared:]) for whole in wholes))


class Likelihood:
    """Scores the answers to questions that begin alike, such as those of one task.

    Args:
        model: any causal language model, in evaluation mode. If it caches plain keys and values, what all questions
            begin with is computed once, here.
        questions: those that will be asked.

    Attributes:
        known: how many tokens of each question are computed already.
    """

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, questions: Sequence[Question]) -> None:
        self._model = model
        alike = min(_common([question.shared for question in questions]), *(q.start - 1 for q in questions))
        _, cache = _forward(model, [questions[0].shared[: max(alike, 1)]], 1, use_cache=True)
        self._cache = _plain(cache)
        self.known = 0 if self._cache is None else alike

    @torch.no_grad()
    def score(self, questions: Sequence[Question]) -> list[list[float]]:
        """The log-probability of each answer to each question, in nats, summed over the answer's tokens.

        Args:
            questions: of those that the object was made for; computed together as one batch.
        """
        longer = [(i, j) for i, q in enumerate(questions) for j, rest in enumerate(q.rests) if len(rest) > 1]
        log_probs, cache = _forward(
            self._model,
            [q.shared[self.known :] for q in questions],
            keep=max(len(q.shared) - q.start for q in questions) + 1,
            cache=None if self._cache is None else _rows(self._cache, [0] * len(questions), self.known),
            use_cache=self._cache is not None and bool(longer),
        )
        sums = []
        for question, row in zip(questions, log_probs, strict=True):  # row: (kept, vocabulary)
            answers = question.shared[question.start :]
            common = _chosen(row[-len(answers) - 1 : -1], answers)
            sums.append([common + float(row[-1, rest[0]]) for rest in question.rests])
        for length in {len(questions[i].shared) for i, _ in longer}:  # of like length, or the pads would be between
            group = [(i, j) for i, j in longer if len(questions[i].shared) == length]
            for (i, j), value in zip(group, self._continued(questions, group, _plain(cache)), strict=True):
                sums[i][j] += value
        return sums

    def _continued(
        self, questions: Sequence[Question], group: Sequence[tuple[int, int]], cache: DynamicCache | None
    ) -> list[float]:
        """The log-probability of answer j to question i from the second token of its rest on, for each (i, j)."""
        rests = [questions[i].rests[j] for i, j in group]
        known = len(questions[group[0][0]].shared)
        if cache is None:
            rows = [questions[i].shared + rest[:-1] for (i, _), rest in zip(group, rests, strict=True)]
        else:
            rows, cache = [rest[:-1] for rest in rests], _rows(cache, [i for i, _ in group], known)
        log_probs, _ = _forward(self._model, rows, keep=max(map(len, rests)) - 1, cache=cache)
        return [_chosen(row[-len(rest) + 1 :], rest[1:]) for row, rest in zip(log_probs, rests, strict=True)]


def _forward(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    keep: int,
    cache: Cache | None = None,
    use_cache: bool = False,
) -> tuple[Tensor, Cache | None]:
    """Compute what follows the last ``keep`` tokens of each row.

    Returns:
        log-probabilities, (rows, keep, vocabulary), float32, the last token's last; what stands for tokens that a
        shorter row does not have means nothing. And the model's cache.
    """
    longest = max(map(len, rows))
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    token_ids = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in rows], device=model.device)
    positions = (lengths[:, None] + torch.arange(-keep, 0, device=model.device)).clamp(min=0)  # (rows, keep)

    def pick(head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *others = inputs  # (rows, longest, hidden)
        return hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1])), *others

    hook = model.get_output_embeddings().register_forward_pre_hook(pick)  # a large vocabulary is most of a small model
    try:
        outputs = model(token_ids, use_cache=use_cache, **({"past_key_values": cache} if cache is not None else {}))
    finally:
        hook.remove()
    return outputs.logits.log_softmax(-1, torch.float32), getattr(outputs, "past_key_values", None)


def _plain(cache: Cache | None) -> DynamicCache | None:
    """``cache``, if it holds every layer's keys and values of every position, and nothing else."""
    is_plain = type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)
    return cache if is_plain else None  # type: ignore[return-value]


def _rows(cache: DynamicCache, rows: list[int], length: int) -> DynamicCache:
    """The first ``length`` positions of some rows, a row once for each time that it is named."""
    return DynamicCache([(keys[rows, :, :length], values[rows, :, :length]) for keys, values, *_ in cache])


def _chosen(log_probs: Tensor, tokens: Sequence[int]) -> float:
    """The sum of one log-probability in each row of (tokens, vocabulary)."""
    return float(log_probs[range(len(tokens)), list(tokens)].sum())


def _common(sequences: Iterable[Sequence[int]]) -> int:
    """How many tokens all of the sequences begin with alike."""
    count = 0
    for count, tokens in enumerate(zip(*sequences), 1):  # noqa: B905 - up to the shortest
        if len(set(tokens)) > 1:
            return count - 1
    return count
