"""The plan's estimate of a training step beside a measured one: seconds and peak memory, SmolLM2-135M, LoRA r 16.

    python benchmarks/estimate.py
    python benchmarks/estimate.py --model models/llama-3-8b --batch 8 --tokens 512

The measured step is forward, loss and backward as TRL's `SFTTrainer` computes them, on full sequences without padding.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from measure import peak_bytes, provenance, spread, timed
from trl.trainer.utils import add_fused_lm_head

from afa_lora.models import load_model
from afa_lora.sft.planning.estimate import estimate_step, make_batch
from afa_lora.sft.planning.shape import shape_model
from afa_lora.sft.planning.timing import measure_speed
from afa_lora.sft.recipe import Recipe, parse_recipe
from afa_lora.sft.trainer import training_arguments
from afa_lora.tuning.adapter import add_adapter
from afa_lora.tuning.loading import training_precision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="hub id, local folder or smollm2-135m")
    parser.add_argument("--batch", type=int, default=4, help="sequences a step")
    parser.add_argument("--tokens", type=int, default=128, help="tokens a sequence")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=9, help="timed steps")
    parser.add_argument("--threads", type=int, help="threads of PyTorch on the CPU")
    parser.add_argument("--out", type=Path, help="JSON file (default: benchmarks/results/estimate_DEVICE.json)")
    settings = parser.parse_args()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    rows = [_compare(settings, checkpointing) for checkpointing in (False, True)]
    device = torch.device(str(rows[0]["device"]))
    options = {key: value for key, value in vars(settings).items() if key != "out"}
    document = {"provenance": provenance(device), "settings": options, "steps": rows}
    out = settings.out or Path(__file__).parent / "results" / f"estimate_{device.type}.json"
    out.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for row in rows:
        print(json.dumps({key: value for key, value in row.items() if key != "measured_seconds"}, indent=2))
    print(f"written to {out}")


def _compare(settings: argparse.Namespace, checkpointing: bool) -> dict[str, object]:
    recipe = _recipe(settings, checkpointing)
    precision, args = training_precision(recipe), training_arguments(recipe)
    base, _ = load_model(settings.model, dtype=precision.weights)
    estimate = estimate_step(recipe, args, shape_model(recipe, args, base.config), settings.tokens)
    before = measure_speed(estimate.work, precision.device)

    base.to(torch.device(precision.device))  # type: ignore[arg-type]
    model = add_adapter(base, recipe).train()
    if checkpointing:
        base.gradient_checkpointing_enable()
        base.enable_input_require_grads()
    add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))
    inputs = make_batch(settings.batch, settings.tokens, masked=True)
    inputs = {key: tensor.to(precision.device) for key, tensor in inputs.items()}

    def step() -> None:
        with torch.autocast(precision.device, precision.compute, enabled=precision.compute != torch.float32):
            output = model(**inputs, fused_lm_head=True)
        (-output.log_probs.sum() / output.label_mask.sum()).backward()
        model.zero_grad()

    device = torch.device(precision.device)
    step()
    peak = peak_bytes(step, device)
    seconds = [timed(step, device).wall for _ in range(settings.repeats)]
    after = measure_speed(estimate.work, precision.device)
    estimated = (before.seconds + after.seconds) / 2
    return {
        "gradient_checkpointing": checkpointing,
        "device": precision.device,
        "precision": str(precision),
        "tflop": estimate.work.flops / 1e12,
        "moved_bytes": estimate.work.moved,
        "estimated_seconds": estimated,
        "estimated_before_and_after": [before.seconds, after.seconds],
        "measured_median_seconds": statistics.median(seconds),
        "measured_spread": spread(seconds),
        "seconds_ratio": estimated / statistics.median(seconds),
        "estimated_peak_bytes": estimate.work.peak,
        "measured_peak_bytes": peak,
        "peak_ratio": estimate.work.peak / peak,
        "measured_seconds": seconds,
    }


def _recipe(settings: argparse.Namespace, checkpointing: bool) -> Recipe:
    return parse_recipe(
        {
            "model": settings.model,
            "method": "lora",
            "output": "runs/estimate",
            "data": {"source": "reasoning-gym", "task": "chain_sum"},
            "adapter": {"r": settings.rank, "lora_alpha": 2 * settings.rank},
            "train": {"per_device_train_batch_size": settings.batch, "gradient_checkpointing": checkpointing},
        }
    )


if __name__ == "__main__":
    main()
