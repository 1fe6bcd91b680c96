"""What a recipe would do, checked as far as that goes without training. Nothing is written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from trl import SFTConfig

from afa_lora.core.errors import AfaLoraError
from afa_lora.core.schedule import Schedule
from afa_lora.data import Items, LengthReport, load_data, measure_lengths
from afa_lora.models import read_parts
from afa_lora.running.checkpoints import newest
from afa_lora.sft.checks import training_faults
from afa_lora.sft.planning.estimate import StepEstimate, estimate_step
from afa_lora.sft.planning.shape import ModelShape, shape_model
from afa_lora.sft.planning.timing import Speed, measure_speed
from afa_lora.sft.recipe import Recipe
from afa_lora.sft.trainer import training_arguments
from afa_lora.tuning.adapter import adapter_config
from afa_lora.tuning.checks import check_optimizer
from afa_lora.tuning.folder import RunFolder
from afa_lora.tuning.loading import Precision, check_quantization, model_options, training_precision, use_chat_template
from afa_lora.tuning.steps import count_steps

ASSUMED_LENGTH = 1024  # tokens, where neither the data nor max_length say how long sequences are
MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Plan:
    """A recipe, worked out.

    Attributes:
        recipe: the recipe.
        precision: the dtypes, and why.
        layers: how many layers of each name get an adapter.
        lengths: of the training items, ``None`` without a tokenizer.
        test_lengths: of the test items, ``None`` without a tokenizer or such items.
        length: tokens in a sequence, as the estimate takes it.
        steps: optimizer steps in all.
        per_step: sequences in an optimizer step, over all processes.
        processes: how many processes train.
        window: from which to which step β falls; ``None`` without annealing.
        step: memory and operations of one forward and backward.
        accumulation: forwards and backwards in an optimizer step.
        speed: what this machine does in a second.
        resumes: the step from which an interrupted run of this recipe in the output folder would go on, 0 if it has no
            checkpoint yet; ``None`` if there is no such run.
        notes: what the user should know; what training would miss, first of all.
    """

    recipe: Recipe
    precision: Precision
    layers: Counter[str]
    lengths: LengthReport | None
    test_lengths: LengthReport | None
    length: int
    steps: int
    per_step: int
    processes: int
    window: tuple[float, float] | None
    step: StepEstimate
    accumulation: int
    speed: Speed
    resumes: int | None
    notes: tuple[str, ...]

    @property
    def seconds_per_step(self) -> float:
        """Seconds for one optimizer step."""
        return self.speed.seconds * self.accumulation


@dataclass
class _Found:
    """What has been found out so far, and what is wrong; what could not be found out stays ``None``."""

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    precision: Precision | None = None
    args: SFTConfig | None = None
    resumes: int | None = None
    config: PretrainedConfig | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    items: Items | None = None
    shape: ModelShape | None = None
    lengths: LengthReport | None = None
    test_lengths: LengthReport | None = None
    steps: int = 0
    per_step: int = 0
    window: tuple[float, float] | None = None

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Go on after an error of ours; it is told with the others."""
        try:
            yield
        except AfaLoraError as error:
            if str(error) not in self.faults:
                self.faults.append(str(error))


def plan_sft(recipe: Recipe, report: Callable[[str], None] = print) -> Plan:
    """Check everything that can be checked without training, and work out what training would take.

    Args:
        recipe: what would be done.
        report: takes a line for each thing that is read.

    Raises:
        AfaLoraError: one line for each thing that is wrong.
    """
    found = _Found()
    _check_settings(recipe, found)
    _read_inputs(recipe, found, report)
    _work_out(recipe, found)
    if found.faults:
        raise AfaLoraError("\n".join(["This recipe cannot be run:", *(f"  {fault}" for fault in found.faults)]))
    return _plan(recipe, found)


def _check_settings(recipe: Recipe, found: _Found) -> None:
    """What the recipe, the machine and the output folder say by themselves."""
    with found.collect():
        found.precision = training_precision(recipe)
        found.args = training_arguments(recipe)
    with found.collect():
        found.resumes = _resumes(recipe)
    if recipe.load.quantization:
        with found.collect():
            check_quantization(recipe)
    if recipe.method != "full":
        with found.collect():
            adapter_config(recipe)


