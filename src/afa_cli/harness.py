"""The verb ``afa eval harness``."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afa_cli.errors import writing
from afa_cli.evaluation import Adapter, Model
from afa_cli.quiet import load_quietly

if TYPE_CHECKING:
    from afa_lora.evaluation.harness import HarnessSettings

RESULTS = "results.json"


def harness(
    tasks: Annotated[str, typer.Option("--tasks", help="Its tasks, groups or tags, with commas between.")],
    model: Model = None,
    adapter: Adapter = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="So many items of each task, the first ones.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option("--num-fewshot", min=0, help="Examples before each question, if not the task's own.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="How many requests at a time.")] = 16,
    include_path: Annotated[
        Path | None,
        typer.Option("--include-path", help="A folder with more tasks, YAML files. The functions they name are run."),
    ] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Put the prompts into the model's chat template.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder for results.json. Printed only unless given.")
    ] = None,
) -> None:
    """Evaluate with lm-evaluation-harness.

    Its tasks, prompts and metrics; its numbers are not those of afa eval commonsense. A linear adapter is merged in
    memory, one that is still annealing runs as it is. Tasks that run code from a model or from the hub are refused.

    \b
    Examples:
      afa eval harness --model smollm2-135m --tasks arc_easy,boolq --limit 100
      afa eval harness --adapter runs/quickstart --tasks piqa --out runs/eval/piqa
      afa eval harness --model models/llama-3-8b --tasks towns --include-path my_tasks --num-fewshot 5
    """
    if model is None and adapter is None:
        raise typer.BadParameter("is needed, or --adapter.", param_hint="--model")
    names = [name for name in map(str.strip, tasks.split(",")) if name]
    if not names:
        raise typer.BadParameter("names no task.", param_hint="--tasks")
    if out is not None and (out / RESULTS).exists():
        raise typer.BadParameter(f"{out} holds results already. Choose another folder.", param_hint="--out")
    load_quietly()
    logging.getLogger("lm_eval.models.huggingface").addFilter(_concerns_the_user)
    from afa_lora.evaluation.harness import HarnessSettings

    settings = HarnessSettings(
        tasks=names,
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=batch_size,
        include_path=include_path,
        apply_chat_template=apply_chat_template,
        model=model,
        adapter=None if adapter is None else str(adapter),
    )
    _evaluate(settings, out)


def _evaluate(settings: HarnessSettings, out: Path | None) -> None:
    """Find the tasks, load the model, evaluate, write and print."""
    from rich.console import Console

    from afa_lora.evaluation.harness import evaluate_harness, load_tasks, print_harness
    from afa_lora.evaluation.loading import load_evaluated
    from afa_lora.files import write_atomic

    found = load_tasks(settings)  # before the model, which may take minutes
    if out is not None:
        with writing("--out", out):
            out.mkdir(parents=True, exist_ok=True)
    adapter = None if settings.adapter is None else Path(settings.adapter)
    loaded, tokenizer = load_evaluated(settings.model, adapter, report=typer.echo)
    results = evaluate_harness(loaded, tokenizer, found, settings)
    if out is not None:
        with writing("--out", out):
            write_atomic(out / RESULTS, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    print_harness(results, Console())


def _concerns_the_user(record: logging.LogRecord) -> bool:
    """Not what it always says of a model that is handed over rather than named."""
    return "`pretrained`" not in record.getMessage()
