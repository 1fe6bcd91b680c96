"""The merged draft, and the proof that it is the same function."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from afa_lora.eagle.model import EagleDraft
from afa_lora.eagle.target import TargetEnds
from afa_lora.peft.merge import MergeReport
from afa_lora.peft.model import AfaLoraModel


@dataclass(frozen=True)
class DraftMergeReport(MergeReport):
    """The merged draft against the unmerged one on real inputs.

    Attributes:
        max_feature_difference: largest absolute change of a number of a predicted feature.
        max_feature: largest absolute number of the unmerged draft's features, to judge the change by.
    """

    max_feature_difference: float
    max_feature: float

    def __str__(self) -> str:
        features = f"{self.max_feature_difference:.2e} (largest number {self.max_feature:.1f})"
        return f"{super().__str__()}, its features to {features}"


@torch.no_grad()
def merge_draft(
    draft: EagleDraft, tuner: AfaLoraModel, ends: TargetEnds, embeddings: Tensor, features: Tensor
) -> DraftMergeReport:
    """Merge the adapter into the draft's own weights, in place, and measure what that has changed.

    Args:
        draft: with the adapter; an ordinary draft in eval mode afterwards.
        tuner: what `afa_lora.eagle.adapter.train_jointly` returned.
        ends: of the target, for the logits.
        embeddings: (batch, length, hidden), as the draft reads them.
        features: (batch, length, hidden), as the draft reads them.

    Raises:
        NotLinearError: β > 0; nothing was changed.
    """
    draft.eval()
    before = draft(embeddings, features)
    tuner.merge_and_unload()
    after = draft(embeddings, features)
    head = ends.head.to(before.dtype)  # the products of half precision would differ by their rounding
    logits, merged = (linear(features, head) for features in (before, after))
    return DraftMergeReport(
        max_logit_difference=float((merged - logits).abs().max()),
        max_logit=float(logits.abs().max()),
        max_feature_difference=float((after - before).abs().max()),
        max_feature=float(before.abs().max()),
    )
