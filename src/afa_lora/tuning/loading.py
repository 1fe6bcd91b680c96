"""How the base model is loaded: in which precision, quantised or not. The one place that decides it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import strtobool

from afa_lora.data import alpaca
from afa_lora.models import check_chat_template, hardware_dtype, load_model
from afa_lora.settings import RecipeError
from afa_lora.tuning.recipe import TuningRecipe

SET_ELSEWHERE = {"dtype": "load.dtype", "torch_dtype": "load.dtype", "quantization_config": "load.quantization"}


@dataclass(frozen=True)
class Precision:
    """The dtypes of a training.

    Attributes:
        weights: in which the base model's weights are kept.
        compute: in which its products are computed; autocast does it where the weights have another dtype.
        device: the type of device that trains: cpu, cuda, xpu, mps, …
        reason: why, in a few words.
    """

    weights: torch.dtype
    compute: torch.dtype
    device: str
    reason: str

    def __str__(self) -> str:
        weights, compute = (str(dtype).removeprefix("torch.") for dtype in (self.weights, self.compute))
        what = compute if weights == compute else f"{weights} weights, computed in {compute}"
        return f"{what}: {self.reason}"


def training_precision(recipe: TuningRecipe) -> Precision:
    """Choose the dtypes from the recipe and, where it leaves them open, from the hardware.

    ``train.bf16`` and ``train.fp16`` say what is computed in, ``load.dtype`` says what the weights are kept in, and
    each stands in for the other. Base weights that are trained stay float32 unless ``load.dtype`` says otherwise: the
    steps of an optimizer are too small for the 8 bits of bfloat16.

    Raises:
        RecipeError: float16 where it cannot be trained with.
    """
    device = training_device(recipe)
    hardware, reason = hardware_dtype(device)
    if device == "cpu" and hardware == torch.float32 and not recipe.trains_base:
        reason += "; load.dtype=bfloat16 halves the memory of the weights"
    named = None if recipe.weights_dtype == "auto" else getattr(torch, recipe.weights_dtype)
    asked = _asked_for(recipe.train)
    compute = asked or named or hardware
    weights = named or (torch.float32 if recipe.trains_base else compute)
    if torch.float16 in (compute, weights) and device == "cpu":
        raise RecipeError("load.dtype=float16 and train.fp16 need a GPU. On this CPU use float32 or bfloat16.")
    if weights == torch.float16 and recipe.trains_base:
        raise RecipeError(
            f"load.dtype=float16 with method={recipe.method}: the loss scaling of float16 needs float32 weights. "
            "Use load.dtype=float32 and train.fp16=true."
        )
    if asked or named:
        keys = [key for key, given in (("load.dtype", named), ("train.bf16 or train.fp16", asked)) if given]
        reason = f"{' and '.join(keys)} {'says' if len(keys) == 1 else 'say'} so"
    return Precision(weights, compute, device, reason)


def training_device(recipe: TuningRecipe) -> str:
    """The type of device that `transformers.Trainer` will train on."""
    if recipe.train.get("use_cpu") or strtobool(os.environ.get("ACCELERATE_USE_CPU", "false")):
        return "cpu"
    accelerator = torch.accelerator.current_accelerator()
    return "cpu" if accelerator is None else accelerator.type


def precision_flags(recipe: TuningRecipe) -> dict[str, bool]:
    """The arguments of TRL's `SFTConfig` that go with `training_precision`; TRL's own default is bfloat16 everywhere.

    Raises:
        RecipeError: as `training_precision`.
    """
    precision = training_precision(recipe)
    flags = {"bf16": precision.compute == torch.bfloat16, "fp16": precision.compute == torch.float16}
    if flags["bf16"] and precision.device == "cpu":
        flags["use_cpu"] = True  # transformers takes bf16 without a GPU for a mistake unless this is said
    return flags


def model_options(recipe: TuningRecipe) -> dict[str, Any]:
    """What the recipe passes to ``from_pretrained``, dtype and quantisation aside.

    Raises:
        RecipeError: ``train.model_init_kwargs`` sets what ``load`` decides.
    """
    given = recipe.train.get("model_init_kwargs") or {}
    for key in given:
        if key in SET_ELSEWHERE:
            raise RecipeError(f"train.model_init_kwargs.{key} is not set here but by {SET_ELSEWHERE[key]!r}.")
    return {"trust_remote_code": bool(recipe.train.get("trust_remote_code", False)), **given}


def load_base(
    recipe: TuningRecipe, report: Callable[[str], None] = print
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the recipe's base model and its tokenizer.

    A quantised model is on the device that trains; any other is on the CPU unless ``train.model_init_kwargs`` says
    otherwise. `SFTTrainer` prepares both for gradient checkpointing, so nothing is prepared here.

    Args:
        recipe: its ``model``, ``load`` and ``train`` sections are read.
        report: takes one line for the precision, and one if something takes long.

    Raises:
        RecipeError: the precision or the quantisation cannot be had; the message says what to change.
        ModelError: the model cannot be loaded, or has no chat template.
    """
    precision, options = training_precision(recipe), model_options(recipe)
    if recipe.load.quantization:
        check_quantization(recipe)
        options["quantization_config"] = _quantization(recipe.load.quantization, precision)
        if precision.device == "cpu":
            options.setdefault("device_map", "cpu")  # a GPU that is there would be taken otherwise
    report(f"{precision}{f'; {recipe.load.quantization} weights' if recipe.load.quantization else ''}.")
    model, tokenizer = load_model(recipe.model, report=report, dtype=precision.weights, **options)
    use_chat_template(recipe, tokenizer)
    if recipe.load.quantization == "4bit" and precision.device == "cpu":
        _keep_trainable(model)
    return model, tokenizer


