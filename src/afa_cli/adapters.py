"""The verbs on an adapter that is there: ``afa merge`` and ``afa inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afa_cli.quiet import load_quietly


def merge(
    path: Annotated[Path, typer.Argument(metavar="ADAPTER", help="An adapter's folder, or that of a run of afa sft.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to make for the merged model.")],
    base: Annotated[
        str | None, typer.Option("--base", help="The base model, if not the one that the adapter names.")
    ] = None,
    probe: Annotated[
        str | None, typer.Option("--probe", help="The text on which merged and unmerged model are compared.")
    ] = None,
) -> None:
    """Merge an adapter into its base model.

    Short for afa export --to merged. Checks that the merged model is the same function, and says by how much its
    logits differ on a text (root mean square, as a share of the logits).

    \b
    Examples:
      afa merge runs/quickstart --out merged
      afa merge downloaded-adapter --out merged --base models/llama-3-8b
    """
    from afa_cli.adapter import adapter_in, read_adapter

    if adapter := adapter_in(path):  # else the library says what there is instead
        read_adapter(adapter)
    load_quietly()
    from afa_lora.serving import PROBE, export_merged

    done = export_merged(path, out, base=base, probe=PROBE if probe is None else probe)
    typer.echo("\n".join([*done.checks, f"The merged model is in {done.path}."]))


def inspect(
    path: Annotated[Path, typer.Argument(metavar="ADAPTER", help="An adapter's folder, or that of a run of afa sft.")],
) -> None:
    """Say what an adapter is and what loads it.

    Reads its config and the header of its weights: no base model needed, no code run.

    \b
    Example:
      afa inspect runs/quickstart
    """
    from afa_cli.adapter import adapter_in, read_adapter

    found = read_adapter(adapter_in(path) or path)
    config, ranks = found.config, found.ranks
    rows = {
        "kind": found.kind,
        "rank": f"{'–'.join(str(r) for r in dict.fromkeys((ranks[0], ranks[-1]))) if ranks else config['r']}, "
        f"alpha {config['lora_alpha']}, scale {found.scale:g}",
    }
    if found.beta > 0:
        rows["activation"] = f"{config['activation']} at {config['placement']}, β = {found.beta:g}"
        rows["schedule"] = f"{config['schedule']} from {config['anneal_start']} to {config['anneal_end']}"
    rows |= {
        "layers": f"{found.modules.total()}: " + ", ".join(f"{name} ×{n}" for name, n in found.modules.items()),
        "base model": str(config.get("base_model_name_or_path")),
        "size": f"{found.bytes / 1e6:.1f} MB, {found.parameters / 1e6:.2f} million parameters, "
        + "/".join(sorted({tensor.dtype for tensor in found.tensors})),
        "loads in": found.loads_in,
    }
    for key, value in rows.items():
        typer.echo(f"{key:<12}{value}")
