"""How large the engine is, and how completions are drawn."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineSettings:
    """The size of the engine.

    Args:
        max_length: tokens of prompt and completion together, at most.
        max_sequences: how many are sampled at a time; more wait.
        cache_gib: memory for keys and values, GiB (2³⁰ bytes), beside that of the weights.
        compiled: let vLLM compile the model and capture CUDA graphs: quicker tokens after a longer start. On the CPU
            vLLM runs a model with adapters eagerly in any case.
    """

    max_length: int = 1024
    max_sequences: int = 64
    cache_gib: float = 1.0
    compiled: bool = False


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn, in vLLM's terms.

    Args:
        temperature: > 0.
        top_p: nucleus; 1 for all.
        top_k: 0 for all.
        min_p: relative to the likeliest token; 0 for all.
        stop_token_ids: what ends a completion, beside the end tokens of the model's generation configuration.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop_token_ids: tuple[int, ...] = ()
