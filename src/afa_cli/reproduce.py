"""The verb ``afa reproduce``, and where the suites that come with the package lie."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afa_cli.errors import writing
from afa_cli.quiet import load_quietly
from afa_cli.recipes import recipes_folder

if TYPE_CHECKING:
    from rich.console import Console

    from afa_lora.reproduce.jobs import Experiment

FIGURE2 = "figure2"
# What torchrun and accelerate launch tell their processes. An arm is trained by one process that knows nothing of them.
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK")
LAUNCHED_PREFIXES = ("ROLE_", "MASTER_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_")
KEPT = ("ACCELERATE_USE_CPU",)


def reproduce(
    artifact: Annotated[
        str, typer.Argument(help="table1, table2, table3, table4, figure2, figure3, or a YAML file of that form.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings of the scale to change, as key=value.")
    ] = None,
    scale: Annotated[str, typer.Option("--scale", help="paper, small or tiny.")] = "tiny",
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="The folder of the tasks, or of EAGLE's data; else the hub's.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder for everything. runs/ARTIFACT-SCALE unless given.")
    ] = None,
    arms: Annotated[
        str | None, typer.Option("--arms", help="The arms to run, with commas between. The scale's own unless given.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="The seeds, with commas between. The scale's own unless given.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the plan: arms, steps, memory, hours. Nothing is written."),
    ] = False,
) -> None:
    """Repeat a table or a figure of the paper: train its arms, test them, report.

    Every arm starts from the same A, sees the same batches, and is a run of afa sft and an evaluation of afa eval; in
    table2 it sees the same prompts, and is a run of afa grpo; in table3 and figure3 it is a run of afa eagle train and
    an evaluation of afa eagle eval. Started again, the same command skips what is done and goes on with what was
    interrupted. An arm that fails is told, the others go on, and the exit code is 1. On several GPUs, start the same
    command once for each: each takes the next arm that nobody holds.

    \b
    Examples:
      afa reproduce table1 --scale paper --dry-run
      afa reproduce table1 --scale tiny --data data/commonsense
      afa reproduce table4 --scale small --data data/commonsense --arms "LoRA,AFA-LoRA SiLU 30 %" --seeds 0,1
      afa reproduce table1 --scale small --data data/commonsense train.num_train_epochs=3 --arms LoRA
      CUDA_VISIBLE_DEVICES=3 afa reproduce table1 --scale small --data data/commonsense
      accelerate launch --num_processes 8 -m afa_cli reproduce table1 --scale small --data data/commonsense
      afa reproduce table2 --scale paper --dry-run
      afa reproduce table2 --scale tiny --arms full,lora,afa-lora-a-s-b
      afa reproduce table2 --scale small --data data/gsm8k model=Qwen/Qwen2.5-0.5B-Instruct
      afa reproduce table3 --scale tiny --data data
      afa reproduce figure2 --out runs/figure2
    """
    _stand_alone()
    load_quietly()
    from rich.console import Console

    console = Console()
    if artifact == FIGURE2:
        if overrides or arms or seeds or data:
            raise typer.BadParameter(
                "it draws a formula: it takes no data, arms, seeds or settings.", param_hint=FIGURE2
            )
        _draw_figure2(None if dry_run else out or Path("runs") / FIGURE2, console)
        return
    from afa_lora.reproduce.jobs import load_experiment
    from afa_lora.reproduce.verl import print_commands, verl_commands

    path, named = _find(artifact), [name.strip() for name in (arms or "").split(",") if name.strip()]
    if dry_run and (commands := verl_commands(path, scale, data, named, overrides or [])):
        if seeds:
            raise typer.BadParameter("verl's commands take none: each arm is run once.", param_hint="--seeds")
        print_commands(commands, console)
        return
    out = out or Path("runs") / f"{path.stem}-{scale}"
    experiment = load_experiment(path, scale, out, data, named, _numbers(seeds or ""), overrides or [])
    (_plan if dry_run else run_arms)(experiment, console)


def _plan(experiment: Experiment, console: Console) -> None:
    """Print what the experiment would take."""
    if experiment.suite.workflow == "grpo":
        from afa_lora.reproduce.grpo_plan import plan_trainings, print_trainings

        with console.status("Planning …"):
            plans = plan_trainings(experiment, lambda text: None)
        print_trainings(experiment, plans, console)
        return
    if experiment.suite.workflow == "eagle":
        from afa_lora.reproduce.eagle_plan import plan_drafts, print_drafts

        with console.status("Planning …"):
            drafts = plan_drafts(experiment, recipes_folder() / "shapes", lambda text: None)
        print_drafts(drafts, console)
        return
    from afa_lora.reproduce.plan import plan_experiment
    from afa_lora.reproduce.plan_text import print_plan

    with console.status("Planning …"):
        plan = plan_experiment(experiment, recipes_folder() / "shapes", lambda text: None)
    print_plan(plan, console)


def run_arms(experiment: Experiment, console: Console) -> None:
    """Train, test and report; the exit code is 1 if an arm fails."""
    from afa_lora.reproduce.run import run_experiment

    failures = run_experiment(experiment, console)
    for job, message in failures.items():
        typer.echo(f"Failed: {job}: {message}", err=True)
    if failures:
        raise typer.Exit(1)


def _stand_alone() -> None:
    """Give a process of ``accelerate launch`` or ``torchrun`` a GPU of its own, and let it train alone there.

    Together they would share out each batch. This comes before torch is imported, which reads the variables.
    """
    rank = os.environ.get("LOCAL_RANK")
    if rank is None:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible != "":  # which hides all GPUs: every process trains on the CPU
        devices = None if visible is None else visible.split(",")
        if devices and int(rank) >= len(devices):
            raise typer.BadParameter(
                f"CUDA_VISIBLE_DEVICES={visible} has no GPU for process {int(rank) + 1}. Start {len(devices)} or "
                "fewer.",
                param_hint="--num_processes",
            )
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[int(rank)] if devices else rank
    for name in list(os.environ):
        if name in LAUNCHED or (name.startswith(LAUNCHED_PREFIXES) and name not in KEPT):
            del os.environ[name]


def _draw_figure2(out: Path | None, console: Console) -> None:
    """β over the training with the paper's setting, here and, where there is a folder for it, as PNG."""
    from afa_lora.core.schedule import Schedule
    from afa_lora.report.schedules import draw_schedules, plot_schedules

    schedules, steps = {"linear, 0 to 30 %": Schedule("linear", 0.0, 0.3)}, 1000
    console.print(draw_schedules(schedules, steps, min(console.width, 100)))
    if out is None:
        return
    figure = out / f"{FIGURE2}.png"
    with writing("--out", figure):
        plot_schedules(schedules, steps, figure)
    typer.echo(f"The figure is in {figure}.")


def _find(artifact: str) -> Path:
    """The file of that path, or else the suite of that name that comes with the package."""
    from afa_lora.core.errors import unknown_name

    path = Path(artifact)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in (recipes_folder() / "reproduce").glob("*.yaml")}
    if artifact not in shipped:
        raise unknown_name("artifact", artifact, sorted([*shipped, FIGURE2]))
    return shipped[artifact]


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = [-1]
    if any(number < 0 for number in numbers):
        raise typer.BadParameter(f"{text!r}: give whole numbers from 0, as in 0,1,2.", param_hint="--seeds")
    return numbers
