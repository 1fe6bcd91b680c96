"""The plan of an experiment, for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from afa_lora.reproduce.jobs import Experiment
from afa_lora.reproduce.plan import ExperimentPlan, Rows
from afa_lora.tuning.recipe import TuningRecipe

GIB = 2**30
NONE = "–"
NARROW: dict[str, Any] = {"box": SIMPLE, "padding": (0, 1, 0, 0), "pad_edge": False}  # 80 columns are enough


def print_plan(plan: ExperimentPlan, console: Console) -> None:
    """Print what all arms share, the arms, what they take, and what those numbers rest on."""
    print_arms(plan.experiment, console)
    console.print(_costs(plan))
    for note in _notes(plan):
        say(console, note)
    print_deviations(plan.experiment, console)


def print_arms(experiment: Experiment, console: Console, more: Iterable[tuple[str, str]] = ()) -> None:
    """Print what all arms share, and the arms; ``more`` are settings of the workflow's own."""
    say(console, f"{experiment.suite.title}\n{experiment.suite.paper}\n")
    for name, text in (*shared_settings(experiment), *more):
        say(console, f"{name:<12}{text}")
    console.print(arms_table(experiment))


def print_deviations(experiment: Experiment, console: Console) -> None:
    """Print what differs from the paper."""
    say(console, "What differs from the paper:")
    for deviation in experiment.deviations:
        say(console, f"- {deviation}")


def say(console: Console, text: str) -> None:
    """Print a line as it is: paths may hold square brackets."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def shared_settings(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """What all arms share, and what each method has of its own: names and values."""
    scale = experiment.scale
    yield "scale", experiment.scale_name
    yield "model", scale.model
    yield "data", listed(experiment.jobs[0].recipe.data.model_dump(exclude_unset=True))
    yield "load", listed(scale.load.model_dump(exclude_unset=True))
    yield "adapter", listed(scale.adapter)
    yield "train", listed({key: value for key, value in scale.train.items() if key != "learning_rate"})
    for method in dict.fromkeys(recipe.method for recipe in experiment.arms.values()):
        own = scale.changes(method).model_dump(exclude_unset=True)
        if own:
            yield f"  {method}", "; ".join(f"{section}: {listed(values)}" for section, values in own.items())
    yield "evaluate", listed(scale.evaluate.model_dump(exclude_unset=True))
    yield "seeds", ", ".join(map(str, experiment.seeds))
    done = sum(job.done for job in experiment.jobs)
    yield "output", f"{experiment.folder}: {done} of {len(experiment.jobs)} runs are done"


def arms_table(experiment: Experiment) -> Table:
    """The arms and how each is annealed."""
    table = Table("arm", "method", "placement", "activation", "β falls", "learning rate", **NARROW)
    for column in table.columns[:5]:
        column.no_wrap = True
    for name, recipe in experiment.arms.items():
        rate = recipe.train.get("learning_rate")
        table.add_row(name, recipe.method, *_annealing(recipe), NONE if rate is None else f"{rate:g}")
    return table


def _annealing(recipe: TuningRecipe) -> tuple[str, str, str]:
    """Placement, activation, and how and when β falls."""
    anneal = recipe.anneal
    if not recipe.anneals:
        return NONE, NONE, NONE
    return anneal.placement, anneal.activation, f"{anneal.schedule} {_window(anneal.anneal_start, anneal.anneal_end)}"


def _window(*bounds: float) -> str:
    return "–".join(f"step {bound}" if isinstance(bound, int) else f"{bound:.0%}" for bound in bounds)


def _costs(plan: ExperimentPlan) -> Table:
    """What one training by each method takes, and all of them together."""
    devices = [*next(iter(plan.costs.values())).hours]
    tokens = "tokens" if _rows(plan).measured else "tokens at most"
    table = Table(
        "method", "trainings", "steps", tokens, "memory", *(f"hours, {device}" for device in devices), box=SIMPLE
    )
    for column in table.columns[1:]:
        column.justify = "right"
    trainings: Counter[str] = Counter(job.recipe.method for job in plan.experiment.jobs)
    for method, cost in plan.costs.items():
        times = [hours_text(cost.hours[device]) for device in devices]
        memory = f"{cost.memory / GIB:,.1f} GiB"
        table.add_row(method, str(trainings[method]), f"{cost.steps:,}", f"{cost.tokens:,}", memory, *times)
    table.add_section()
    table.add_row("all", str(trainings.total()), "", "", "", *(hours_text(plan.hours(device)) for device in devices))
    return table


def _notes(plan: ExperimentPlan) -> Iterator[str]:
    rows = _rows(plan)
    if rows.measured:
        yield f"Tokens: {rows.count:,} items measured, {rows.tokens / rows.count:,.0f} tokens on average."
    else:
        yield (
            f"Tokens: {rows.count:,} items, each counted with the {rows.longest} tokens of train.max_length; they are "
            "not measured without the data (--data) and the model's tokenizer."
        )
    yield "Memory: estimated for one device and its longest batch; a GPU takes some more for its context."
    yield (
        f"Time: estimated for one device and one training, {plan.speed}. The evaluation comes on top. Several GPUs "
        "share the trainings out."
    )


def _rows(plan: ExperimentPlan) -> Rows:
    return next(iter(plan.costs.values())).rows


def hours_text(hours: float) -> str:
    """``3.4 h`` or ``25 min``."""
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.2g} min"


def listed(settings: Mapping[str, Any]) -> str:
    """``key value, key value``."""
    return ", ".join(f"{key} {_shown(value)}" for key, value in settings.items()) or "the defaults"


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