def _read_inputs(recipe: Recipe, found: _Found, report: Callable[[str], None]) -> None:
    """The model's config and tokenizer, and the data."""
    with found.collect():
        found.config, found.tokenizer = _find(recipe, found)
    with found.collect():
        found.items = load_data(recipe.data, report)


def _work_out(recipe: Recipe, found: _Found) -> None:
    """Shape, lengths and steps, as far as what they need was found."""
    args, items = found.args, found.items
    if args and found.config:
        with found.collect():
            found.shape = shape_model(recipe, args, found.config)
    if args and items and found.tokenizer:
        with found.collect():
            found.lengths = measure_lengths(items.train, found.tokenizer, args)
        if items.test:
            with found.collect():
                found.test_lengths = measure_lengths(items.test, found.tokenizer, args, "test")
    if args:
        found.faults += training_faults(args, items)
    if args and items:
        with found.collect():
            found.steps, found.per_step = _count_steps(args, items, found.lengths)
            found.window = _window(recipe, found.steps, found)
            if found.shape:
                check_optimizer(args, found.shape.model, found.steps)


def _plan(recipe: Recipe, found: _Found) -> Plan:
    """The plan, of what was found without a fault."""
    args, shape, precision = found.args, found.shape, found.precision
    assert args
    assert found.config
    assert shape
    assert precision
    length = _sequence_length(args, found.config, found.lengths, found)
    step = estimate_step(recipe, args, shape, length)
    return Plan(
        recipe=recipe,
        precision=precision,
        layers=shape.layers,
        lengths=found.lengths,
        test_lengths=found.test_lengths,
        length=length,
        steps=found.steps,
        per_step=found.per_step,
        processes=PartialState().num_processes,
        window=found.window,
        step=step,
        accumulation=args.gradient_accumulation_steps,
        speed=measure_speed(step.work, precision.device),
        resumes=found.resumes,
        notes=tuple(found.notes),
    )


def print_plan(plan: Plan, console: Console) -> None:
    """Print the plan as a table."""
    table = Table(show_header=False)
    for name, text in _rows(plan):
        table.add_row(Text(name), Text(text))
    console.print(table)
    for note in plan.notes:
        console.print(f"Note: {note}", markup=False, highlight=False, soft_wrap=True)


def _resumes(recipe: Recipe) -> int | None:
    folder = RunFolder(recipe.output)
    if not folder.check(recipe):
        return None
    checkpoint = newest(folder.checkpoints)
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def _find(recipe: Recipe, found: _Found) -> tuple[PretrainedConfig, PreTrainedTokenizerBase | None]:
    """The model's config and tokenizer; what a local folder lacks is noted, since a plan can do without it."""
    parts = read_parts(recipe.model, **model_options(recipe))
    missing = []
    if not parts.has_weights:
        missing.append("weights (safetensors)")
    if parts.tokenizer is None:
        missing.append("tokenizer")
    else:
        use_chat_template(recipe, parts.tokenizer)
    if missing:
        found.notes.append(f"Missing in model={recipe.model!r}: {' and '.join(missing)}. Training needs them.")
    return parts.config, parts.tokenizer


def _count_steps(args: SFTConfig, items: Items, lengths: LengthReport | None) -> tuple[int, int]:
    """Optimizer steps, and sequences in each, as `transformers.Trainer` counts them."""
    rows = lengths.rows if lengths else len(items.train)
    together = args.per_device_train_batch_size * args.gradient_accumulation_steps * PartialState().num_processes
    return count_steps(args, rows), together


def _window(recipe: Recipe, steps: int, found: _Found) -> tuple[float, float] | None:
    if not recipe.anneals:
        return None
    schedule = Schedule(recipe.anneal.schedule, recipe.anneal.anneal_start, recipe.anneal.anneal_end)
    start, end = schedule.window(steps)
    if end > steps:
        found.notes.append(
            f"β does not reach 0: the window ends at step {end:g} of {steps}. The adapter would stay non-linear and "
            "would not be merged. Lower anneal.anneal_end, or train longer."
        )
    return start, end


