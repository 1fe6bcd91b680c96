"""The training of a draft, from the features to the merged draft. `run_eagle` reads top to bottom."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from peft import LoraConfig
from rich.console import Console
from torch.utils.data import DataLoader, Subset
from transformers import PreTrainedModel, TrainingArguments, set_seed
from transformers.trainer_utils import IntervalStrategy

from afa_lora import NotLinearError
from afa_lora.eagle.adapter import ADAPTER, train_jointly
from afa_lora.eagle.alignment import collate, draft_inputs
from afa_lora.eagle.card import write_draft_card
from afa_lora.eagle.merging import DraftMergeReport, merge_draft
from afa_lora.eagle.model import EagleDraft
from afa_lora.eagle.recipe import Recipe
from afa_lora.eagle.sources import Sources, faults, first_draft, open_sources, running_target
from afa_lora.eagle.target import TargetEnds
from afa_lora.eagle.trainer import EagleTrainer, make_trainer, training_arguments
from afa_lora.files import folder_atomic
from afa_lora.peft.checkpoint import with_beta
from afa_lora.peft.model import AfaLoraModel
from afa_lora.report.curves import DRAFT_LOSS, Curve, plot_curves, read_curve
from afa_lora.running.metrics import TEST
from afa_lora.settings import RecipeError
from afa_lora.tuning.checks import check_optimizer
from afa_lora.tuning.folder import RunFolder
from afa_lora.tuning.loading import training_precision
from afa_lora.tuning.run import PROBE_ITEMS, TrainingRun

PROBE_LENGTH = 64  # positions of a conversation on which merged and unmerged draft are compared


@dataclass(frozen=True)
class EagleResult:
    """What a run gave.

    Attributes:
        folder: where everything lies; the draft in ``draft``, or in ``unmerged`` if it could not be merged.
        test: on held-out conversations after the training, if there are any: ``loss``, ``feature_loss``, ``token_loss``
            (nats) and ``accuracy``, the share of positions where draft and target have the same most likely token.
        curve: training loss and β.
        accuracy: (optimizer step, training accuracy) pairs.
        held_out: (optimizer step, loss, accuracy) on held-out conversations during the training.
        steps: optimizer steps of the training.
        tokens: of the conversations trained on, over all epochs.
        seconds: duration of the training, the tests between epochs included, over all starts of the run.
        peak_memory: most memory held during the training, in bytes.
        merge: how far merging has changed features and logits; ``None`` if nothing was merged.
    """

    folder: RunFolder
    test: dict[str, float] | None
    curve: Curve
    accuracy: tuple[tuple[int, float], ...]
    held_out: tuple[tuple[int, float, float], ...]
    steps: int
    tokens: int
    seconds: float
    peak_memory: int
    merge: DraftMergeReport | None


def run_eagle(recipe: Recipe, console: Console | None = None) -> EagleResult:
    """Train a draft by a recipe: open its features, add the adapter, train both, test, merge, save.

    A run that was interrupted goes on from its last good checkpoint when it is started again with the same recipe.
    Under ``torchrun`` or ``accelerate launch`` every process calls this; the first one prints and writes.

    Args:
        recipe: what to do; `load_recipe` reads one from a file.
        console: where progress goes; standard output unless given.

    Raises:
        AfaLoraError: the recipe, the features or the target is at fault, or the run was stopped; the message says what
            to do.
    """
    args = training_arguments(recipe)
    result: EagleResult = _Run.started(recipe, args, console)
    return result


class _Run(TrainingRun):
    """One run in one process."""

    recipe: Recipe
    args: TrainingArguments

    def whole(self) -> EagleResult:
        recipe, args = self.recipe, self.args
        precision = training_precision(recipe)
        self.say(f"{precision}.")
        ends = TargetEnds.load(recipe.model, dtype=precision.compute).to(args.device)
        sources = open_sources(recipe, ends, self.say)
        if found := list(faults(recipe, args, sources)):
            raise RecipeError("\n  ".join(["This recipe cannot be run:", *found]))
        if sources.test is None:
            args.eval_strategy = IntervalStrategy.NO
        if self.main:
            self.folder.record_start(sources.facts, self.say)
        target = running_target(recipe, self.say)
        if target is not None:
            target.to(args.device)  # type: ignore[arg-type]

        set_seed(args.seed)  # the same draft for every method, and in every process
        draft = first_draft(recipe, ends, precision.weights)
        set_seed(args.seed)  # and the same A
        tuner = train_jointly(draft, recipe)
        adapter = tuner.peft_config[ADAPTER] if tuner else None
        check_optimizer(args, draft, max(args.max_steps, 1))
        trainer = make_trainer(draft, adapter, ends, target, sources.train, sources.test, args, recipe)
        seconds, peak_memory = self.train(trainer)
        test = trainer.evaluate(metric_key_prefix=TEST) if sources.test is not None else None
        trainer.accelerator.unwrap_model(draft, keep_fp32_wrapper=False)  # autocast would hide how exact merging is
        report = self.finish_draft(draft, tuner, ends, target, sources)
        result = _result(self, trainer, test, seconds, peak_memory, report)
        if self.main:
            if self.folder.draft.is_dir():
                write_draft_card(recipe, sources.facts, self.folder, result.steps, adapter, result.test, report)
            plot_curves([result.curve], self.folder.curves, DRAFT_LOSS)
            self.folder.write_results(_numbers(recipe, result))
        return result

    def finish_draft(
        self,
        draft: EagleDraft,
        tuner: AfaLoraModel | None,
        ends: TargetEnds,
        target: PreTrainedModel | None,
        sources: Sources,
    ) -> DraftMergeReport | None:
        """Merge the draft if its adapter is linear, and save it; one that is not merged is saved with its adapter."""
        if tuner is None:
            self.save_draft(draft, None)
            return None
        adapter: LoraConfig = tuner.peft_config[ADAPTER]
        if not self.recipe.merge:
            self.save_draft(draft, adapter)
            self.say(f"Not merged, as merge=false says: the draft with its adapter is in {self.folder.unmerged}.")
            return None
        data: Any = sources.test or sources.train
        probe = next(
            iter(DataLoader(Subset(data, range(min(PROBE_ITEMS, len(data)))), PROBE_ITEMS, collate_fn=collate))
        )
        probe = {key: tensor.to(ends.head.device) for key, tensor in probe.items()}
        embeddings, features = draft_inputs(probe, ends, target, draft.dtype)
        positions = slice(0, min(PROBE_LENGTH, embeddings.shape[1]))
        try:
            report = merge_draft(draft, tuner, ends, embeddings[:, positions], features[:, positions])
        except NotLinearError as error:
            self.save_draft(draft, adapter)
            self.say(f"Not merged: {error} The draft with its adapter is in {self.folder.unmerged}.")
            return None
        self.save_draft(draft, None)
        return report

    def save_draft(self, draft: EagleDraft, adapter: LoraConfig | None) -> None:
        """Write an ordinary draft, or one with its adapter and its β."""
        if self.main:
            with folder_atomic(self.folder.unmerged if adapter else self.folder.draft) as temporary:
                weights = with_beta(draft.state_dict(), adapter) if adapter else None
                draft.save_pretrained(temporary, state_dict=weights)
                if adapter:
                    # Not beside the weights: transformers would take the folder for an adapter's.
                    adapter.save_pretrained(str(temporary / "adapter"))


def _result(
    run: _Run,
    trainer: EagleTrainer,
    test: dict[str, float] | None,
    seconds: float,
    peak_memory: int,
    merge: DraftMergeReport | None,
) -> EagleResult:
    logs = trainer.state.log_history
    return EagleResult(
        folder=run.folder,
        test={name.removeprefix(f"{TEST}_"): value for name, value in test.items()} if test else None,
        curve=read_curve(run.recipe.method, logs),
        accuracy=tuple((int(entry["step"]), entry["accuracy"]) for entry in logs if "accuracy" in entry),
        held_out=tuple((int(e["step"]), e["eval_loss"], e["eval_accuracy"]) for e in logs if "eval_loss" in e),
        steps=trainer.state.max_steps,
        tokens=trainer.tokens,
        seconds=seconds,
        peak_memory=peak_memory,
        merge=merge,
    )


def _numbers(recipe: Recipe, result: EagleResult) -> dict[str, Any]:
    """What ``results.json`` says."""
    return {
        "method": recipe.method,
        "test": result.test,
        "training_seconds": result.seconds,
        "tokens": result.tokens,
        "tokens_per_second": result.tokens / result.seconds,
        "peak_memory_bytes": result.peak_memory,
        "merge": asdict(result.merge) if result.merge else None,
        "loss": result.curve.loss,
        "accuracy": result.accuracy,
        "beta": result.curve.beta,
        "held_out": result.held_out,
    }
