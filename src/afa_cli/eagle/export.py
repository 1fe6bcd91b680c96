"""The verb ``afa eagle export``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from afa_cli.quiet import load_quietly


class Loader(str, Enum):
    """Who is to load the draft."""

    vllm = "vllm"
    sglang = "sglang"
    safeailab = "safeailab"


class Dtype(str, Enum):
    """As which the weights are written."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def export_draft(
    draft: Annotated[Path, typer.Argument(help="A merged draft's folder, or that of a run of afa eagle train.")],
    to: Annotated[
        Loader,
        typer.Option("--format", help="vllm, sglang, or safeailab: the code of EAGLE's authors. Each wants its own."),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder to make.")],
    model: Annotated[str | None, typer.Option("--model", help="The target; the draft is checked to be for it.")] = None,
    dtype: Annotated[Dtype | None, typer.Option("--dtype", help="That of the draft unless given.")] = None,
) -> None:
    """Write a draft as another program serves it beside its target.

    Nothing but the draft's own layer is written: embedding and output layer are the target's. What was written is read
    back before it is there; what fails leaves nothing.

    \b
    Examples:
      afa eagle export runs/eagle --format vllm --out draft-vllm
      afa eagle export runs/eagle --format sglang --out draft-sglang --dtype bfloat16
      afa eagle export runs/eagle/draft --format safeailab --out draft-eagle --model meta-llama/Llama-2-7b-chat-hf
    """
    load_quietly()
    from afa_lora.eagle.export import export_draft as write

    done = write(draft, out, to=to.value, model=model, dtype=dtype.value if dtype is not None else None)
    typer.echo("\n".join([f"Written to {done.path}.", *done.checks, "", "To serve it:", done.usage]))
