"""Target and draft decoding together, against the target alone, by the wall clock."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from afa_lora.eagle.decode import Shape, SpeculativeDecoding
from afa_lora.eagle.evaluation.record import Turn, generate
from afa_lora.eagle.model import EagleDraft


@dataclass(frozen=True)
class LiveCounts:
    """One prompt, decoded twice.

    Attributes:
        plain: seconds of plain greedy decoding.
        speculative: seconds of speculative decoding.
        plain_tokens: that plain decoding gave.
        tokens: that speculative decoding gave; rounding may make it another answer, of another length.
        plain_equal: whether plain decoding gave the recorded tokens again.
        equal: whether speculative decoding gave the recorded tokens.
        accepted: of each cycle of the speculative decoding, how many draft tokens were accepted and kept.
    """

    plain: float
    speculative: float
    plain_tokens: int
    tokens: int
    plain_equal: bool
    equal: bool
    accepted: tuple[int, ...]

    @property
    def plain_for_as_many(self) -> float:
        """Seconds of plain decoding for as many tokens as speculative decoding gave."""
        return self.plain * self.tokens / self.plain_tokens

    def __add__(self, other: LiveCounts) -> LiveCounts:
        return LiveCounts(
            self.plain + other.plain,
            self.speculative + other.speculative,
            self.plain_tokens + other.plain_tokens,
            self.tokens + other.tokens,
            self.plain_equal and other.plain_equal,
            self.equal and other.equal,
            self.accepted + other.accepted,
        )


class LiveRun:
    """Decodes recorded prompts in both ways, taking turns at going first.

    Args:
        target: inside `afa_lora.evaluation.generate.evaluating`.
        draft: on its device.
        shape: what is proposed in each cycle.
        max_new_tokens: that the record was made with.
    """

    def __init__(self, target: PreTrainedModel, draft: EagleDraft, shape: Shape, max_new_tokens: int) -> None:
        self._target, self._limit = target, max_new_tokens
        self._decoding = SpeculativeDecoding(draft, shape)
        self._runs = 0

    def decode(self, turn: Turn) -> LiveCounts:
        """Decode one recorded prompt in both ways; the first call decodes twice, and times the second time alone."""
        if not self._runs:
            self._both(turn)
        return self._both(turn)

    def _both(self, turn: Turn) -> LiveCounts:
        prompt = turn.tokens[: turn.prompt]
        ways = {"plain": {}, "speculative": {"custom_generate": self._decoding}}
        order = list(ways) if self._runs % 2 else list(reversed(ways))
        self._runs += 1
        done = {way: generate(self._target, prompt, self._limit, **ways[way]) for way in order}
        equal = {way: torch.equal(tokens.cpu(), turn.tokens) for way, (tokens, _) in done.items()}
        return LiveCounts(
            done["plain"][1],
            done["speculative"][1],
            len(done["plain"][0]) - turn.prompt,
            len(done["speculative"][0]) - turn.prompt,
            equal["plain"],
            equal["speculative"],
            tuple(self._decoding.last.accepted),
        )
