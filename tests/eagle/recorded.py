"""Recorded answers of tiny targets, and drafts that follow them always, at times, and never."""

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from afa_lora.eagle.evaluation.record import Turn, answer
from afa_lora.eagle.model import EagleDraft
from afa_lora.eagle.target import TargetEnds
from afa_lora.evaluation.generate import evaluating


def without_layers(target: PreTrainedModel) -> PreTrainedModel:
    """The target in float64 with layers that add nothing: the next token follows from the last one alone."""
    with torch.no_grad():
        for layer in target.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return target.double()


def follower(ends: TargetEnds, sign: float = 1.0) -> EagleDraft:
    """A draft that is always right about a target of `without_layers`: it passes on the embedding of the last token.

    With sign -1 it takes the least likely token for the likeliest, and is never right.
    """
    draft = ends.new_draft(ends.embedding.dtype).eval()
    hidden = ends.embedding.shape[1]
    with torch.no_grad():
        draft.layers[0].self_attn.o_proj.weight.zero_()
        draft.layers[0].mlp.down_proj.weight.zero_()
        draft.fc.weight.zero_()
        draft.fc.weight[:, :hidden] = sign * torch.eye(hidden, dtype=draft.dtype)
    return draft


def learner(ends: TargetEnds, turn: Turn, steps: int = 20) -> EagleDraft:
    """A draft that has learnt an answer in part: right at times, also after its own predictions."""
    torch.manual_seed(1)
    draft = ends.new_draft(ends.embedding.dtype)
    optimizer = torch.optim.Adam(draft.parameters(), lr=1e-2)
    for _ in range(steps):
        predicted = draft(ends.embed(turn.tokens[1:-1])[None], turn.features[None, :-1])[0]
        loss = functional.cross_entropy(ends.logits(predicted), turn.tokens[2:])
        loss = loss + 5 * functional.mse_loss(predicted, turn.features[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return draft.eval()


def recorded(target: PreTrainedModel, max_new_tokens: int, prompt: int = 6, seed: int = 0) -> Turn:
    """The answer to a random prompt."""
    tokens = torch.randint(3, 96, (prompt,), generator=torch.Generator().manual_seed(seed))
    with evaluating(target):
        return answer(target, tokens, max_new_tokens)
