"""What is exported: an adapter whose β is 0, its base model, and the logits of both on a probe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from afa_lora.core.errors import CorruptedAdapterError, NotLinearError
from afa_lora.peft.checkpoint import BETA_KEY, load_adapter
from afa_lora.peft.config import AfaLoraConfig
from afa_lora.serving.check import ExportError
from afa_lora.serving.lookup import VERSION_OPTIONS, Located, locate

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
        located: the adapter's folder and its base model.
        config: its configuration.
    """

    located: Located
    config: LoraConfig

    @property
    def adapter(self) -> Path:
        """The adapter's folder."""
        return self.located.adapter

    @property
    def base(self) -> str:
        """Hub id, local folder or embedded model."""
        return self.located.base


@dataclass(frozen=True)
class Reference:
    """What everything that is written has to reproduce.

    Attributes:
        tokenizer: the base model's.
        token_ids: the probe, (1, tokens).
        logits: of base model + adapter on the probe, computed in float32, (tokens, vocabulary).
        base_logits: of the base model alone.
        dtype: of the base model's weights in its file.
        dtypes: of each of its tensors there.
    """

    tokenizer: PreTrainedTokenizerBase
    token_ids: Tensor
    logits: Tensor
    base_logits: Tensor
    dtype: torch.dtype
    dtypes: dict[str, torch.dtype]


def find_source(path: Path, base: str | None = None) -> Source:
    """Find the adapter as `afa_lora.serving.lookup.locate` does, and look whether it can be exported.

    Raises:
        NotLinearError: the adapter is still annealing.
        CorruptedAdapterError: its files cannot be read.
        ExportError: another kind of adapter.
        AfaLoraError: as `locate`.
    """
    located = locate(path, base)
    adapter = located.adapter
    try:
        config = PeftConfig.from_pretrained(str(adapter))
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptedAdapterError(f"{adapter / CONFIG_NAME} cannot be read: {error}.") from error
    if not isinstance(config, LoraConfig):
        raise ExportError(f"{adapter / CONFIG_NAME}: peft_type={config.peft_type!r} is no LoRA adapter.")
    _refuse_annealing(adapter, config)
    return Source(located, config)


def check_out(out: Path) -> None:
    """Raise `ExportError` if there is something at ``out``, or if nothing can be made there."""
    if out.exists():
        raise ExportError(f"{out} exists already. Choose another name, or remove it.")
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir():
        raise ExportError(f"{out} cannot be written: {above} is a file. Choose another place (--out).")
    if not os.access(above, os.W_OK):
        raise ExportError(f"{out} cannot be written: {above} may not be written to. Choose another place (--out).")


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn what the system says about files with temporary names into an `ExportError` about ``out``."""
    try:
        yield
    except OSError as error:
        raise ExportError(
            f"{out} cannot be written: {error.strerror or error}. Nothing was kept; make room there, or choose another "
            "place (--out)."
        ) from error


@torch.no_grad()
def load_source(source: Source, probe: str) -> tuple[PeftModel, Reference]:
    """Load base model and adapter, and run both on ``probe``.

    Both are in float32, so that nothing which the adapter does drowns in rounding; a quantised base model stays as it
    is.

    Raises:
        ModelError: the base model cannot be loaded.
        CorruptedAdapterError: the adapter is damaged, or made for another model.
        ExportError: the probe is empty.
    """
    options = {key: value for key, value in source.located.options.items() if key in VERSION_OPTIONS}
    base, tokenizer = source.located.load_base(dtype="auto", **options)
    dtype, dtypes = base.dtype, {name: tensor.dtype for name, tensor in base.state_dict().items()}
    if getattr(base.config, "quantization_config", None) is None:
        base.float()
    token_ids: Tensor = tokenizer(probe, return_tensors="pt").input_ids
    if token_ids.shape[1] == 0:
        raise ExportError(f"probe={probe!r} has no tokens. Give a text to compare the models on.")
    base.eval()
    base_logits = base(token_ids).logits[0].float()
    model = load_adapter(base, source.adapter).eval()
    logits = model(token_ids).logits[0].float()
    return model, Reference(tokenizer, token_ids, logits, base_logits, dtype, dtypes)


def refuse_quantised(source: Source, model: PeftModel) -> None:
    """Raise `ExportError` if there are no full weights to merge into."""
    if getattr(model.config, "quantization_config", None) is not None:
        raise ExportError(
            f"the base model {source.base!r} is stored quantised, and merging into rounded weights would lose what "
            "the adapter has learnt. Name the model that it was quantised from (--base)."
        )


def _refuse_annealing(adapter: Path, config: LoraConfig) -> None:
    beta = config.beta if isinstance(config, AfaLoraConfig) else 0.0
    try:
        with safe_open(adapter / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
            if BETA_KEY in file.keys():  # noqa: SIM118 - no mapping
                beta = max(beta, float(file.get_tensor(BETA_KEY)))
    except (SafetensorError, FileNotFoundError) as error:
        raise CorruptedAdapterError(f"{adapter / SAFETENSORS_WEIGHTS_NAME} cannot be read: {error}.") from error
    if beta > 0:
        until = f" (anneal_end={config.anneal_end!r})" if isinstance(config, AfaLoraConfig) else ""
        raise NotLinearError(
            f"{adapter} is still annealing (β = {beta:.4g}), and what serves it knows linear adapters only. Train on "
            f"until β = 0, past the end of the window{until}, or fit the nearest linear adapter with "
            "afa_lora.linearize(model, data) and save that."
        )
