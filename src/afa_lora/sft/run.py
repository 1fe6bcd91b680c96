"""A supervised fine-tuning from the recipe to the merged model. `run_sft` reads top to bottom."""

from __future__ import annotations

import gc
from dataclasses import asdict, dataclass
from typing import Any, Literal

from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedModel, set_seed
from trl import SFTConfig

from afa_lora import MergeReport
from afa_lora.data import Sample, load_data
from afa_lora.data.lengths import LengthReport, measure_lengths
from afa_lora.evaluation import Accuracy, score_for
from afa_lora.report.curves import Curve, plot_curves, read_curve
from afa_lora.report.progress import progress_bar
from afa_lora.running.metrics import TEST
from afa_lora.settings import RecipeError
from afa_lora.sft.checks import training_faults
from afa_lora.sft.recipe import Recipe
from afa_lora.sft.trainer import make_trainer, training_arguments
from afa_lora.tuning.adapter import add_adapter
from afa_lora.tuning.card import accuracy_text, write_cards
from afa_lora.tuning.checks import check_optimizer
from afa_lora.tuning.folder import RunFolder, accuracy_numbers, items_facts, write_answers
from afa_lora.tuning.loading import load_base
from afa_lora.tuning.run import TrainingRun
from afa_lora.tuning.trainer import is_sharded


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
        steps: optimizer steps of the training.
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
    steps: int
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
    result: SftResult = _Run.started(recipe, args, console)
    return result


class _Run(TrainingRun):
    """One run in one process."""

    recipe: Recipe
    args: SFTConfig

    def whole(self) -> SftResult:
        recipe, args = self.recipe, self.args
        self.items, self.score = load_data(recipe.data, self.say), score_for(recipe.data)
        if faults := list(training_faults(args, self.items)):
            raise RecipeError("\n  ".join(["This recipe cannot be run:", *faults]))
        if self.main:
            self.folder.record_start(items_facts(self.items), self.say)
        model: PreTrainedModel | PeftModel
        model, self.tokenizer = load_base(recipe, self.say)
        check_optimizer(args, model, max(args.max_steps, 1))
        sharded = is_sharded(args)
        if not sharded and model.device.type != args.device.type:
            model.to(args.device)  # type: ignore[arg-type]
        lengths = self.measure_lengths()
        before = self.test_before(model, sharded) if recipe.evaluate.before else None

        set_seed(args.seed)  # the same A for every method, and in every process
        if recipe.method != "full":
            model = add_adapter(model, recipe)
        with self.console.status(f"Tokenizing {len(self.items.train) + len(self.items.test)} items …"):
            trainer = make_trainer(model, self.tokenizer, self.items, args, recipe)
        if sharded and not trainer.is_fsdp_enabled:
            raise RecipeError("FSDP is asked for, and accelerate has none on this hardware: it would run DDP unsaid.")
        seconds, peak_memory = self.train(trainer)
        test_loss = trainer.evaluate(metric_key_prefix=TEST)[f"{TEST}_loss"] if self.items.test else None
        curve, steps = read_curve(recipe.method, trainer.state.log_history), trainer.state.max_steps
        weights = trainer.accelerator.get_state_dict(trainer.model) if sharded else None  # whole, in the first process
        del trainer  # the optimizer's memory
        gc.collect()

        if sharded or recipe.load.quantization:
            after, merge_report = self.finish_apart(model, weights)
        else:
            after, merge_report = self.finish(model)
        result = SftResult(
            self.folder, before, after, test_loss, curve, asdict(lengths), steps, seconds, peak_memory, merge_report
        )
        if self.main:
            plot_curves([curve], self.folder.curves)
            if after is not None:
                write_answers(after, self.folder.answers)
            write_cards(recipe, self.items, self.folder, steps, _rows(result), merge_report)
            self.folder.write_results(_numbers(recipe, result))
        return result

    def measure_lengths(self) -> LengthReport:
        """Say how long the items are and which of them are cut or dropped; TRL does both without a word."""
        with progress_bar(self.console) as progress:
            bar = progress.add_task("measure lengths", total=len(self.items.train) + len(self.items.test), note="")

            def measure(samples: list[Sample], split: Literal["training", "test"]) -> LengthReport:
                return measure_lengths(samples, self.tokenizer, self.args, split, lambda n: progress.advance(bar, n))

            train = measure(self.items.train, "training")
            test = measure(self.items.test, "test") if self.items.test else None
        self.say(str(train))
        if test and (test.cut or test.dropped):
            self.say(str(test))
        return train


def _numbers(recipe: Recipe, result: SftResult) -> dict[str, Any]:
    """What ``results.json`` says."""
    return {
        "method": recipe.method,
        "accuracy_before": accuracy_numbers(result.before),
        "accuracy_after": accuracy_numbers(result.after),
        "test_loss": result.test_loss,
        "training_seconds": result.seconds,
        "peak_memory_bytes": result.peak_memory,
        "merge": asdict(result.merge) if result.merge else None,
        "lengths": result.lengths,
        "loss": result.curve.loss,
        "beta": result.curve.beta,
    }


def _rows(result: SftResult) -> list[list[str]]:
    """What the model card says was measured."""
    rows = []
    if result.after is not None:
        rows.append(["accuracy of generated answers", accuracy_text(result.before), accuracy_text(result.after)])
    if result.test_loss is not None:
        rows.append(["loss on the right answers (nats per token)", "–", f"{result.test_loss:.4f}"])
    return rows
