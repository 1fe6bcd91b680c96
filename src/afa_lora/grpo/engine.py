"""vLLM in the place of transformers: what the recipe's ``rollout`` and ``train`` sections mean for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig

from afa_lora.data import Sample
from afa_lora.data.prompts import prompt_lengths
from afa_lora.grpo.recipe import Recipe
from afa_lora.grpo.rollout.engine import VllmRollout
from afa_lora.grpo.rollout.rules import engine_at
from afa_lora.grpo.rollout.settings import EngineSettings, Sampling
from afa_lora.tuning.adapter import adapter_config
from afa_lora.tuning.loading import training_precision

CALIBRATION_ROWS = 16  # of a batch that the slopes of the linearisation are measured on


class VllmEngine:
    """`VllmRollout` with the sampling of a `GRPOConfig`; it starts when it is first needed.

    Args:
        policy: vllm-wait, vllm-linearized or vllm-exact.
        start: starts vLLM.
        args: how completions are drawn.
        end_tokens: what ends a completion.
    """

    def __init__(
        self, policy: str, start: Callable[[], VllmRollout], args: GRPOConfig, end_tokens: Sequence[int]
    ) -> None:
        self._policy, self._start, self._args = policy, start, args
        self._rollout: VllmRollout | None = None
        self._sampling = Sampling(
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            min_p=args.min_p or 0.0,
            stop_token_ids=tuple(end_tokens),
        )

    def sync(
        self, model: PeftModel | PreTrainedModel, step: int, calibration: Sequence[Mapping[str, Tensor]]
    ) -> Mapping[str, float]:
        """Take over the present policy. Returns what to log."""
        if self._rollout is None:
            self._rollout = self._start()
        return self._rollout.sync(model, step, calibration).metrics()

    def sample(self, prompts: Sequence[Sequence[int]], seed: int) -> tuple[list[list[int]], list[list[float]]]:
        """One completion for each prompt: its tokens, and their log-probabilities."""
        assert self._rollout is not None
        given = [list(prompt) for prompt in prompts]
        longest = self._args.max_completion_length or 0
        return self._rollout.generate(given, max_tokens=longest, seed=seed, sampling=self._sampling)

    def serves(self, beta: float) -> bool:
        """Whether vLLM samples at that β; transformers does where it does not."""
        return engine_at(self._policy, beta) == "vllm"

    def close(self) -> None:
        """Give the engine's memory back."""
        if self._rollout is not None:
            self._rollout.close()
            self._rollout = None


def make_engine(
    recipe: Recipe,
    args: GRPOConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
) -> VllmEngine | None:
    """The engine that the recipe's ``rollout`` names; ``None`` for transformers.

    Args:
        recipe: its ``model``, ``method`` and ``rollout``.
        args: the trainer's configuration.
        model: the base model; its generation configuration says what else ends a completion.
        tokenizer: the model's.
        samples: what is trained on; the engine has room for the longest prompt.
    """
    if recipe.rollout == "transformers":
        return None
    config = None if recipe.method == "full" else adapter_config(recipe)
    length = max(prompt_lengths(samples, tokenizer)) + (args.max_completion_length or 0)
    settings = EngineSettings(max_length=length, **recipe.engine.model_dump())

    def start() -> VllmRollout:
        weights, folder = training_precision(recipe).compute, str(model.name_or_path)
        return VllmRollout(recipe.rollout, folder, config, dtype=weights, settings=settings)

    generation = getattr(model.generation_config, "eos_token_id", None)
    ends = [generation] if isinstance(generation, int) else list(generation or [])
    return VllmEngine(recipe.rollout, start, args, [*dict.fromkeys([*ends, tokenizer.eos_token_id])])


def calibration_batches(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> list[dict[str, Tensor]]:
    """Token rows as batches for `afa_lora.linearize`, padded on the left."""
    batches = []
    for start in range(0, len(rows), CALIBRATION_ROWS):
        chunk = [list(row) for row in rows[start : start + CALIBRATION_ROWS]]
        longest = max(map(len, chunk))
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in chunk], device=device)  # (rows, longest)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in chunk], device=device)
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches
