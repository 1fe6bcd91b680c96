"""Greedy tokens of another program, judged by transformers."""

import torch

# A tie is when the roundings of float32, which differ between programs, decide: logits nearer than this.
TIE = 1e-3


@torch.no_grad()
def is_greedy(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> bool:
    """Whether each token of ``answer`` is the one that ``model`` finds likeliest there, or tied with it.

    Judged token by token, so that a tie early in an answer does not make all that follows incomparable.
    """
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]  # (answer, vocabulary)
    chosen = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
    return bool((logits.max(1).values - chosen).max() < TIE)
