"""A supervised fine-tuning from the recipe to the merged model. `run_sft` reads top to bottom."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import SFTConfig

from afa_lora import MergeReport, NotLinearError, load_adapter, merge
from afa_lora.data import Items, load_data
from afa_lora.data.lengths import LengthReport, measure_lengths
from afa_lora.evaluation import Accuracy, evaluate, score_for
from afa_lora.files import folder_atomic
from afa_lora.models import load_model
from afa_lora.report.curves import Curve, plot_curves, read_curve
from afa_lora.report.memory import PeakMemory
from afa_lora.report.progress import TrainingProgress, progress_bar
from afa_lora.running.checkpoints import last_good
from afa_lora.running.metrics import TEST, MetricsLog, tensorboard
from afa_lora.running.stopping import GracefulStop
from afa_lora.sft.adapter import add_adapter
from afa_lora.sft.card import write_cards
from afa_lora.sft.failures import RunStopped, explained
from afa_lora.sft.folder import RunFolder, read_answers, write_answers
from afa_lora.sft.loading import load_base, model_options, training_precision
from afa_lora.sft.recipe import Recipe
from afa_lora.sft.trainer import ExactSFTTrainer, is_sharded, make_trainer, training_arguments

Say = Callable[[str], None]
PROBE_ITEMS = 4  # prompts on which merged and unmerged model are compared


@dataclass(frozen=True)
class SftResult:
    """What a run gave.

    Attributes:
        folder: where everything lies.
        before: accuracy of the untrained model, if it was tested.
        after: accuracy of the trained model, if there are test items: merged, unless it is sharded, quantised or cannot
            be merged.
        test_loss: mean loss of the right answers to the test items, in nats per token, if there are any.
        curve: training loss and β.
        lengths: the training items' lengths in tokens, and how many were cut or dropped.
        seconds: duration of the training alone, over all starts of the run.
        peak_memory: most memory held during the training, in bytes.
        merge: how far merging has changed the logits; ``None`` if nothing was merged.
    """

    folder: RunFolder
    before: Accuracy | None
    after: Accuracy | None
    test_loss: float | None
    curve: Curve
    lengths: dict[str, Any]
    seconds: float
    peak_memory: int
    merge: MergeReport | None


def run_sft(recipe: Recipe, console: Console | None = None) -> SftResult:
    """Fine-tune by a recipe: load, test, add the adapter, train, save, merge, test again.

    A run that was interrupted goes on from its last good checkpoint when it is started again with the same recipe.
    Under ``torchrun`` or ``accelerate launch`` every process calls this; the first one prints and writes.

    Args:
        recipe: what to do; `load_recipe` reads one from a file.
        console: where progress goes; standard output unless given.

    Raises:
        AfaLoraError: the recipe, the data or the model is at fault, or the run was stopped; the message says what to
            do.
    """
    args = training_arguments(recipe)
    processes = PartialState()
    folder = RunFolder(recipe.output)
    console = (console or Console()) if processes.is_main_process else Console(quiet=True)
    claim = folder.claimed(recipe) if processes.is_main_process else nullcontext()
    with claim, explained(recipe, folder.checkpoints):
        processes.wait_for_everyone()  # until the folder is claimed
        return _run(recipe, args, folder, console)


def _run(recipe: Recipe, args: SFTConfig, folder: RunFolder, console: Console) -> SftResult:
    def say(text: str) -> None:  # paths and other people's messages may hold square brackets
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    main = PartialState().is_main_process
    items = load_data(recipe.data, say)
    if main:
        folder.record_start(items)
    model: PreTrainedModel | PeftModel
    model, tokenizer = load_base(recipe, say)
    sharded = is_sharded(args)
    if not sharded and model.device.type != args.device.type:
        model.to(args.device)  # type: ignore[arg-type]
    lengths = _measure_lengths(items, tokenizer, args, console, say)
    if sharded and recipe.evaluate.before:
        say("Not tested before the training: a sharded model has its weights in the first process alone until then.")
    before = None if sharded else _test_before(model, tokenizer, items, recipe, folder, console)

    set_seed(args.seed)  # the same A for every method, and in every process
    if recipe.method != "full":
        model = add_adapter(model, recipe)
    with console.status(f"Tokenizing {len(items.train) + len(items.test)} items …"):
        trainer = make_trainer(model, tokenizer, items, args, recipe)
    seconds, peak_memory = _train(trainer, folder, recipe, console, say)
    test_loss = trainer.evaluate(metric_key_prefix=TEST)[f"{TEST}_loss"] if items.test else None
    curve = read_curve(recipe.method, trainer.state.log_history)
    weights = trainer.accelerator.get_state_dict(trainer.model) if sharded else None  # whole, in the first process
    del trainer  # the optimizer's memory
    gc.collect()
    rest = (tokenizer, items, recipe, folder, console, say)
    if sharded or recipe.load.quantization:
        after, merge_report = _finish_apart(model, weights, *rest)
    else:
        after, merge_report = _finish(model, *rest)
    result = SftResult(folder, before, after, test_loss, curve, asdict(lengths), seconds, peak_memory, merge_report)
    if main:
        plot_curves([curve], folder.curves)
        if after is not None:
            write_answers(after, folder.answers)
        write_cards(recipe, items, result)
        folder.write_results(recipe, result)
    return result


def _finish(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Items,
    recipe: Recipe,
    folder: RunFolder,
    console: Console,
    say: Say,
) -> tuple[Accuracy | None, MergeReport | None]:
    """Save the adapter, merge it where it is, test and save the model."""
    report = None
    if isinstance(model, PeftModel):
        _save(model, None, folder.adapter)
        if recipe.merge:
            model, report = _merge(model, tokenizer, items, say)
    after = _test(model, tokenizer, items, recipe, console, "test after")
    if not isinstance(model, PeftModel):
        _save(model, tokenizer, folder.model)
    return after, report


def _finish_apart(
    model: PreTrainedModel | PeftModel,
    weights: dict[str, Tensor] | None,
    tokenizer: PreTrainedTokenizerBase,
    items: Items,
    recipe: Recipe,
    folder: RunFolder,
    console: Console,
    say: Say,
) -> tuple[Accuracy | None, MergeReport | None]:
    """The same for a model whose weights are sharded or quantised: they are tested and saved as they are, and the
    adapter is merged into a copy of the base model that is neither, by the first process, on the CPU.
    """
    after = _test(model, tokenizer, items, recipe, console, "test after")
    report = None
    if recipe.method == "full":
        _save(model, tokenizer, folder.model, weights)
    else:
        _save(model, None, folder.adapter, weights)
        if recipe.merge and PartialState().is_main_process:
            dtype = training_precision(recipe).compute
            base, _ = load_model(recipe.model, report=say, dtype=dtype, **model_options(recipe))
            merged, report = _merge(load_adapter(base, folder.adapter), tokenizer, items, say)
            if not isinstance(merged, PeftModel):
                _save(merged, tokenizer, folder.model)
    PartialState().wait_for_everyone()
    return after, report


def _measure_lengths(
    items: Items, tokenizer: PreTrainedTokenizerBase, args: SFTConfig, console: Console, say: Say
) -> LengthReport:
    """Say how long the items are and which of them are cut or dropped; TRL does both without a word."""
    with progress_bar(console) as progress:
        bar = progress.add_task("measure lengths", total=len(items.train) + len(items.test), note="")

        def advance(count: int) -> None:
            progress.advance(bar, count)

        train = measure_lengths(items.train, tokenizer, args, "training", advance)
        test = measure_lengths(items.test, tokenizer, args, "test", advance) if items.test else None
    say(str(train))
    if test and (test.cut or test.dropped):
        say(str(test))
    return train


def _test_before(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Items,
    recipe: Recipe,
    folder: RunFolder,
    console: Console,
) -> Accuracy | None:
    """The untrained model's accuracy; an earlier start of the run may have measured it already."""
    if not recipe.evaluate.before:
        return None
    if folder.answers_before.is_file():
        return read_answers(folder.answers_before)
    before = _test(model, tokenizer, items, recipe, console, "test before")
    if before is not None and PartialState().is_main_process:
        write_answers(before, folder.answers_before)
    return before


