"""The scale that verl runs: the command of each arm, for each size of the model. Nothing is started from here."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from afa_lora.core.errors import unknown_name
from afa_lora.grpo.verl_recipe import DATA, SIZES, verl_command
from afa_lora.reproduce.jobs import chosen_arms
from afa_lora.reproduce.scales import VerlScale
from afa_lora.reproduce.suite import Suite, read_suite


@dataclass(frozen=True)
class VerlCommands:
    """What is to be launched.

    Attributes:
        suite: the reproduction.
        scale: of it.
        commands: for each size and arm the arguments, the program first.
    """

    suite: Suite
    scale: VerlScale
    commands: dict[tuple[str, str], list[str]]


def verl_commands(
    path: Path, scale_name: str, data: Path | None = None, arms: Sequence[str] = (), overrides: Sequence[str] = ()
) -> VerlCommands | None:
    """The commands of a scale; ``None`` if verl does not run it.

    The arguments are those of `load_experiment`, but ``data`` is the folder that verl's preprocessing has written
    where verl will run.

    Raises:
        RecipeError: the file or an override is wrong.
        InvalidSettingError: there is no such scale, arm or size.
    """
    suite, scale = read_suite(path, scale_name, overrides)
    if not isinstance(scale, VerlScale):
        return None
    for size in scale.verl:
        if size not in SIZES:
            raise unknown_name("verl", size, SIZES)
    names = chosen_arms(suite, arms or scale.arms)
    place = DATA if data is None else str(data)
    commands = {(size, name): verl_command(size, _arm(suite, name), place) for size in scale.verl for name in names}
    return VerlCommands(suite, scale, commands)


def print_commands(found: VerlCommands, console: Console) -> None:
    """Print every command, and how to launch it."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say(f"{found.suite.title}\n{found.suite.paper}\n")
    say(
        f"{len(found.commands)} commands for verl, each for one or several machines of 8 GPUs. Nothing of this scale "
        "has been run, and afa does not start it. On these machines, install afa-lora[verl], prepare GSM8K as verl "
        "does, and launch a command as it stands, or the script above it, which runs the same. See docs/verl.md."
    )
    for (size, name), command in found.commands.items():
        say(f"\n# {size}, {name}: recipes/verl/qwen2.5-{size}.sh {_arm(found.suite, name)}\n{shlex.join(command)}")
    say("\nWhat differs from the paper:")
    for deviation in (*found.suite.deviations, *found.scale.deviations):
        say(f"- {deviation}")


def _arm(suite: Suite, name: str) -> str:
    """The arm as `verl_command` names it: its method, or the placement."""
    arm = suite.arm(name)
    return arm.anneal.placement.replace("σ", "s") if arm.method.startswith("afa-") else arm.method
