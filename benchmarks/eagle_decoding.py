"""Decoding with a draft beside plain greedy decoding: time, accepted tokens, and the time outside the two models.

    python benchmarks/eagle_decoding.py                                     # an untrained draft: the overhead counts
    python benchmarks/eagle_decoding.py --draft runs/eagle/draft            # a trained one: the speed-up too
    python benchmarks/eagle_decoding.py --device cuda --dtype bfloat16 --model Qwen/Qwen2.5-7B-Instruct --draft DIR

A round decodes every prompt in each way: plain, then with each shape, greedily and by sampling; each round begins with
another one. The seconds of a cycle are told by part: the target's forwards, the draft's, and all the rest, which is the
overhead. An untrained draft is accepted hardly ever, so its ratio says only what its cycles cost. On CUDA the models'
time is that of events on the stream, and the whole is waited for.
"""

from __future__ import annotations

import argparse
import json
import operator
import statistics
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from measure import Elapsed, provenance, spread, timed
from torch import Tensor
from transformers import PreTrainedModel

from afa_lora.eagle.decode import DecodingStats, SpeculativeDecoding, parse_shape
from afa_lora.eagle.model import EagleDraft, load_draft
from afa_lora.eagle.target import TargetEnds
from afa_lora.models import load_model

QUESTIONS = (
    "Why is the sky blue?",
    "Write a Python function that returns the n-th Fibonacci number.",
    "A train goes 60 km in 45 minutes. How fast is it in km/h?",
    "Name three things to see in Lisbon, and say why.",
)
GREEDY: dict[str, Any] = {"do_sample": False}
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
COLUMNS = ("way", "median s", "± %", "× plain", "accepted", "cycle ms", "target", "draft", "overhead %", "same tokens")


class Way:
    """One way to decode, and what was measured of it."""

    def __init__(self, target: PreTrainedModel, decoding: SpeculativeDecoding | None, sampled: bool, new: int) -> None:
        self.target, self.decoding, self.sampled, self.new = target, decoding, sampled, new
        self.name = ("sampled " if sampled else "") + (str(decoding.shape) if decoding else "plain")
        self.elapsed: list[Elapsed] = []
        self.stats: list[DecodingStats] = []
        self.texts: list[list[int]] = []

    def run(self, prompts: list[Tensor]) -> None:
        """Decode every prompt."""
        self.texts, stats = [], []
        chosen = SAMPLED if self.sampled else GREEDY
        for prompt in prompts:
            text = self.target.generate(  # type: ignore[operator]
                prompt,
                custom_generate=self.decoding,
                **chosen,
                max_new_tokens=self.new,
                min_new_tokens=None,
                eos_token_id=None,
                attention_mask=torch.ones_like(prompt),
            )
            self.texts.append(text[0, prompt.shape[1] :].tolist())
            if self.decoding is not None:
                stats.append(self.decoding.last)
        self.stats += stats

    def result(self, plain: Way) -> dict[str, Any]:
        """The row of the JSON; the ratio is the median of plain decoding, done in the same way, over this one's."""
        wall = [elapsed.wall for elapsed in self.elapsed]
        ours, theirs = ([token for text in way.texts for token in text] for way in (self, plain))
        equal = None if self.sampled else sum(map(operator.eq, ours, theirs)) / len(theirs)
        row: dict[str, Any] = {
            "way": self.name,
            "median_s": statistics.median(wall),
            "spread": spread(wall),
            "speed_up": statistics.median(e.wall for e in plain.elapsed) / statistics.median(wall),
            "equal_tokens": equal,
            "seconds": wall,
        }
        if self.decoding is not None:
            cycles = [count for stats in self.stats for count in stats.accepted]
            parts = {
                part: sum(getattr(stats, f"{part}_seconds") for stats in self.stats)
                for part in ("target", "draft", "other")
            }
            row |= {
                "cycles": len(cycles),
                "accepted_per_cycle": statistics.mean(cycles),
                "cycle_s": {part: seconds / len(cycles) for part, seconds in parts.items()},
                "overhead": parts["other"] / sum(parts.values()),
            }
        return row


def measure(ways: list[Way], prompts: list[Tensor], rounds: int, device: torch.device) -> None:
    """One uncounted round, and so many counted ones."""
    for index in range(-1, rounds):
        first = index % len(ways)
        for way in ways[first:] + ways[:first]:
            elapsed = timed(lambda way=way: way.run(prompts), device)  # type: ignore[misc]
            if index >= 0:
                way.elapsed.append(elapsed)
            else:
                way.stats = []
        print(f"\rround {index + 1} of {rounds}", end="", flush=True)
    print()


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the rows with aligned columns."""
    lines = [list(COLUMNS)]
    for row in rows:
        cycle = row.get("cycle_s")
        parts = (
            [f"{seconds * 1e3:.1f}" for seconds in (sum(cycle.values()), cycle["target"], cycle["draft"])]
            if cycle
            else ["-"] * 3
        )
        drafted = [f"{row['accepted_per_cycle']:.2f}", *parts, f"{row['overhead'] * 100:.1f}"] if cycle else ["-"] * 5
        times = [f"{row['median_s']:.2f}", f"{row['spread'] * 100:.1f}", f"{row['speed_up']:.2f}"]
        same = "-" if row["equal_tokens"] is None else f"{row['equal_tokens']:.3f}"
        lines.append([row["way"], *times, *drafted, same])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for name, *numbers in lines:
        aligned = [text.rjust(width) for text, width in zip(numbers, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *aligned]))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="the target: hub id, local folder or smollm2-135m")
    parser.add_argument("--draft", help="folder of a trained draft (default: an untrained one)")
    parser.add_argument("--shapes", nargs="+", default=["chain:5", "tree", "dynamic"])
    parser.add_argument("--prompts", type=int, default=2, choices=range(1, len(QUESTIONS) + 1))
    parser.add_argument("--tokens", type=int, default=48, help="new ones for each prompt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, help="threads of PyTorch on the CPU")
    parser.add_argument("--out", type=Path, help="JSON file (default: benchmarks/results/eagle_decoding_DEVICE.json)")
    settings = parser.parse_args()
    if settings.rounds < 2:
        parser.error(f"--rounds {settings.rounds}: a median and its spread need at least 2")
    return settings


def main() -> None:
    settings = parse_arguments()
    device = torch.device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    dtype = getattr(torch, settings.dtype)
    target, tokenizer = load_model(settings.model, dtype=dtype)
    target.to(device).eval()  # type: ignore[arg-type]
    ends = TargetEnds.of(target, settings.model)
    torch.manual_seed(0)
    draft: EagleDraft = load_draft(settings.draft) if settings.draft else ends.new_draft().eval()
    draft.to(device, dtype)  # type: ignore[arg-type]
    prompts = []
    for question in QUESTIONS[: settings.prompts]:
        chat = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        prompts.append(tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids.to(device))
    before = provenance(device)
    shapes = [None, *(SpeculativeDecoding(draft, parse_shape(text)) for text in settings.shapes)]
    ways = [[Way(target, shape, sampled, settings.tokens) for shape in shapes] for sampled in (False, True)]
    measure([*chain(*ways)], prompts, settings.rounds, device)

    rows = [way.result(plain) for plain, *drafted in ways for way in (plain, *drafted)]
    print_table(rows)
    out = settings.out or Path(__file__).parent / "results" / f"eagle_decoding_{device.type}.json"
    options = {key: value for key, value in vars(settings).items() if key != "out"}
    document = {"provenance": before, "settings": options, "ways": rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
