"""The drafts that are compared: by the folder of a run, by that of a draft, or untrained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from afa_lora.eagle.decode.checks import check_draft
from afa_lora.eagle.model import DraftError, EagleDraft, find_draft, load_draft
from afa_lora.eagle.target import TargetEnds
from afa_lora.evaluation.commonsense.settings import weights_fingerprint

UNTRAINED = "untrained"
SEED = 0  # of the untrained draft


@dataclass(frozen=True)
class NamedDraft:
    """A draft with its name.

    Attributes:
        name: in the tables.
        draft: on the target's device, in its dtype.
        weights: a fingerprint of its weights.
    """

    name: str
    draft: EagleDraft
    weights: str


def name_drafts(given: Sequence[str]) -> dict[str, str]:
    """Short names for drafts: the folder's own name, or all of what was given where two have the same.

    Raises:
        DraftError: there is none, or the same one twice.
    """
    if not given or len(set(given)) < len(given):
        raise DraftError(f"drafts={' '.join(given)!r}: give at least one draft, and each once.")
    short = [Path(text).resolve().name if text != UNTRAINED else text for text in given]
    return {(name if short.count(name) == 1 else text): text for name, text in zip(short, given, strict=True)}


def load_drafts(given: Mapping[str, str], ends: TargetEnds) -> list[NamedDraft]:
    """Load drafts, in the dtype and onto the device of the target's ends.

    Args:
        given: name in the tables → folder, or ``untrained``.
        ends: of their target.

    Raises:
        DraftError: a draft cannot be loaded, or was trained for another target.
    """
    drafts = []
    for name, place in given.items():
        draft = untrained_draft(ends) if place == UNTRAINED else _load(place, ends)
        drafts.append(NamedDraft(name, draft, weights_fingerprint(draft)))
    return drafts


def untrained_draft(ends: TargetEnds) -> EagleDraft:
    """A draft as training begins with it; the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        draft = ends.new_draft(ends.embedding.dtype)
    placed: EagleDraft = draft.to(ends.embedding.device).eval()  # type: ignore[arg-type]
    return placed


def _load(place: str, ends: TargetEnds) -> EagleDraft:
    draft = load_draft(find_draft(Path(place)), dtype=ends.embedding.dtype)
    check_draft(draft, ends)
    placed: EagleDraft = draft.to(ends.embedding.device)  # type: ignore[arg-type]
    return placed
