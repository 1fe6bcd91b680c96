"""The verb ``afa eagle eval``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from afa_cli.quiet import load_quietly


class Dtype(str, Enum):
    """Of target and drafts."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def evaluate(
    drafts: Annotated[
        list[str],
        typer.Argument(metavar="DRAFT...", help="Folders of runs of afa eagle train, or of drafts; or: untrained."),
    ],
    model: Annotated[str, typer.Option("--model", help="The target: hub id, local folder or embedded model.")],
    data: Annotated[
        Path,
        typer.Option(
            "--data", help="The folder of the questions: SET/question.jsonl, as in eagle/data of SafeAILab/EAGLE."
        ),
    ],
    sets: Annotated[
        str, typer.Option("--sets", help="The sets of questions, with commas between.")
    ] = "mt-bench,gsm8k,humaneval,alpaca",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most so many questions of each set, evenly spaced.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="The longest answer of the target, in tokens.")
    ] = 128,
    shapes: Annotated[
        str,
        typer.Option(
            "--shapes", help="What is proposed: chain:5, tree, dynamic:total=60,depth=5,top_k=10; with commas."
        ),
    ] = "chain:5,tree",
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="Of target and drafts; float32 on a CPU unless given.")
    ] = Dtype.auto,
    live: Annotated[
        bool, typer.Option("--live", help="Decode with target and draft together too, for the wall-clock speed-up.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", help="The folder to write to.")] = Path("runs/eagle-eval"),
) -> None:
    """Measure drafts: tokens in a cycle, n-α, speed-up.

    The target answers every question once, greedily, and that is recorded; each draft is then scored on the record,
    which needs no target. All drafts are compared with the first one named, question by question. The same command
    again counts only what is missing: a new draft or shape, more questions, a draft that was trained anew.

    \b
    Examples:
      afa eagle eval runs/eagle --model smollm2-135m --data data/eagle --limit 10
      afa eagle eval runs/eagle runs/afa untrained --model smollm2-135m --data data/eagle --shapes chain:3,chain:5,tree
      afa eagle eval my-draft --model meta-llama/Llama-3.1-8B-Instruct --data data/eagle --sets gsm8k --live --out eval
    """
    load_quietly()
    from rich.console import Console

    from afa_lora.eagle.evaluation import DraftEvaluationSettings, evaluate_drafts, name_drafts, print_drafts
    from afa_lora.settings import validate

    settings = validate(
        DraftEvaluationSettings,
        {
            "sets": _parts(sets),
            "limit": limit,
            "max_new_tokens": max_new_tokens,
            "shapes": split_shapes(shapes),
            "dtype": dtype.value,
            "live": live,
        },
        "afa eagle eval",
    )
    console = Console()
    print_drafts(evaluate_drafts(name_drafts(drafts), model, data, settings, out, console), console)


def split_shapes(text: str) -> list[str]:
    """The shapes in ``chain:5,dynamic:total=60,depth=5``: a part ``key=value`` belongs to the shape before it."""
    shapes: list[str] = []
    for part in _parts(text):
        if shapes and "=" in part and ":" not in part:
            shapes[-1] += f",{part}"
        else:
            shapes.append(part)
    return shapes


def _parts(text: str) -> list[str]:
    return [part for part in map(str.strip, text.split(",")) if part]