def _train(
    trainer: ExactSFTTrainer, folder: RunFolder, recipe: Recipe, console: Console, say: Say
) -> tuple[float, int]:
    """Train, from the last good checkpoint if there is one. Returns seconds and the peak memory in bytes.

    Raises:
        RunStopped: Ctrl-C or SIGTERM has ended the training early.
    """
    checkpoint = trainer.args.resume_from_checkpoint or _last_good(folder, say)
    if checkpoint:
        say(f"Going on from {checkpoint}.")
    metrics, stop = MetricsLog(folder.metrics), GracefulStop(say)
    with PeakMemory() as memory, TrainingProgress(console, f"train {recipe.method}") as progress, stop:
        for callback in (metrics, progress, stop):
            trainer.add_callback(callback)
        if trainer.is_world_process_zero():
            step = int(Path(checkpoint).name.rpartition("-")[2]) if checkpoint else 0
            trainer.add_callback(tensorboard(folder.tensorboard, step + 1))
        trainer.train(resume_from_checkpoint=checkpoint)
        seconds = metrics.seconds
    if stop.requested and trainer.state.global_step < trainer.state.max_steps:
        raise RunStopped(
            f"Stopped and saved at step {trainer.state.global_step} of {trainer.state.max_steps}. "
            "The same command again goes on from there."
        )
    return seconds, memory.bytes


def _last_good(folder: RunFolder, say: Say) -> str | None:
    """The checkpoint to go on from, the same for every process."""
    found = [last_good(folder.checkpoints, say)] if PartialState().is_main_process else [None]
    broadcast_object_list(found)
    return str(found[0]) if found[0] else None


def _merge(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, items: Items, say: Say
) -> tuple[PreTrainedModel | PeftModel, MergeReport | None]:
    """Merge if the adapter is linear; if it is not, say so and go on with the adapter as it is."""
    texts = [
        tokenizer.apply_chat_template(list(sample.prompt), tokenize=False)
        for sample in (items.test or items.train)[:PROBE_ITEMS]
    ]
    probe = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt").to(model.device)
    try:
        merged, report = merge(model, probe)
    except NotLinearError as error:
        say(f"Not merged: {error}")
        return model, None
    assert isinstance(merged, PreTrainedModel)
    return merged, report


def _save(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write model or adapter, from the first process; ``weights`` are the gathered ones of a sharded model."""
    if PartialState().is_main_process:
        with folder_atomic(folder) as temporary:
            model.save_pretrained(temporary, state_dict=weights)
            if tokenizer is not None:
                tokenizer.save_pretrained(temporary)


def _test(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Items,
    recipe: Recipe,
    console: Console,
    description: str,
) -> Accuracy | None:
    if not items.test:
        return None
    with progress_bar(console) as progress:
        bar = progress.add_task(description, total=len(items.test), note="")
        return evaluate(
            model,
            tokenizer,
            items.test,
            score_for(recipe.data),
            max_new_tokens=recipe.evaluate.max_new_tokens,
            batch_size=recipe.evaluate.batch_size,
            advance=lambda count: progress.advance(bar, count),
        )
