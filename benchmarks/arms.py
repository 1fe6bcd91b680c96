"""The models that the benchmark compares: one frozen base, and adapters of several kinds on copies that share it."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from afa_lora import AfaLoraConfig, set_beta

BASE = "base"
PEFT_LORA = "peft-lora"
PEFT_DORA = "peft-dora"
ANNEALING_BETA = 0.5
PLACEMENTS = ("σ-A-B", "A-σ-B", "A-B-σ", "σ-A-σ-B", "A-σ-B-σ", "σ-A-B-σ", "σ-A-σ-B-σ")  # the order of Table 1
DEFAULT_PLACEMENT = "A-σ-B"

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2": {  # SmolLM2-135M
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "llama3-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
}


@dataclass(frozen=True)
class Arm:
    """One thing to measure.

    Args:
        name: what the table and the JSON call it.
        reference: the arm that its ratio is taken to.
        config: makes its adapter's config; ``None`` for the frozen base alone.
        beta: β to set, ``None`` for an adapter of PEFT's own.
    """

    name: str
    reference: str
    config: Callable[[int], LoraConfig] | None = None
    beta: float | None = None


def _peft(use_dora: bool) -> Callable[[int], LoraConfig]:
    return lambda r: LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear", use_dora=use_dora)


def _afa(use_dora: bool, placement: str, activation: str) -> Callable[[int], LoraConfig]:
    return lambda r: AfaLoraConfig(
        r=r,
        lora_alpha=2 * r,
        target_modules="all-linear",
        use_dora=use_dora,
        placement=placement,
        activation=activation,
    )


def all_arms(activation: str) -> list[Arm]:
    """Return every arm, in the order of the table."""
    lora = [
        Arm(f"afa-lora/{placement}", PEFT_LORA, _afa(False, placement, activation), ANNEALING_BETA)
        for placement in PLACEMENTS
    ]
    return [
        Arm(BASE, PEFT_LORA),
        Arm(PEFT_LORA, PEFT_LORA, _peft(use_dora=False)),
        *lora,
        Arm("afa-lora/after", PEFT_LORA, _afa(False, DEFAULT_PLACEMENT, activation), 0.0),
        Arm(PEFT_DORA, PEFT_DORA, _peft(use_dora=True)),
        Arm(f"afa-dora/{DEFAULT_PLACEMENT}", PEFT_DORA, _afa(True, DEFAULT_PLACEMENT, activation), ANNEALING_BETA),
        Arm("afa-dora/after", PEFT_DORA, _afa(True, DEFAULT_PLACEMENT, activation), 0.0),
    ]


def select_arms(arms: list[Arm], patterns: list[str]) -> list[Arm]:
    """Return the arms whose names match one of the glob patterns; ``s`` may stand for σ after the slash.

    Raises:
        ValueError: a pattern matches no arm.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        kind, slash, rest = pattern.partition("/")
        spellings = {pattern, kind + slash + rest.replace("s", "σ")}
        matched = {arm.name for arm in arms if any(fnmatch.fnmatchcase(arm.name, s) for s in spellings)}
        if not matched:
            raise ValueError(f"--arms {pattern}: no such arm; there are {', '.join(arm.name for arm in arms)}")
        chosen |= matched
    return [arm for arm in arms if arm.name in chosen]


def build_base(shape: str, layers: int | None, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Return a Llama of the given shape with random weights, every one of them frozen."""
    settings = SHAPES[shape] | ({} if layers is None else {"num_hidden_layers": layers})
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(LlamaConfig(**settings, use_cache=False), dtype=dtype)
    return model.requires_grad_(False).train()


def share(model: nn.Module) -> nn.Module:
    """Return a copy of the module tree whose parameters and buffers are the very tensors of ``model``."""
    memo: dict[int, object] = {id(t): t for t in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, memo)


def build_arm(base: nn.Module, arm: Arm, rank: int, dtype: torch.dtype) -> nn.Module:
    """Return the arm's model: the base's modules copied, its weights shared, the adapter added.

    Every B gets random values in place of its zeros, so that no gradient vanishes and nothing is trivially sparse.
    """
    model = share(base)
    if arm.config is None:
        return model
    torch.manual_seed(1)
    model = get_peft_model(model, arm.config(rank)).train()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.02)
    if arm.beta is not None:
        set_beta(model, arm.beta)
    return model


def make_step(model: nn.Module, frozen: bool, tokens: Tensor) -> tuple[Callable[[], Tensor], Callable[[], None]]:
    """Return ``forward() -> loss`` and ``clear()``, which drops the gradients.

    The frozen base takes its embeddings as an input that requires a gradient: it runs the same backward through
    every layer that an adapter in the first layer would ask of it.
    """
    leaves = [p for p in model.parameters() if p.requires_grad]
    if frozen:
        embeddings = model.get_input_embeddings()(tokens).requires_grad_()  # type: ignore[operator]
        leaves = [embeddings]

    def forward() -> Tensor:
        inputs = {"inputs_embeds": embeddings} if frozen else {"input_ids": tokens}
        loss: Tensor = model(**inputs, labels=tokens).loss
        return loss

    def clear() -> None:
        for leaf in leaves:
            leaf.grad = None

    return forward, clear
