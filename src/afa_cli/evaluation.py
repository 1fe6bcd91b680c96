"""The verbs ``afa eval commonsense`` and ``afa eval compare``."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afa_cli.quiet import load_quietly

if TYPE_CHECKING:
    from afa_lora.evaluation.commonsense import EvaluationSettings

eval_app = typer.Typer(
    help="Evaluate models and adapters.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


Model = Annotated[
    str | None,
    typer.Option("--model", help="Hub id, local folder, embedded model, or a run's folder; of an adapter its base."),
]
Adapter = Annotated[Path | None, typer.Option("--adapter", help="An adapter's folder, or that of a run of afa sft.")]


class Protocol(str, Enum):
    """How an answer is found."""

    paper = "paper"
    likelihood = "likelihood"


class Prompt(str, Enum):
    """The form of a prompt."""

    alpaca = "alpaca"
    chat = "chat"


class Dtype(str, Enum):
    """Of the weights."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@eval_app.command()
def commonsense(
    model: Model = None,
    adapter: Adapter = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="The folder of the eight tasks; the hub's data sets unless given.")
    ] = None,
    tasks: Annotated[str | None, typer.Option("--tasks", help="Some of the tasks, with commas between.")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most so many items of each task, drawn by a fixed seed.")
    ] = None,
    protocol: Annotated[
        Protocol,
        typer.Option("--protocol", help="paper: generate and look for an answer; likelihood: the likeliest answer."),
    ] = Protocol.paper,
    prompt: Annotated[
        Prompt, typer.Option("--prompt", help="Alpaca's prompt, or the model's own chat template.")
    ] = Prompt.alpaca,
    beams: Annotated[int, typer.Option("--beams", min=1, help="LLM-Adapters generates with 4.")] = 1,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Items at a time; as many as suit the device unless given."),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="The longest generated answer, in tokens.")
    ] = 32,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="Of the weights; float32 on a CPU unless given.")
    ] = Dtype.auto,
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder to write to; below runs/eval unless given.")
    ] = None,
) -> None:
    """Put the eight commonsense tasks to a model.

    Accuracies with 95 % bootstrap intervals. A linear adapter is merged in memory. Every batch is on disk at once: the
    same command goes on after Ctrl-C or a kill, and prints the numbers again once all is done.

    \b
    Examples:
      afa eval commonsense --model smollm2-135m --data data/commonsense --limit 50
      afa eval commonsense --model runs/quickstart --data data/commonsense --protocol likelihood --tasks boolq,piqa
      afa eval commonsense --model meta-llama/Meta-Llama-3-8B --adapter my-adapter --beams 4 --out runs/eval/mine
    """
    if model is None and adapter is None:
        raise typer.BadParameter("is needed, or --adapter.", param_hint="--model")
    load_quietly()
    from afa_lora.evaluation.commonsense import EvaluationSettings
    from afa_lora.settings import validate

    settings = validate(
        EvaluationSettings,
        {
            "protocol": protocol.value,
            "prompt": prompt.value,
            "tasks": None if tasks is None else [name for name in map(str.strip, tasks.split(",")) if name],
            "limit": limit,
            "max_new_tokens": max_new_tokens,
            "beams": beams,
            "batch_size": batch_size,
            "model": model,
            "adapter": None if adapter is None else str(adapter),
        },
        "afa eval commonsense",
    )
    _evaluate(settings, data, dtype.value, out or Path("runs/eval", _name(settings)))


def _evaluate(settings: EvaluationSettings, data: Path | None, dtype: str, folder: Path) -> None:
    """Read the items, load the model, evaluate and print."""
    from rich.console import Console

    from afa_lora.data.commonsense import read_tests
    from afa_lora.evaluation.commonsense import evaluate_commonsense, print_evaluation
    from afa_lora.evaluation.loading import load_evaluated

    items = read_tests(data, settings.tasks, settings.limit, typer.echo)
    adapter = None if settings.adapter is None else Path(settings.adapter)
    loaded, tokenizer = load_evaluated(settings.model, adapter, dtype, typer.echo)
    console = Console()
    print_evaluation(evaluate_commonsense(loaded, tokenizer, items, settings, folder, console), console)


@eval_app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="The folder of an evaluation.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="That of another model on the same items.")],
) -> None:
    """Test whether two models differ, item by item.

    McNemar's test for each task, a paired permutation test and a bootstrap interval for the average.

    \b
    Example:
      afa eval compare runs/eval/afa-lora runs/eval/lora
    """
    load_quietly()
    from rich.console import Console

    from afa_lora.evaluation.commonsense import compare as compare_evaluations
    from afa_lora.evaluation.commonsense import print_comparison, read_evaluation

    print_comparison(compare_evaluations(read_evaluation(first), read_evaluation(second)), Console())


def _name(settings: EvaluationSettings) -> str:
    """The name of the folder of an evaluation."""
    parts = [
        *filter(None, (settings.model, settings.adapter)),
        settings.protocol,
        *([settings.prompt] if settings.prompt != "alpaca" else []),
        *([f"{settings.beams}beams"] if settings.beams > 1 else []),
        *(settings.tasks or []),
        *([f"limit{settings.limit}"] if settings.limit else []),
    ]
    return "-".join(re.sub(r"[^\w.]+", "-", part).strip("-.") for part in parts)
