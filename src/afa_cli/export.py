"""The verb ``afa export``."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from afa_cli.quiet import load_quietly


class Target(str, Enum):
    """What there is to write."""

    merged = "merged"
    adapter = "adapter"
    vllm = "vllm"
    gguf = "gguf"


def export(
    path: Annotated[Path, typer.Argument(help="An adapter's folder, or that of a run of afa sft.")],
    to: Annotated[
        Target,
        typer.Option(
            "--to",
            help="merged: the whole model; adapter: for PEFT; vllm: for vLLM's --lora-modules; gguf: for llama.cpp.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder (for gguf: the file) to make.")],
    base: Annotated[
        str | None, typer.Option("--base", help="The base model, if not the one that the run or the adapter names.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="For gguf: float32, float16 or bfloat16; the base model's unless given."),
    ] = None,
    probe: Annotated[str | None, typer.Option("--probe", help="The text on which the logits are compared.")] = None,
) -> None:
    """Write what other programs serve.

    Everything is loaded back and compared with base model + adapter before it is there; what fails leaves nothing. An
    adapter that is still annealing (β > 0) is refused: other programs would run it as a linear one.

    \b
    Examples:
      afa export runs/quickstart --to merged --out merged
      afa export runs/quickstart --to adapter --out adapter
      afa export runs/quickstart/adapter --to vllm --out vllm-adapter --base meta-llama/Llama-3.1-8B
      afa export runs/quickstart --to gguf --out model.gguf --dtype bfloat16
    """
    if dtype is not None and to is not Target.gguf:
        raise typer.BadParameter(f"--to {to.value} keeps the dtype; only --to gguf has a choice.", param_hint="--dtype")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    load_quietly()
    from afa_lora.serving import PROBE, export_adapter, export_gguf, export_merged, export_vllm

    probe = PROBE if probe is None else probe
    if to is Target.gguf:
        done = export_gguf(path, out, dtype=dtype, base=base, probe=probe)
    else:
        write = {Target.merged: export_merged, Target.adapter: export_adapter, Target.vllm: export_vllm}[to]
        done = write(path, out, base=base, probe=probe)
    typer.echo("\n".join([f"Written to {done.path}.", *done.checks, "", "To serve it:", done.usage]))
