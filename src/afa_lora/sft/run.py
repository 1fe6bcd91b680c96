"""A supervised fine-tuning from the recipe to the merged model. `run_sft` reads top to bottom."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, ProgressCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import is_torch_bf16_gpu_available, is_torch_cuda_available
from trl import SFTConfig, SFTTrainer

from afa_lora import AfaLoraConfig, AnnealingCallback, MergeReport, NotLinearError, merge
from afa_lora.data import Items, load_data, to_dataset
from afa_lora.evaluation import Accuracy, evaluate, score_for
from afa_lora.files import folder_atomic
from afa_lora.models import load_model
from afa_lora.report.curves import Curve, plot_curves, read_curve
from afa_lora.report.memory import PeakMemory
from afa_lora.report.progress import TrainingProgress, progress_bar
from afa_lora.sft.folder import RunFolder
from afa_lora.sft.recipe import Recipe, RecipeError

PROBE_ITEMS = 4  # prompts on which merged and unmerged model are compared


@dataclass(frozen=True)
class SftResult:
    """What a run gave.

    Attributes:
        folder: where everything lies.
        before: accuracy of the untrained model, if it was tested.
        after: accuracy of the merged model (of the unmerged one if it cannot be merged), if there are test items.
        test_loss: mean loss of the right answers to the test items, in nats per token, if there are any.
        curve: training loss and β.
        seconds: duration of the training alone.
        peak_memory: most memory held during the training, in bytes.
        merge: how far merging has changed the logits; ``None`` for the method ``full`` and if β > 0.
    """

    folder: RunFolder
    before: Accuracy | None
    after: Accuracy | None
    test_loss: float | None
    curve: Curve
    seconds: float
    peak_memory: int
    merge: MergeReport | None


def run_sft(recipe: Recipe, console: Console | None = None) -> SftResult:
    """Fine-tune by a recipe: load, test, add the adapter, train, save, merge, test again.

    A run that was interrupted goes on from its last checkpoint when it is started again with the same recipe.

    Args:
        recipe: what to do; `load_recipe` reads one from a file.
        console: where progress goes; standard output unless given.

    Raises:
        AfaLoraError: the recipe, the data or the model is at fault; the message says what to change.
    """
    console = console or Console()
    args = _training_arguments(recipe)
    folder = RunFolder(recipe.output)
    folder.claim(recipe)
    items = load_data(recipe.data)
    options = {"trust_remote_code": args.trust_remote_code, **(recipe.train.get("model_init_kwargs") or {})}
    model: PreTrainedModel | PeftModel
    model, tokenizer = load_model(recipe.model, report=lambda text: _say(console, text), **options)
    if model.device.type != args.device.type:
        model.to(args.device)  # type: ignore[arg-type]
    _check_chat_template(recipe, tokenizer)

    before = _test(model, tokenizer, items, recipe, console, "test before") if recipe.evaluate.before else None

    set_seed(args.seed)  # the same A for every method
    if recipe.method != "full":
        model = _add_adapter(model, recipe)
    with console.status(f"Tokenizing {len(items.train) + len(items.test)} items …"):
        trainer = _make_trainer(model, tokenizer, items, args, recipe)
    _say_what_was_dropped(trainer, items, console)
    seconds, peak_memory = _train(trainer, folder, recipe, console)
    test_loss = trainer.evaluate()["eval_loss"] if items.test else None
    curve = read_curve(recipe.method, trainer.state.log_history)
    plot_curves([curve], folder.curves)

    del trainer  # the optimizer's memory
    gc.collect()
    merge_report = None
    if isinstance(model, PeftModel):
        with folder_atomic(folder.adapter) as temporary:
            model.save_pretrained(temporary)
        model, merge_report = _merge(model, tokenizer, items, console)
    after = _test(model, tokenizer, items, recipe, console, "test after")
    if not isinstance(model, PeftModel):
        with folder_atomic(folder.model) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)

    result = SftResult(folder, before, after, test_loss, curve, seconds, peak_memory, merge_report)
    folder.write_results(recipe, items, result)
    return result


def _training_arguments(recipe: Recipe) -> SFTConfig:
    settings: dict[str, Any] = {"output_dir": str(recipe.output / "checkpoints"), "disable_tqdm": True}
    if not is_torch_bf16_gpu_available():
        settings["bf16"] = False  # TRL's default is bfloat16 everywhere
    if not is_torch_cuda_available():
        settings["dataloader_pin_memory"] = False
    settings |= {key: value for key, value in recipe.train.items() if key != "model_init_kwargs"}
    try:
        return SFTConfig(**settings)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"train: {error}") from error


def _check_chat_template(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.chat_template is None:
        raise RecipeError(
            f"model={recipe.model!r} has no chat template, so its prompts have no form. Use the instruction-tuned "
            "variant, or a local copy of the model with a chat_template.jinja beside its tokenizer."
        )


def _add_adapter(model: PreTrainedModel, recipe: Recipe) -> PeftModel:
    settings = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", **recipe.adapter}
    settings["use_dora"] = recipe.method.endswith("dora")
    try:
        if recipe.anneals:
            config: LoraConfig = AfaLoraConfig(**settings, **recipe.anneal.model_dump())
        else:
            config = LoraConfig(**settings)
        return get_peft_model(model, config)
    except (TypeError, ValueError) as error:  # PEFT's and our own ways to refuse a setting
        raise RecipeError(f"adapter: {error}") from error


def _make_trainer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Items,
    args: SFTConfig,
    recipe: Recipe,
) -> SFTTrainer:
    try:
        trainer = SFTTrainer(
            model=model,
            args=args,
            train_dataset=to_dataset(items.train),
            eval_dataset=to_dataset(items.test) if items.test else None,
            processing_class=tokenizer,
            callbacks=[AnnealingCallback()] if recipe.anneals else [],
        )
    except ValueError as error:  # TRL's way to refuse settings that do not go together
        raise RecipeError(f"train: {error}") from error
    for callback in (PrinterCallback, ProgressCallback):  # `TrainingProgress` stands in for both
        trainer.remove_callback(callback)
    return trainer


def _say_what_was_dropped(trainer: SFTTrainer, items: Items, console: Console) -> None:
    """TRL drops items whose prompt alone fills ``max_length``, without a word."""
    args, left = trainer.args, trainer.train_dataset
    assert isinstance(args, SFTConfig)
    assert isinstance(left, Dataset)
    dropped = len(items.train) - len(left)
    if dropped <= 0 or args.packing:
        return
    text = f"{dropped} of {len(items.train)} training items have no completion within max_length"
    if dropped == len(items.train):
        raise RecipeError(f"train.max_length={args.max_length} is too small: {text}.")
    _say(console, f"{text} {args.max_length}; they are dropped.")


def _train(trainer: SFTTrainer, folder: RunFolder, recipe: Recipe, console: Console) -> tuple[float, int]:
    """Train, from the last checkpoint if there is one. Returns seconds and the peak memory in bytes."""
    checkpoint = trainer.args.resume_from_checkpoint
    if checkpoint is None and folder.checkpoints.is_dir():
        checkpoint = get_last_checkpoint(str(folder.checkpoints))
    if checkpoint:
        _say(console, f"Going on from {checkpoint}.")
    with PeakMemory() as memory, TrainingProgress(console, f"train {recipe.method}") as progress:
        trainer.add_callback(progress)
        started = time.perf_counter()
        trainer.train(resume_from_checkpoint=checkpoint)
        seconds = time.perf_counter() - started
    return seconds, memory.bytes


def _merge(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, items: Items, console: Console
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
        _say(console, f"Not merged: {error}")
        return model, None
    assert isinstance(merged, PreTrainedModel)
    return merged, report


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


def _say(console: Console, text: str) -> None:
    """Print a sentence as it is: paths and other people's messages may hold square brackets."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
