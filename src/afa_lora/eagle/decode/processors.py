"""Logits processors on the draft's side.

The target's logits are processed as ``generate`` does it: one call for each token of the output, with the text so far.
The draft's need not be processed at all, the output has the same distribution; where they are, more is accepted.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import logits_process

ROW_BY_ROW = frozenset(
    {
        "EpsilonLogitsWarper",
        "EtaLogitsWarper",
        "ExponentialDecayLengthPenalty",
        "ForcedBOSTokenLogitsProcessor",
        "ForcedEOSTokenLogitsProcessor",
        "InfNanRemoveLogitsProcessor",
        "LogitNormalization",
        "MinLengthLogitsProcessor",
        "MinNewTokensLengthLogitsProcessor",
        "MinPLogitsWarper",
        "NoBadWordsLogitsProcessor",
        "NoRepeatNGramLogitsProcessor",
        "RepetitionPenaltyLogitsProcessor",
        "SequenceBiasLogitsProcessor",
        "SuppressTokensAtBeginLogitsProcessor",
        "SuppressTokensLogitsProcessor",
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "TypicalLogitsWarper",
    }
)
"""Those of transformers that keep no state and treat each row of a batch for itself. Of others nothing is known: one
that was written for a batch of one, or counts its calls, would go wrong on a draft's proposals."""


class DraftProcess:
    """Applies to the draft's logits what can be applied to them.

    Args:
        processors: those of the generation.

    Attributes:
        text: (1, length), up to the root; set by whoever decodes.
    """

    def __init__(self, processors: LogitsProcessorList) -> None:
        self.processors = LogitsProcessorList(
            processor
            for processor in processors
            if type(processor).__name__ in ROW_BY_ROW and type(processor).__module__ == logits_process.__name__
        )
        self.text: Tensor | None = None

    def __call__(self, paths: Tensor, logits: Tensor) -> Tensor:
        """Process (nodes, vocabulary) logits after (nodes, depth) tokens below the root."""
        if not self.processors or self.text is None:
            return logits
        texts = torch.cat((self.text.expand(len(paths), -1), paths), dim=1)
        scores: Tensor = self.processors(texts, logits)  # type: ignore[arg-type]
        return scores
