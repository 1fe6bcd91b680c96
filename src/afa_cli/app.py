"""The verbs of ``afa``."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from afa_cli.errors import EXTRA, MissingExtraError, user_errors

app = typer.Typer(
    help="AFA-LoRA: fine-tune with an activation that is annealed away, and get an ordinary adapter or model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def run() -> None:
    """Run the command line; an error that the user can mend becomes one message and exit code 2."""
    try:
        try:
            app(prog_name="afa")
        except ModuleNotFoundError as error:
            if error.name not in EXTRA:
                raise
            raise MissingExtraError(error.name) from error
    except user_errors() as error:
        typer.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from error


@app.command()
def sft(
    recipe: Annotated[Path, typer.Argument(help="A YAML file, such as recipes/sft/quickstart.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change, as key=value.")] = None,
) -> None:
    """Fine-tune by a recipe, test, merge.

    The loss is on the completions; the test is by generated answers; adapter and merged model are saved. Started again
    after an interruption, it goes on from its last checkpoint.

    \b
    Examples:
      afa sft recipes/sft/quickstart.yaml
      afa sft recipes/sft/quickstart.yaml method=lora output=runs/lora
      afa sft recipes/sft/quickstart.yaml train.learning_rate=1e-4 anneal.activation=gelu
      afa sft recipes/sft/arc_easy.yaml model=meta-llama/Llama-3.2-1B-Instruct adapter.r=32
    """
    _load_quietly()
    from rich.console import Console

    from afa_lora.sft import load_recipe, run_sft
    from afa_lora.sft.summary import print_result

    console = Console()
    result = run_sft(load_recipe(recipe, overrides or []), console)
    print_result(result, console)


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="The adapter's folder.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to make for the merged model.")],
    base: Annotated[
        str | None, typer.Option("--base", help="The base model, if not the one that the adapter names.")
    ] = None,
    probe: Annotated[
        str, typer.Option("--probe", help="The text on which merged and unmerged model are compared.")
    ] = "The quick brown fox jumps over the lazy dog. 17 + 25 = 42",
) -> None:
    """Merge an adapter into its base model.

    Checks on a text that the merged model is the same function, and says by how much the logits differ at most.

    \b
    Examples:
      afa merge runs/quickstart/adapter --out merged
      afa merge downloaded-adapter --out merged --base models/llama-3-8b
    """
    from afa_cli.adapter import read_adapter

    read_adapter(adapter)
    _load_quietly()
    from afa_lora.sft.merge import merge_adapter

    report = merge_adapter(adapter, out, base=base, probe=probe)
    typer.echo(f"{report}\nThe merged model is in {out}.")


@app.command()
def inspect(adapter: Annotated[Path, typer.Argument(help="The adapter's folder.")]) -> None:
    """Say what an adapter is and what loads it.

    Reads its config and the header of its weights: no base model needed, no code run.

    \b
    Example:
      afa inspect runs/quickstart/adapter
    """
    from afa_cli.adapter import read_adapter

    found = read_adapter(adapter)
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


@app.command()
def schedule(
    kind: Annotated[list[str] | None, typer.Option("--kind", help="A schedule; repeatable. All unless given.")] = None,
    start: Annotated[str, typer.Option("--start", help="Until when β is 1: 0.1 is a share, 100 a step.")] = "0.0",
    end: Annotated[str, typer.Option("--end", help="From when β is 0: 0.3 is a share, 300 a step.")] = "0.3",
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps of the training.")] = 1000,
    out: Annotated[Path, typer.Option("--out", help="The PNG to write.")] = Path("schedule.png"),
) -> None:
    """Draw β over a training, here and as PNG.

    \b
    Examples:
      afa schedule
      afa schedule --kind linear --kind cosine --start 100 --end 0.6 --steps 2000 --out beta.png
    """
    _load_quietly()
    from rich.console import Console

    from afa_lora.core.schedule import SCHEDULES, Schedule
    from afa_lora.report.schedules import draw_schedules, plot_schedules

    schedules = {name: Schedule(name, _bound("--start", start), _bound("--end", end)) for name in kind or SCHEDULES}
    console = Console()
    console.print(draw_schedules(schedules, steps, min(console.width, 100)))
    plot_schedules(schedules, steps, out)
    typer.echo(f"The figure is in {out}.")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="The folder for adapters, merged models and curves.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Train a small model as LoRA and as AFA-LoRA.

    Teaches SmolLM2-135M-Instruct arithmetic that it cannot do yet, twice with the same data, order and start; merges,
    checks, and compares on held-out items. Takes a few minutes on 2 cores and needs no network.

    \b
    Example:
      afa demo
    """
    _load_quietly()
    from rich.console import Console

    from afa_lora.sft.demo import run_demo

    run_demo(out, Console())


def _bound(option: str, text: str) -> int | float:
    """Read a bound of the annealing window: digits alone are optimizer steps, a decimal number a share of training."""
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no number.", param_hint=option) from error


def _load_quietly() -> None:
    """Import the heavy libraries without the progress bars of their short steps; long work has bars of its own."""
    # Threads that wait by spinning slow a training on shared cores down tenfold. OpenMP reads this when torch loads it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
