"""The output of a generation, token by token: what `GenerationMixin.generate` does with each token is done here."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    StoppingCriteriaList,
)
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation.streamers import BaseStreamer


class Output:
    """The text, and everything that is called once for each of its tokens.

    Logits processors, stopping criteria and the streamer see one token after the other, as without a draft, so those
    that keep a state or were written for one text work too.

    Args:
        text: (1, prompt).
        processors: applied to the target's logits.
        criteria: say when to stop.
        config: of the generation.
        streamer: gets each token.

    Attributes:
        text: (1, length), the prompt and what was generated.
        stopped: whether a criterion was met.
    """

    def __init__(
        self,
        text: Tensor,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        config: GenerationConfig,
        streamer: BaseStreamer | None,
    ) -> None:
        self.text, self.processors, self.criteria, self.streamer = text, processors, criteria, streamer
        self.as_dict = bool(config.return_dict_in_generate)
        self.scores: tuple[Tensor, ...] | None = () if self.as_dict and config.output_scores else None
        self.logits: tuple[Tensor, ...] | None = () if self.as_dict and config.output_logits else None
        self.stopped = False

    @property
    def plain(self) -> bool:
        """Whether the logits are used as they are, and not kept."""
        return not self.processors and self.scores is None and self.logits is None

    def process(self, logits: Tensor) -> Tensor:
        """(vocabulary,) the target's logits after the text, to (vocabulary,) scores in float32."""
        raw = logits[None].to(torch.float32, copy=True)
        scores: Tensor = self.processors(self.text, raw)  # type: ignore[arg-type]
        if self.logits is not None:
            self.logits += (raw,)
        if self.scores is not None:
            self.scores += (scores,)
        return scores[0]

    def add(self, token: int) -> None:
        """Append a token, and see whether to stop."""
        new = torch.tensor([token], device=self.text.device)
        self.text = torch.cat((self.text, new[None]), dim=1)
        self.stopped = bool(self.criteria(self.text, self.scores).all())
        if self.streamer is not None:
            self.streamer.put(new.cpu())

    def finish(self, cache: DynamicCache) -> Tensor | GenerateDecoderOnlyOutput:
        """What ``generate`` returns."""
        if self.streamer is not None:
            self.streamer.end()
        if not self.as_dict:
            return self.text
        return GenerateDecoderOnlyOutput(
            sequences=self.text,  # type: ignore[arg-type]
            scores=self.scores,  # type: ignore[arg-type]
            logits=self.logits,  # type: ignore[arg-type]
            past_key_values=cache,
        )


def streamer_of_generate() -> BaseStreamer | None:
    """The streamer that was given to the running ``generate``.

    transformers (5.9 to 5.19 at least) shows a streamer the prompt but hands it to no ``custom_generate``, so that
    whoever waits for its end would wait forever. It is looked up where it is: among the caller's local variables.
    """
    generate = inspect.unwrap(GenerationMixin.generate).__code__
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is generate:
            streamer: BaseStreamer | None = frame.f_locals.get("streamer")
            return streamer
        frame = frame.f_back
    return None