def _sequence_length(args: SFTConfig, config: PretrainedConfig, lengths: LengthReport | None, found: _Found) -> int:
    """The longest sequence of the training: what memory has to hold."""
    if lengths and not args.packing:
        return min(lengths.longest, args.max_length or lengths.longest)
    if args.max_length is None:
        found.notes.append(
            f"Neither the data nor train.max_length say how long sequences are: {ASSUMED_LENGTH} assumed."
        )
        return ASSUMED_LENGTH
    if lengths is None:
        found.notes.append(
            f"Lengths are not measured without a tokenizer: every sequence counts as {args.max_length} long."
        )
    return int(args.max_length)


def _rows(plan: Plan) -> Iterator[tuple[str, str]]:
    recipe, step, work = plan.recipe, plan.step, plan.step.work
    yield "model", recipe.model
    yield (
        "precision",
        f"{plan.precision}" + (f"; {recipe.load.quantization} weights" if recipe.load.quantization else ""),
    )
    layers = ", ".join(f"{name} ×{count}" for name, count in plan.layers.items())
    yield "method", f"{recipe.method}" + (f" on {sum(plan.layers.values())} layers: {layers}" if layers else "")
    if plan.lengths:
        yield "data", str(plan.lengths)
    if plan.test_lengths and (plan.test_lengths.cut or plan.test_lengths.dropped):
        yield "  test", str(plan.test_lengths)
    yield (
        "steps",
        f"{plan.steps:,} of {plan.per_step} sequences "
        f"({plan.per_step // plan.accumulation // plan.processes} × {plan.accumulation} accumulated × "
        f"{plan.processes} {'process' if plan.processes == 1 else 'processes'})",
    )
    if plan.window is None:
        yield "β", "no annealing"
    else:
        last, first = math.floor(plan.window[0]), math.ceil(plan.window[1])
        yield "β", f"1 up to step {last}, 0 from step {first}, {recipe.anneal.schedule}"
    yield "memory", f"{_size(step.total)} on each device, with {plan.length} tokens a sequence"
    yield "  base weights", _size(step.weights)
    yield "  adapter", _size(step.adapter)
    assumed = "" if step.optimizer_known else ", as for AdamW: this optimizer's size is not known"
    yield "  optimizer", f"{_size(step.optimizer)}{assumed}"
    yield (
        "  step",
        f"{_size(step.activations)} at most: {_size(work.saved)} saved for the backward, "
        f"{_size(step.gradients)} gradients, {_size(work.logits)} a tile of logits, the rest passing",
    )
    yield "time a step", f"{_duration(plan.seconds_per_step)}: {_operations(work.flops * plan.accumulation)}"
    yield "time in all", f"{_duration(plan.seconds_per_step * plan.steps)} if every sequence is that long"
    rough = "rough, and rather too low than too high, since parts are timed and not a whole step"
    lacking = "" if torch.accelerator.is_available() else "this machine has no GPU: the time is its CPU's; "
    yield "  how", f"{lacking}{rough}; {plan.speed}"
    folder = RunFolder(recipe.output)
    yield "output", f"{recipe.output} ({_state(plan.resumes)})"
    full, merged = recipe.method == "full", recipe.merge and (plan.window is None or plan.window[1] <= plan.steps)
    if not full:
        yield "  adapter", str(folder.adapter)
    if full or merged:
        yield "  model", str(folder.model)
    yield "  results", str(folder.results)


def _state(resumes: int | None) -> str:
    if resumes is None:
        return "free"
    if resumes == 0:
        return "an interrupted run of this recipe without a checkpoint, which starts anew"
    return f"an interrupted run of this recipe, which goes on from step {resumes}"


def _size(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / MIB:.2f} MiB"


def _operations(count: int) -> str:
    return f"{count / 1e12:,.2f} TFLOP" if count >= 1e11 else f"{count / 1e9:,.3g} GFLOP"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:,.1f} h"
