"""Time and memory of one training step: frozen base, PEFT LoRA and DoRA, AFA-LoRA and AFA-DoRA, in one process.

    python benchmarks/step.py                                               # SmolLM2-135M's shape on the CPU
    python benchmarks/step.py --device cuda --dtype bfloat16 --shape llama3-8b --layers 8 --batch 8 --tokens 512
    python benchmarks/step.py --arms peft-lora 'afa-lora/*' --repeats 15

A step is forward, loss and backward (with `--optimizer`, AdamW too). The arms take turns: each round runs every arm
once, and each round begins with another arm, so that whatever else the machine does falls on all of them alike.
Needs torch, transformers, peft and afa_lora only.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from arms import SHAPES, Arm, all_arms, build_arm, build_base, make_step, select_arms
from measure import Elapsed, peak_bytes, provenance, saved_bytes, spread, timed
from torch import Tensor, nn

MIB = 2**20


class Runner:
    """One arm, ready to run: its model, its step, and what has been measured."""

    def __init__(self, arm: Arm, model: nn.Module, tokens: Tensor, settings: argparse.Namespace) -> None:
        self.arm = arm
        self.model = model
        self.tokens = tokens
        self.trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.forward, self.clear = make_step(model, arm.config is None, tokens)
        if settings.compile:
            model.compile()
        self.optimizer: torch.optim.Optimizer | None = None
        if settings.optimizer and self.trainable:
            self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
        self.elapsed: list[Elapsed] = []
        self.saved: int | None = None
        self.peak = 0

    def step(self) -> None:
        self.forward().backward()
        if self.optimizer is not None:
            self.optimizer.step()
        self.clear()

    def measure_memory(self, device: torch.device, compiled: bool) -> None:
        """Measure what a step saves and what it holds at most. The first, uncounted step fills caches and state.

        A compiled step's saved tensors stay unmeasured: the hooks that would see them change what is compiled.
        """
        self.step()
        if not compiled:
            self.saved = saved_bytes(self.forward, [*self.model.parameters(), *self.model.buffers(), self.tokens])
        gc.collect()
        self.peak = peak_bytes(self.step, device)

    def result(self, reference: Runner | None) -> dict[str, Any]:
        """Return the arm's row of the JSON; ratios are to the reference arm's median, where it was run."""
        wall = [e.wall for e in self.elapsed]
        cpu = [e.cpu for e in self.elapsed]
        row: dict[str, Any] = {
            "arm": self.arm.name,
            "trainable_parameters": self.trainable,
            "median_s": statistics.median(wall),
            "minimum_s": min(wall),
            "spread": spread(wall),
            "median_cpu_s": statistics.median(cpu),
            "saved_for_backward_bytes": self.saved,
            "peak_bytes": self.peak,
            "seconds": wall,
            "cpu_seconds": cpu,
        }
        if reference is not None:
            row |= {
                "reference": reference.arm.name,
                "ratio": row["median_s"] / statistics.median(e.wall for e in reference.elapsed),
                "ratio_of_minima": row["minimum_s"] / min(e.wall for e in reference.elapsed),
                "ratio_of_cpu_time": row["median_cpu_s"] / statistics.median(e.cpu for e in reference.elapsed),
                "peak_ratio": self.peak / reference.peak,
            }
            if self.saved is not None and reference.saved is not None:
                row["saved_ratio"] = self.saved / reference.saved
        return row


def run_rounds(runners: list[Runner], repeats: int, warmup: int, device: torch.device) -> None:
    """Time every arm ``repeats`` times after ``warmup`` uncounted rounds, each round in another order."""
    for index in range(warmup + repeats):
        first = index % len(runners)
        for runner in runners[first:] + runners[:first]:
            elapsed = timed(runner.step, device)
            if index >= warmup:
                runner.elapsed.append(elapsed)
        print(f"\rround {index + 1} of {warmup + repeats}", end="", flush=True)
    print()


def rows(runners: list[Runner]) -> list[dict[str, Any]]:
    by_name = {runner.arm.name: runner for runner in runners}
    return [runner.result(by_name.get(runner.arm.reference)) for runner in runners]


def _show(key: str, digits: int, unit: float = 1.0) -> Callable[[dict[str, Any]], str]:
    """Return what prints a row's value in the given unit, and a dash where the row has none."""
    return lambda row: "-" if row.get(key) is None else f"{row[key] / unit:.{digits}f}"


COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("arm", lambda row: row["arm"]),
    ("median ms", _show("median_s", 1, 1e-3)),
    ("± %", _show("spread", 1, 1e-2)),
    ("× PEFT", _show("ratio", 3)),
    ("× (min)", _show("ratio_of_minima", 3)),
    ("× (CPU)", _show("ratio_of_cpu_time", 3)),
    ("saved MiB", _show("saved_for_backward_bytes", 1, MIB)),
    ("× PEFT", _show("saved_ratio", 3)),
    ("peak MiB", _show("peak_bytes", 1, MIB)),
    ("× PEFT", _show("peak_ratio", 3)),
)


def print_table(table: list[dict[str, Any]]) -> None:
    """Print the rows with aligned columns, the first one to the left."""
    cells = [[title for title, _ in COLUMNS], *([show(row) for _, show in COLUMNS] for row in table)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    for number, (name, *numbers) in enumerate(cells):
        aligned = [text.rjust(width) for text, width in zip(numbers, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *aligned]))
        if number == 0:
            print("  ".join("-" * width for width in widths))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16", "float64"])
    parser.add_argument("--shape", default="smollm2", choices=sorted(SHAPES))
    parser.add_argument("--layers", type=int, help="keep only so many of the shape's layers")
    parser.add_argument("--batch", type=int, default=4, help="sequences a step")
    parser.add_argument("--tokens", type=int, default=128, help="tokens a sequence")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--activation", default="silu")
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before them")
    parser.add_argument("--arms", nargs="+", default=["*"], metavar="PATTERN", help="names or globs; s stands for σ")
    parser.add_argument("--optimizer", action="store_true", help="include a step of AdamW")
    parser.add_argument("--compile", action="store_true", help="run every arm under torch.compile")
    parser.add_argument("--threads", type=int, help="threads of PyTorch on the CPU")
    parser.add_argument("--out", type=Path, help="JSON file (default: benchmarks/results/step_DEVICE.json)")
    settings = parser.parse_args()
    if settings.repeats < 2:
        parser.error(f"--repeats {settings.repeats}: a median and its spread need at least 2")
    return settings


def main() -> None:
    settings = parse_arguments()
    device = torch.device(settings.device)
    dtype = getattr(torch, settings.dtype)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    try:
        arms = select_arms(all_arms(settings.activation), settings.arms)
    except ValueError as error:
        raise SystemExit(str(error)) from None

    if settings.compile:  # every arm compiles the same few functions anew
        torch._dynamo.config.recompile_limit = 4 * len(arms)
    before = provenance(device)
    base = build_base(settings.shape, settings.layers, device, dtype)
    tokens = torch.randint(base.config.vocab_size, (settings.batch, settings.tokens), device=device)
    runners = [Runner(arm, build_arm(base, arm, settings.rank, dtype), tokens, settings) for arm in arms]
    for runner in runners:
        runner.measure_memory(device, settings.compile)
    run_rounds(runners, settings.repeats, settings.warmup, device)

    table = rows(runners)
    print_table(table)
    out = settings.out or Path(__file__).parent / "results" / f"step_{device.type}.json"
    options = {k: v for k, v in vars(settings).items() if k != "out"}
    shape = {**SHAPES[settings.shape], "num_hidden_layers": base.config.num_hidden_layers}
    frozen = sum(t.numel() for t in base.parameters())
    document = {"provenance": before, "settings": options, "shape": shape, "base_parameters": frozen, "arms": table}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
