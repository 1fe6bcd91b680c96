"""Log-probabilities of one model by vLLM and by transformers, to be compared."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from afa_lora import load_adapter

BASE = "llama with wide heads"  # vLLM's attention for the CPU wants heads of 32 channels
PROMPTS = [[5, 6, 7, 8, 9], [40, 41, 42, 43, 44, 45, 46], [100, 101], [7] * 12]
TOKENS = 12
EQUAL, DIFFERENT = 1e-3, 0.1  # nats


@torch.no_grad()
def log_probs(
    model: torch.nn.Module, prompt: list[int], answer: list[int], temperature: float = 1.0, top_k: int = 0
) -> Tensor:
    """What transformers computes for each token of ``answer``, (answer,)."""
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].double() / temperature
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]


def load(base: Path, adapter: Path | None) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return (load_adapter(model, adapter) if adapter else model).eval()


def largest_difference(model: torch.nn.Module, prompts: list[list[int]], drawn: Any, **how: Any) -> float:
    """Between the log-probabilities that came with the tokens and those of ``model``."""
    differences = [
        (torch.tensor(given) - log_probs(model, prompt, answer, **how)).abs().max()
        for prompt, answer, given in zip(prompts, *drawn, strict=True)
    ]
    return float(torch.stack(differences).max())