def use_chat_template(recipe: TuningRecipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer the template that ``train.chat_template_path`` names, before anything is measured or tested.

    Raises:
        RecipeError: it names neither ``alpaca`` nor a file. TRL would take another model's tokens from there too; that
            is not done here.
        ModelError: there is no template, in the recipe or in the model.
    """
    path = recipe.train.get("chat_template_path")
    if path == alpaca.NAME:
        alpaca.use_alpaca_template(tokenizer)
    elif path is not None:
        if not (path.endswith(".jinja") and Path(path).is_file()):
            raise RecipeError(
                f"train.chat_template_path={path!r} is neither {alpaca.NAME!r} nor a .jinja file "
                f"(looked for it in {Path.cwd()})."
            )
        tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
    check_chat_template(recipe.model, tokenizer)


def _keep_trainable(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from rearranging 4-bit weights on a CPU for speed when they are first used for inference.

    It never rearranges them back, and the gradients through rearranged weights are wrong.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def check_quantization(recipe: TuningRecipe) -> None:
    """Refuse a quantisation that cannot be trained.

    Raises:
        RecipeError: the method trains the base weights, bitsandbytes is missing, or it does not serve the device.
    """
    setting, device = f"load.quantization={recipe.load.quantization}", training_device(recipe)
    if recipe.method == "full":
        raise RecipeError(f"{setting} with method=full: quantised weights cannot be trained. Use lora or afa-lora.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError(f"{setting} needs bitsandbytes. Run: pip install 'afa-lora[quantization]'")
    import bitsandbytes

    supported = sorted(bitsandbytes.supported_torch_devices)
    if device not in supported:
        raise RecipeError(f"{setting}: bitsandbytes does not serve {device}, only {', '.join(supported)}.")
    if recipe.load.quantization == "8bit" and device == "cpu" and recipe.method.endswith("dora"):
        raise RecipeError(
            f"{setting} with method={recipe.method} does not train on a CPU: PEFT's DoRA fails there at the second "
            "forward. Use 4bit, or a method without DoRA."
        )


def _asked_for(train: dict[str, Any]) -> torch.dtype | None:
    if train.get("fp16"):
        return torch.float16
    if train.get("bf16") is None:
        return None
    return torch.bfloat16 if train["bf16"] else torch.float32


def _quantization(bits: str, precision: Precision) -> BitsAndBytesConfig:
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=precision.compute,
    )
