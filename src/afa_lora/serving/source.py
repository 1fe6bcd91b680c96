"""What is exported: an adapter whose β is 0, its base model, and the logits of both on a probe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from peft import LoraConfig, PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from afa_lora.core.errors import CorruptedAdapterError, NotLinearError
from afa_lora.models import load_model
from afa_lora.peft.checkpoint import BETA_KEY, load_adapter
from afa_lora.peft.config import AfaLoraConfig
from afa_lora.serving.check import ExportError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PROBE = "The quick brown fox jumps over the lazy dog. 17 + 25 = 42"
"""The text on which logits are compared unless another is given."""


@dataclass(frozen=True)
class Export:
    """What an export has written.

    Attributes:
        path: the folder or file.
        checks: what was compared, one sentence each.
        usage: how to serve it: commands, or lines of Python.
    """

    path: Path
    checks: tuple[str, ...]
    usage: str


@dataclass(frozen=True)
class Source:
    """A linear adapter on disk.

    Attributes:
        adapter: its folder.
        config: its configuration.
        base: hub id, local folder or embedded model.
    """

    adapter: Path
    config: LoraConfig
    base: str


@dataclass(frozen=True)
class Reference:
    """What everything that is written has to reproduce.

    Attributes:
        tokenizer: the base model's.
        token_ids: the probe, (1, tokens).
        logits: of base model + adapter on the probe, (tokens, vocabulary), float32.
        base_logits: of the base model alone.
        dtype: of the base model's weights.
    """

    tokenizer: PreTrainedTokenizerBase
    token_ids: Tensor
    logits: Tensor
    base_logits: Tensor
    dtype: torch.dtype


def find_source(path: Path, base: str | None = None) -> Source:
    """Find the adapter in ``path``, itself an adapter's folder or that of a run of ``afa sft``.

    Args:
        path: the folder.
        base: the base model; unless given, the run's recipe names it, or else the adapter's configuration.

    Raises:
        NotLinearError: the adapter is still annealing.
        CorruptedAdapterError: its files cannot be read.
        ExportError: no adapter there, another kind of adapter, or no word of its base model.
    """
    adapter = path if (path / CONFIG).is_file() else path / "adapter"
    if not (adapter / CONFIG).is_file():
        raise ExportError(_nothing_in(path))
    try:
        config = PeftConfig.from_pretrained(str(adapter))
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptedAdapterError(f"{adapter / CONFIG} cannot be read: {error}.") from error
    if not isinstance(config, LoraConfig):
        raise ExportError(f"{adapter / CONFIG}: peft_type={config.peft_type!r} is no LoRA adapter.")
    _refuse_annealing(adapter, config)
    base = base or _model_of_run(path) or config.base_model_name_or_path
    if not base:
        raise ExportError(f"{adapter} does not say which base model it is for. Name the base model (--base).")
    return Source(adapter, config, base)


def refuse_existing(out: Path) -> None:
    """Raise `ExportError` if there is something at ``out``."""
    if out.exists():
        raise ExportError(f"{out} exists already. Choose another name, or remove it.")


@torch.no_grad()
def load_source(source: Source, probe: str) -> tuple[PeftModel, Reference]:
    """Load base model, in the dtype of its own file, and adapter; run both on ``probe``.

    Raises:
        ModelError: the base model cannot be loaded.
        CorruptedAdapterError: the adapter is damaged, or made for another model.
        ExportError: the probe is empty.
    """
    base, tokenizer = load_model(source.base, dtype="auto")
    token_ids: Tensor = tokenizer(probe, return_tensors="pt").input_ids
    if token_ids.shape[1] == 0:
        raise ExportError(f"probe={probe!r} has no tokens. Give a text to compare the models on.")
    base.eval()
    base_logits = base(token_ids).logits[0].float()
    model = load_adapter(base, source.adapter).eval()
    return model, Reference(tokenizer, token_ids, model(token_ids).logits[0].float(), base_logits, base.dtype)


def refuse_quantised(source: Source, model: PeftModel) -> None:
    """Raise `ExportError` if there are no full weights to merge into."""
    if getattr(model.config, "quantization_config", None) is not None:
        raise ExportError(
            f"the base model {source.base!r} is stored quantised, and merging into rounded weights would lose what "
            "the adapter has learnt. Name the model that it was quantised from (--base)."
        )


def _model_of_run(folder: Path) -> str | None:
    """The model that a run's recipe names; the path in the adapter's configuration may be one in a cache."""
    recipe = folder / "recipe.yaml"
    if not recipe.is_file():
        return None
    try:
        model: str = yaml.safe_load(recipe.read_text(encoding="utf-8"))["model"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ExportError(f"{recipe} is damaged: it does not name a model. Name the base model (--base).") from error
    return model


def _refuse_annealing(adapter: Path, config: LoraConfig) -> None:
    beta = config.beta if isinstance(config, AfaLoraConfig) else 0.0
    try:
        with safe_open(adapter / WEIGHTS, framework="pt") as file:
            if BETA_KEY in file.keys():  # noqa: SIM118 - no mapping
                beta = max(beta, float(file.get_tensor(BETA_KEY)))
    except (SafetensorError, FileNotFoundError) as error:
        raise CorruptedAdapterError(f"{adapter / WEIGHTS} cannot be read: {error}.") from error
    if beta > 0:
        until = f" (anneal_end={config.anneal_end!r})" if isinstance(config, AfaLoraConfig) else ""
        raise NotLinearError(
            f"{adapter} is still annealing (β = {beta:.4g}), and what serves it knows linear adapters only. Train on "
            f"until β = 0, past the end of the window{until}, or fit the nearest linear adapter with "
            "afa_lora.linearize(model, data) and save that."
        )


def _nothing_in(path: Path) -> str:
    if not path.is_dir():
        return f"There is no folder {path}."
    checkpoints = sorted((path / "checkpoints").glob("checkpoint-*"), key=lambda p: p.stat().st_mtime)
    if checkpoints:
        return f"{path} holds a run without an adapter yet. Finish the run, or export {checkpoints[-1]}."
    if (path / "model" / "config.json").is_file():
        return f"{path} holds a run that trained the whole model: {path / 'model'} is what there is to serve."
    return f"{path} holds no {CONFIG}, nor a folder adapter/ with one: neither an adapter nor a run of afa sft."
