"""Merge, and measure that the merged model is the same function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn


@dataclass(frozen=True)
class MergeReport:
    """The merged model against the unmerged one on the probe.

    Attributes:
        max_logit_difference: largest absolute change of a logit.
        max_logit: largest absolute logit of the unmerged model, to judge the change by.
    """

    max_logit_difference: float
    max_logit: float

    def __str__(self) -> str:
        return f"merged = unmerged to {self.max_logit_difference:.2e} (largest logit {self.max_logit:.1f})"


@torch.no_grad()
def merge(model: PeftModel, inputs: Mapping[str, Any]) -> tuple[nn.Module, MergeReport]:
    """`merge_and_unload` with the proof: the logits on ``inputs`` before and after.

    Args:
        model: a `PeftModel` whose active adapters have β = 0. It is consumed, as by `merge_and_unload`.
        inputs: keyword arguments of the model's forward, for example a tokenized sentence.

    Returns:
        the base model with the adapters merged, in eval mode, and the report.

    Raises:
        NotLinearError: an active adapter has β > 0.
    """
    model.eval()
    before = model(**inputs).logits.float()
    merged: nn.Module = model.merge_and_unload()
    after = merged(**inputs).logits.float()
    return merged, MergeReport(float((after - before).abs().max()), float(before.abs().max()))
