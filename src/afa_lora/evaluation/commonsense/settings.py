"""What an evaluation is asked to do, and what exactly was evaluated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import PositiveInt, model_validator
from torch import nn
from transformers import PreTrainedModel

from afa_lora.data.commonsense import CommonsenseItem, items_fingerprint
from afa_lora.peft.model import anneal_states
from afa_lora.settings import Section

SAMPLED_VALUES = 1024  # of each parameter
FINGERPRINT = 16  # hexadecimal digits
FOR_GENERATION = {"max_new_tokens", "beams"}


class EvaluationSettings(Section):
    """How the eight tasks are put to a model."""

    protocol: Literal["paper", "likelihood"] = "paper"
    """``paper`` generates an answer and looks for the first allowed one in it; ``likelihood`` takes the allowed answer
    with the largest log-probability."""
    prompt: Literal["alpaca", "chat"] = "alpaca"
    """The form of the prompt: Alpaca's, or the model's own chat template."""
    tasks: list[str] | None = None
    """The tasks' names; all eight unless given."""
    limit: PositiveInt | None = None
    """At most so many items of each task."""
    max_new_tokens: PositiveInt = 32
    """The longest generated answer, in tokens."""
    beams: PositiveInt = 1
    """1 generates the most likely token each time; more search with so many beams."""
    batch_size: PositiveInt | None = None
    """How many items at a time; unless given, as many as the device computes at full speed. It changes the numbers by
    rounding at most."""
    model: str | None = None
    """The model's name, for the record: what counts is the fingerprint of its weights."""
    adapter: str | None = None
    """The adapter's folder, for the record."""

    @model_validator(mode="after")
    def _beams_generate(self) -> EvaluationSettings:
        if self.protocol == "likelihood" and self.beams > 1:
            raise ValueError(f"beams={self.beams} is for protocol='paper': likelihood generates nothing")
        return self


def describe(
    model: PreTrainedModel, items: Sequence[CommonsenseItem], prompts: Sequence[str], settings: EvaluationSettings
) -> dict[str, Any]:
    """What decides the answers: the settings, and fingerprints of weights, items and prompts."""
    unused = FOR_GENERATION if settings.protocol == "likelihood" else set()
    beta = max((state.beta for state in anneal_states(model).values()), default=0.0)
    return {
        **settings.model_dump(mode="json", exclude={"batch_size", *unused}),
        "weights": weights_fingerprint(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        **({"beta": beta} if beta > 0 else {}),
        "data": items_fingerprint(items),
        "prompts": _digest(json.dumps(list(prompts), ensure_ascii=False)),
    }


@torch.no_grad()
def weights_fingerprint(model: nn.Module) -> str:
    """16 hexadecimal digits of a SHA-256 over the names, shapes and dtypes of all parameters, and up to 1,024 evenly
    spaced values of each: a fraction of a second for a model of any size.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.reshape(-1)
        chosen = values[:: max(1, -(-len(values) // SAMPLED_VALUES))].contiguous()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(chosen.view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()[:FINGERPRINT]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT]
