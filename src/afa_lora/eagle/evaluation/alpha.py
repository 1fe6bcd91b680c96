"""n-α: how often a draft is right after n of its own predictions (EAGLE-1, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache

from afa_lora.eagle.evaluation.measures import AlphaCounts
from afa_lora.eagle.evaluation.record import Turn
from afa_lora.eagle.model import EagleDraft
from afa_lora.eagle.target import TargetEnds

STEPS = 5
"""0-α to 4-α, as in the paper of EAGLE-1."""


@torch.no_grad()
def alpha_counts(draft: EagleDraft, ends: TargetEnds, turn: Turn, steps: int = STEPS) -> AlphaCounts:
    """Count right predictions at each step of a chain, over all positions of a recorded answer.

    From every position i whose next token t_{i+1} is of the answer a chain is drawn. At its step n the draft reads
    (t_{i+n+1}, f̂_{i+n}), where f̂_i = f_i and f̂_{i+n} is its own prediction of step n - 1; before it, it has read the
    true features up to f_i and its own n - 1 predictions after that. The tokens are the target's throughout (teacher
    forcing). It is right where the likeliest token of f̂_{i+n+1} is the target's t_{i+n+2}:

        n-α = right predictions / positions i for which t_{i+n+2} is recorded

    Every position counts alike, also one at which an earlier step of the chain was wrong, and one that decoding would
    have skipped over. So n-α tells how predictions fare on predicted features, apart from the tokens; a decoder's
    acceptance at step n, among the cycles that reach it, is another number.

    Args:
        draft: the draft.
        ends: of its target, on the draft's device.
        turn: a recorded answer, on any device.
        steps: how many n, from 0 on.
    """
    device = ends.embedding.device
    tokens, features = turn.tokens.to(device), turn.features.to(device, ends.embedding.dtype)
    first, last = turn.prompt - 1, len(tokens) - 3  # of the positions i that chains begin at
    chains = last - first + 1
    hits, positions = [0] * steps, [0] * steps
    if chains < 1:
        return AlphaCounts(tuple(hits), tuple(positions))
    cache = DynamicCache()
    embedded = ends.embed(tokens)
    predicted = draft(embedded[None, 1 : last + 2], features[None, : last + 1], past_key_values=cache)[:, first:]
    starts = torch.arange(first, last + 1, device=device)  # (chains,)
    seen = torch.arange(last + 1, device=device) <= starts[:, None]  # (chains, keys): the true features up to f_i
    for step in range(min(steps, chains)):
        count = chains - step  # the last chains end where the record does
        if step:
            predicted, seen = predicted[:, :count], seen[:count]
            own = torch.eye(count, dtype=torch.bool, device=device)  # and what the chain itself has predicted
            seen = torch.cat((seen, own), dim=1)
            at = starts[:count] + step
            mask = torch.zeros(seen.shape, dtype=predicted.dtype, device=device)
            mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)
            predicted = draft(
                embedded[None, at + 1],
                predicted,
                attention_mask=mask[None, None],
                position_ids=at[None],
                past_key_values=cache,
            )
        right: Tensor = ends.logits(predicted[0]).argmax(-1) == tokens[starts[:count] + step + 2]
        hits[step], positions[step] = int(right.sum()), count
    return AlphaCounts(tuple(hits), tuple(positions))
