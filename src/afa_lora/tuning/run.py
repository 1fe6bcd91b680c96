"""What a training does around its trainer, the same in every workflow: train, save, merge, test."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from afa_lora import MergeReport, NotLinearError, load_adapter, merge
from afa_lora.data import Items
from afa_lora.evaluation import Accuracy, Score, evaluate
from afa_lora.files import folder_atomic
from afa_lora.models import load_model
from afa_lora.report.memory import PeakMemory
from afa_lora.report.progress import TrainingProgress, progress_bar
from afa_lora.running.checkpoints import check_checkpoint, last_good
from afa_lora.running.metrics import MetricsLog, tensorboard
from afa_lora.running.stopping import GracefulStop, terminable
from afa_lora.tuning.failures import RunInterrupted, explained, what_is_kept
from afa_lora.tuning.folder import RunFolder, read_answers, write_answers
from afa_lora.tuning.loading import model_options, training_precision
from afa_lora.tuning.recipe import TuningRecipe
from afa_lora.tuning.trainer import ExactTraining

PROBE_ITEMS = 4  # prompts on which merged and unmerged model are compared


@dataclass
class TrainingRun:
    """One run in one process.

    Attributes:
        recipe: what to do.
        args: the trainer's configuration.
        folder: where everything lies.
        console: where progress goes.
        main: whether this is the process that prints and writes.
        items: what is trained and tested on.
        tokenizer: the model's.
        score: how an answer to a test item is scored.
    """

    recipe: TuningRecipe
    args: TrainingArguments
    folder: RunFolder
    console: Console
    main: bool
    items: Items = field(init=False)
    tokenizer: PreTrainedTokenizerBase = field(init=False)
    score: Score = field(init=False)

    @classmethod
    def started(cls, recipe: TuningRecipe, args: TrainingArguments, console: Console | None = None) -> Any:
        """Claim the recipe's folder and do the `whole` run in it; every process of several calls this.

        Args:
            recipe: what to do.
            args: the trainer's configuration.
            console: where progress goes; standard output unless given. The first process alone prints and writes.

        Raises:
            AfaLoraError: the recipe, the data or the model is at fault, or the run was stopped.
        """
        processes = PartialState()
        folder = RunFolder(recipe.output)
        console = (console or Console()) if processes.is_main_process else Console(quiet=True)
        claim = folder.claimed(recipe) if processes.is_main_process else nullcontext()
        with claim, explained(recipe, folder.checkpoints), terminable():
            processes.wait_for_everyone()  # until the folder is claimed
            return cls(recipe, args, folder, console, processes.is_main_process).whole()

    def whole(self) -> Any:
        """The workflow, from the data to the results."""
        raise NotImplementedError

    @property
    def max_new_tokens(self) -> int:
        """The longest answer to a test item, in tokens."""
        return self.recipe.evaluate.max_new_tokens

    def say(self, text: str) -> None:
        """Print a line as it is: paths and other people's messages may hold square brackets."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

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

    def train(self, trainer: ExactTraining) -> tuple[float, int]:
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
            return self.answers(model, lambda count: progress.advance(bar, count))

    def answers(
        self, model: PreTrainedModel | PeftModel, advance: Callable[[int], object] = lambda count: None
    ) -> Accuracy:
        """Generated answers to the test items, scored."""
        return evaluate(
            model,
            self.tokenizer,
            self.items.test,
            self.score,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.recipe.evaluate.batch_size,
            advance=advance,
        )
