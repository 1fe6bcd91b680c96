"""A supervised fine-tuning from the recipe to the merged model. `run_sft` reads top to bottom."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import SFTConfig

from afa_lora import MergeReport, NotLinearError, load_adapter, merge
from afa_lora.data import Items, Sample, load_data
from afa_lora.data.lengths import LengthReport, measure_lengths
from afa_lora.evaluation import Accuracy, evaluate, score_for
from afa_lora.files import folder_atomic
from afa_lora.models import load_model
from afa_lora.report.curves import Curve, plot_curves, read_curve
from afa_lora.report.memory import PeakMemory
from afa_lora.report.progress import TrainingProgress, progress_bar
from afa_lora.running.checkpoints import check_checkpoint, last_good
from afa_lora.running.metrics import TEST, MetricsLog, tensorboard
from afa_lora.running.stopping import GracefulStop, terminable
from afa_lora.settings import RecipeError
from afa_lora.sft.adapter import add_adapter
from afa_lora.sft.card import write_cards
from afa_lora.sft.checks import check_optimizer, training_faults
from afa_lora.sft.failures import RunInterrupted, explained, what_is_kept
from afa_lora.sft.folder import RunFolder, read_answers, write_answers
from afa_lora.sft.loading import load_base, model_options, training_precision
from afa_lora.sft.recipe import Recipe
from afa_lora.sft.trainer import ExactSFTTrainer, is_sharded, make_trainer, training_arguments

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
    processes = PartialState()
    folder = RunFolder(recipe.output)
    console = (console or Console()) if processes.is_main_process else Console(quiet=True)
    claim = folder.claimed(recipe) if processes.is_main_process else nullcontext()
    with claim, explained(recipe, folder.checkpoints), terminable():
        processes.wait_for_everyone()  # until the folder is claimed
        return _Run(recipe, args, folder, console, processes.is_main_process).whole()


@dataclass
class _Run:
    """One run in one process; ``main`` is the process that prints and writes."""

    recipe: Recipe
    args: SFTConfig
    folder: RunFolder
    console: Console
    main: bool
    items: Items = field(init=False)
    tokenizer: PreTrainedTokenizerBase = field(init=False)

    def whole(self) -> SftResult:
        recipe, args = self.recipe, self.args
        self.items = load_data(recipe.data, self.say)
        if faults := list(training_faults(args, self.items)):
            raise RecipeError("\n  ".join(["This recipe cannot be run:", *faults]))
        if self.main:
            self.folder.record_start(self.items, self.say)
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
            write_cards(recipe, self.items, result)
            self.folder.write_results(recipe, result)
        return result

    def say(self, text: str) -> None:
        """Print a line as it is: paths and other people's messages may hold square brackets."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

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

    def test_before(self, model: PreTrainedModel, sharded: bool) -> Accuracy | None:
        """The untrained model's accuracy; an earlier start of the run may have measured it already."""
        if sharded:
            self.say("Not tested before the training: until then only the first process has a sharded model's weights.")
            return None
        if self.folder.answers_before.is_file():
            return read_answers(self.folder.answers_before)
        before = self.test(model, "test before")
        if before is not None and self.main:
            write_answers(before, self.folder.answers_before)
        return before

    def train(self, trainer: ExactSFTTrainer) -> tuple[float, int]:
        """Train, from the last good checkpoint if there is one. Returns seconds and the peak memory in bytes.

        Raises:
            RunInterrupted: Ctrl-C or SIGTERM has ended the training early.
        """
        checkpoint, step = self.last_good() or self.args.resume_from_checkpoint, 0
        if checkpoint:
            step = check_checkpoint(checkpoint)
            self.say(f"Going on from {checkpoint}.")
        metrics, stop = MetricsLog(self.folder.metrics), GracefulStop(self.say)
        with PeakMemory() as memory, TrainingProgress(self.console, f"train {self.recipe.method}") as progress, stop:
            for callback in (metrics, progress, stop):
                trainer.add_callback(callback)
            if self.main:
                trainer.add_callback(tensorboard(self.folder.tensorboard, step + 1))
            trainer.train(resume_from_checkpoint=checkpoint)
            seconds = metrics.seconds
        if stop.requested:
            raise RunInterrupted(
                f"Stopped at step {trainer.state.global_step} of {trainer.state.max_steps}. "
                f"{what_is_kept(self.folder.checkpoints)}"
            )
        return seconds, memory.bytes

    def last_good(self) -> str | None:
        """The checkpoint to go on from, the same for every process."""
        found = [last_good(self.folder.checkpoints, self.say)] if self.main else [None]
        broadcast_object_list(found)
        return str(found[0]) if found[0] else None

    def finish(self, model: PreTrainedModel | PeftModel) -> tuple[Accuracy | None, MergeReport | None]:
        """Save the adapter, merge it where it is, test and save the model."""
        report = None
        if isinstance(model, PeftModel):
            self.save(model, self.folder.adapter)
            if self.recipe.merge:
                model, report = self.merge(model)
        after = self.test(model, "test after")
        if not isinstance(model, PeftModel):
            self.save(model, self.folder.model)
        return after, report

    def finish_apart(
        self, model: PreTrainedModel | PeftModel, weights: dict[str, Tensor] | None
    ) -> tuple[Accuracy | None, MergeReport | None]:
        """The same for a model that is sharded or quantised: it is tested and saved as it is, and the first process
        merges the adapter into a copy of the base model that is neither, on the CPU.
        """
        after = self.test(model, "test after")
        report = None
        self.save(model, self.folder.adapter if isinstance(model, PeftModel) else self.folder.model, weights)
        if isinstance(model, PeftModel) and self.recipe.merge and self.main:
            dtype = training_precision(self.recipe).compute
            base, _ = load_model(self.recipe.model, report=self.say, dtype=dtype, **model_options(self.recipe))
            merged, report = self.merge(load_adapter(base, self.folder.adapter))
            if not isinstance(merged, PeftModel):
                self.save(merged, self.folder.model)
        PartialState().wait_for_everyone()
        return after, report

    def merge(self, model: PeftModel) -> tuple[PreTrainedModel | PeftModel, MergeReport | None]:
        """Merge if the adapter is linear; if it is not, say so and go on with the adapter as it is."""
        texts = [
            self.tokenizer.apply_chat_template(list(sample.prompt), tokenize=False)
            for sample in (self.items.test or self.items.train)[:PROBE_ITEMS]
        ]
        probe = self.tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt").to(model.device)
        try:
            merged, report = merge(model, probe)
        except NotLinearError as error:
            self.say(f"Not merged: {error}")
            return model, None
        assert isinstance(merged, PreTrainedModel)
        return merged, report

    def save(self, model: PreTrainedModel | PeftModel, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write an adapter, or a model with its tokenizer; ``weights`` are the gathered ones of a sharded model."""
        if self.main:
            with folder_atomic(folder) as temporary:
                model.save_pretrained(temporary, state_dict=weights)
                if not isinstance(model, PeftModel):
                    self.tokenizer.save_pretrained(temporary)

    def test(self, model: PreTrainedModel | PeftModel, description: str) -> Accuracy | None:
        """The accuracy of generated answers to the test items, if there are any."""
        if not self.items.test:
            return None
        with progress_bar(self.console) as progress:
            bar = progress.add_task(description, total=len(self.items.test), note="")
            return evaluate(
                model,
                self.tokenizer,
                self.items.test,
                score_for(self.recipe.data),
                max_new_tokens=self.recipe.evaluate.max_new_tokens,
                batch_size=self.recipe.evaluate.batch_size,
                advance=lambda count: progress.advance(bar, count),
            )
