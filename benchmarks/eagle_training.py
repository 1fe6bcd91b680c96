"""Time and memory of a step of a draft's training: alone, with LoRA, with AFA-LoRA, in one process.

    python benchmarks/eagle_training.py                             # a draft for SmolLM2-135M's shape on the CPU
    python benchmarks/eagle_training.py --device cuda --dtype bfloat16 --shape llama3-8b --batch 4 --tokens 2048
    python benchmarks/eagle_training.py --arms eagle 'eagle+lora' 'eagle+afa-lora*' --repeats 15

A step is what `afa eagle train` does with a batch: noise, draft, both losses over every position, backward, AdamW. The
target's ends and the features are random numbers of the target's shape. With `--dtype bfloat16` the draft's weights
stay float32 and autocast computes, as in the training. The arms take turns, as in `step.py`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from arms import ANNEALING_BETA, SHAPES, Arm
from measure import provenance
from step import Runner, print_table, run_rounds
from torch import Tensor
from transformers import LlamaConfig

from afa_lora import set_beta
from afa_lora.eagle.adapter import train_jointly
from afa_lora.eagle.alignment import draft_inputs
from afa_lora.eagle.loss import draft_losses
from afa_lora.eagle.model import EagleDraft
from afa_lora.eagle.recipe import parse_recipe
from afa_lora.eagle.target import TargetEnds
from afa_lora.eagle.trainer import add_noise

NOISE, TOKEN_WEIGHT = 0.2, 0.1


ARMS = (  # the method, and ``/after`` for one that has annealed
    Arm("eagle", "eagle+lora"),
    Arm("eagle+lora", "eagle+lora"),
    Arm("eagle+afa-lora", "eagle+lora", beta=ANNEALING_BETA),
    Arm("eagle+afa-lora/after", "eagle+lora", beta=0.0),
    Arm("eagle+dora", "eagle+dora"),
    Arm("eagle+afa-dora", "eagle+dora", beta=ANNEALING_BETA),
)


class DraftRunner(Runner):
    """One arm, ready to run: its draft, its step with its optimizer, and what has been measured."""

    def __init__(self, arm: Arm, draft: EagleDraft, forward: Callable[[], Tensor], tokens: Tensor) -> None:
        self.arm, self.model, self.tokens, self.forward = arm, draft, tokens, forward
        self.trainable = sum(p.numel() for p in draft.parameters() if p.requires_grad)
        self.optimizer = torch.optim.AdamW(draft.parameters(), lr=0.0)
        self.clear = self.optimizer.zero_grad
        self.elapsed, self.saved, self.peak = [], None, 0

    def result(self, reference: Runner | None) -> dict[str, Any]:
        """Return the arm's row of the JSON."""
        row = super().result(reference)
        return row | {"tokens_per_second": self.tokens.numel() / row["median_s"]}


def make_ends(shape: str, device: torch.device, dtype: torch.dtype) -> TargetEnds:
    """Return the ends of a target of the given shape, with random numbers."""
    config = LlamaConfig(**SHAPES[shape])
    embedding = 0.02 * torch.randn(config.vocab_size, config.hidden_size, device=device, dtype=dtype)
    tied = SHAPES[shape]["tie_word_embeddings"]
    return TargetEnds(shape, config, embedding, embedding if tied else embedding.clone(), "")


def make_batch(ends: TargetEnds, batch: int, tokens: int) -> dict[str, Tensor]:
    """Return conversations that are the assistant's throughout: every position counts."""
    device, dtype = ends.embedding.device, ends.embedding.dtype
    ids = torch.randint(ends.config.vocab_size, (batch, tokens), device=device)
    features = torch.randn(batch, tokens - 1, ends.config.hidden_size, device=device, dtype=dtype)
    return {"tokens": ids, "features": features, "lengths": torch.full((batch,), tokens, device=device)}


def make_runner(arm: Arm, ends: TargetEnds, batch: dict[str, Tensor], settings: argparse.Namespace) -> DraftRunner:
    """Return the arm's draft with its adapter, and its forward."""
    torch.manual_seed(1)
    draft = ends.new_draft().to(ends.embedding.device).train()  # type: ignore[arg-type]
    method = arm.name.partition("/")[0]
    adapter = {"r": settings.rank, "lora_alpha": 2 * settings.rank}
    recipe = {"model": "-", "output": "-", "method": method, "data": {"conversations": []}, "adapter": adapter}
    train_jointly(draft, parse_recipe({**recipe, "anneal": {"activation": settings.activation}}))
    for name, parameter in draft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    if arm.beta is not None:
        set_beta(draft, arm.beta)
    half = ends.embedding.dtype != torch.float32

    def forward() -> Tensor:
        embeddings, features = draft_inputs(batch, ends, None, torch.float32)
        with torch.autocast(embeddings.device.type, ends.embedding.dtype, enabled=half):
            predicted = draft(embeddings, add_noise(features[:, :-1], batch["lengths"], NOISE)).float()
        losses = draft_losses(predicted.flatten(0, 1), features[:, 1:].flatten(0, 1), ends.head, settings.chunk)
        return losses.feature.mean() + TOKEN_WEIGHT * losses.token.mean()

    return DraftRunner(arm, draft, forward, batch["tokens"])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="what is computed in")
    parser.add_argument("--shape", default="smollm2", choices=sorted(SHAPES), help="the target's")
    parser.add_argument("--batch", type=int, default=4, help="conversations a step")
    parser.add_argument("--tokens", type=int, default=128, help="tokens a conversation")
    parser.add_argument("--chunk", type=int, default=1024, help="positions that go through the output layer at a time")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--activation", default="silu")
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before them")
    parser.add_argument("--arms", nargs="+", default=[arm.name for arm in ARMS], choices=[arm.name for arm in ARMS])
    parser.add_argument("--threads", type=int, help="threads of PyTorch on the CPU")
    parser.add_argument("--out", type=Path, help="JSON file (default: benchmarks/results/eagle_training_DEVICE.json)")
    settings = parser.parse_args()
    if settings.repeats < 2:
        parser.error(f"--repeats {settings.repeats}: a median and its spread need at least 2")
    return settings


def main() -> None:
    settings = parse_arguments()
    device = torch.device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    before = provenance(device)
    torch.manual_seed(0)
    ends = make_ends(settings.shape, device, getattr(torch, settings.dtype))
    batch = make_batch(ends, settings.batch, settings.tokens)
    runners: list[Runner] = [make_runner(arm, ends, batch, settings) for arm in ARMS if arm.name in settings.arms]
    for runner in runners:
        runner.measure_memory(device, compiled=False)
    run_rounds(runners, settings.repeats, settings.warmup, device)

    by_name = {runner.arm.name: runner for runner in runners}
    table = [runner.result(by_name.get(runner.arm.reference)) for runner in runners]
    print_table(table)
    for row in table:
        print(f"{row['arm']:<21} {row['tokens_per_second']:>10,.0f} tokens/s")
    out = settings.out or Path(__file__).parent / "results" / f"eagle_training_{device.type}.json"
    options = {k: v for k, v in vars(settings).items() if k != "out"}
    document = {"provenance": before, "settings": options, "shape": SHAPES[settings.shape], "arms": table}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
