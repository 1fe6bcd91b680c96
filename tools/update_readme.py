"""Write the tables of README.md from the result files that `make bench` and the other commands leave.

python tools/update_readme.py           # rewrite what stands between the begin and end marks
python tools/update_readme.py --check   # exit with 1 if that would change anything
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from afa_lora.report.tables import markdown_table

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
MIB = 2**20

LABELS = {
    "base": "frozen base alone",
    "peft-lora": "PEFT LoRA",
    "peft-dora": "PEFT DoRA",
    "afa-lora/after": "AFA-LoRA after the annealing",
    "afa-dora/after": "AFA-DoRA after the annealing",
}


def _label(arm: str) -> str:
    kind, _, placement = arm.partition("/")
    return LABELS.get(arm) or f"{kind.upper().replace('LORA', 'LoRA').replace('DORA', 'DoRA')} annealing, {placement}"


def step_table(document: dict[str, Any]) -> str:
    """The benchmark of a training step as a Markdown table with what it ran on."""
    settings, shape, where = document["settings"], document["shape"], document["provenance"]
    lines = [
        f"One training step, forward and backward, {settings['shape']} shape ({shape['num_hidden_layers']} layers, "
        f"hidden {shape['hidden_size']}), {settings['batch']} × {settings['tokens']} tokens, rank {settings['rank']} "
        f"on every linear layer, {settings['dtype']}, on {where['gpu'] or where['cpu']}, {where['threads']} threads, "
        f"torch {where['versions']['torch']}, peft {where['versions']['peft']}. Medians of {settings['repeats']} "
        "rounds in turn; ratios to PEFT's adapter of the same kind (the base's to PEFT LoRA). `make bench` repeats it.",
        "",
        "| | step, ms | × PEFT | saved for backward, MiB | × PEFT | peak, MiB | × PEFT |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {_label(row['arm'])} | {row['median_s'] * 1e3:.0f} | {row['ratio']:.3f} "
        f"| {row['saved_for_backward_bytes'] / MIB:.1f} | {row['saved_ratio']:.3f} "
        f"| {row['peak_bytes'] / MIB:.1f} | {row['peak_ratio']:.3f} |"
        for row in document["arms"]
    ]
    return "\n".join(lines)


def likelihood_table(document: dict[str, Any]) -> str:
    """The benchmark of the protocol ``likelihood`` as a Markdown table with what it ran on."""
    settings, where, arms = document["settings"], document["provenance"], document["arms"]
    slowest = min(arm["items_per_second"] for arm in arms.values())
    lines = [
        f"{document['items']} items of ARC-Easy and BoolQ, {settings['model']}, {settings['dtype']}, on "
        f"{where['gpu'] or where['cpu']}, {where['threads']} threads, each with the batch size that is fastest for it, "
        f"medians of {settings['rounds']} rounds in turn. `python benchmarks/likelihood.py --data DIR` repeats it.",
        "",
        "| | items/s | × | choices as without batches and cache |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {name} | {arm['items_per_second']:.2f} | {arm['items_per_second'] / slowest:.2f} "
        f"| {document['agreement'][name]['same_choice_as_plain']} of {document['items']} |"
        for name, arm in arms.items()
    ]
    return "\n".join(lines)


def study_table(document: dict[str, Any]) -> str:
    """The outcome and the accuracies of one reproduction, written by `afa report --json`."""
    study = document["studies"][0]
    return "\n".join([*study["outcome"], "", markdown_table(study)])


def training_line(document: dict[str, Any]) -> str:
    """The benchmark of a draft's training step in a sentence."""
    settings, arms = document["settings"], {arm["arm"]: arm for arm in document["arms"]}
    annealing, plain = arms["eagle+afa-lora"], arms["eagle+lora"]
    return (
        f"A training step of a draft of {settings['shape']} shape, {settings['batch']} × {settings['tokens'] - 1} "
        f"positions, rank {settings['rank']}, while β falls: {annealing['ratio']:.3f} times as long as with joint LoRA "
        f"({annealing['tokens_per_second']:.0f} and {plain['tokens_per_second']:.0f} tokens/s; {_measured(document)}, "
        f"medians of {settings['repeats']} rounds in turn). `python benchmarks/eagle_training.py` repeats it."
    )


def features_line(document: dict[str, Any]) -> str:
    """The benchmark of writing features in a sentence."""
    settings = document["settings"]
    return (
        f"`afa eagle features` writes {document['speed_ratio']['wall']:.3f} times as many tokens a second as a bare "
        f"forward of {settings['model']} reads ({document['tokens']:,} tokens; {_measured(document)}, medians of "
        f"{settings['rounds']} rounds in turn). `python benchmarks/eagle_features.py` repeats it."
    )


def decoding_table(document: dict[str, Any]) -> str:
    """The benchmark of decoding with a draft as a Markdown table with what it ran on."""
    settings = document["settings"]
    lines = [
        f"{settings['prompts']} prompts, {settings['tokens']} new tokens each, {settings['model']} with "
        f"{'a trained' if settings['draft'] else 'an untrained'} draft, {settings['dtype']}, {_measured(document)}, "
        f"medians of {settings['rounds']} rounds in turn; the overhead is what a cycle takes outside the two models' "
        "forwards. `python benchmarks/eagle_decoding.py` repeats it.",
        "",
        "| | speed, × plain | accepted in a cycle | cycle, ms | target | draft | overhead |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in document["ways"]:
        if cycle := row.get("cycle_s"):
            parts = [f"{seconds * 1e3:.0f}" for seconds in (sum(cycle.values()), cycle["target"], cycle["draft"])]
            cells = [f"{row['speed_up']:.2f}", f"{row['accepted_per_cycle']:.2f}", *parts, f"{row['overhead']:.1%}"]
            lines.append(f"| {row['way']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _measured(document: dict[str, Any]) -> str:
    where = document["provenance"]
    threads = f"{where['threads']} thread{'s' if where['threads'] > 1 else ''}"
    return f"on {where['gpu'] or where['cpu']}, {threads}, torch {where['versions']['torch']}"


TABLES = {
    "eagle_training_cpu": ("benchmarks/results/eagle_training_cpu.json", training_line),
    "eagle_features_cpu": ("benchmarks/results/eagle_features_cpu.json", features_line),
    "eagle_decoding_cpu": ("benchmarks/results/eagle_decoding_cpu.json", decoding_table),
    "table3_tiny": ("results/table3_tiny.json", study_table),
    "table1_tiny": ("results/table1_tiny.json", study_table),
    "grpo_quickstart": ("results/grpo_quickstart.json", study_table),
    "likelihood_cpu": ("benchmarks/results/likelihood_cpu.json", likelihood_table),
    "step_cpu": ("benchmarks/results/step_cpu.json", step_table),
}


def updated(text: str) -> str:
    """Return the README with every marked block written anew."""
    for name, (file, render) in TABLES.items():
        table = render(json.loads((ROOT / file).read_text(encoding="utf-8")))
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise SystemExit(f"README.md must have one block between {begin.strip()} and {end}.")
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}{table}\n{end}{rest.partition(end)[2]}"
    return text


def main() -> None:
    before = README.read_text(encoding="utf-8")
    after = updated(before)
    if "--check" in sys.argv[1:]:
        if after != before:
            raise SystemExit("README.md differs from the result files; run python tools/update_readme.py")
    else:
        README.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
