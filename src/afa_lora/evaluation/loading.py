"""The model that is evaluated: a base model, or one with its adapter merged into it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from afa_lora.models import hardware_dtype, load_model
from afa_lora.peft.checkpoint import load_adapter
from afa_lora.peft.model import anneal_states
from afa_lora.serving.lookup import locate


def load_evaluated(
    model: str | None,
    adapter: Path | None = None,
    dtype: str = "auto",
    report: Callable[[str], None] = print,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model to evaluate, onto the accelerator where there is one.

    A linear adapter is merged in memory. One that is still annealing, or whose base model is quantised, stays an
    adapter, and the report says so.

    Args:
        model: hub id, local folder or embedded model; or the folder of a run of ``afa sft``, whose model is its merged
            or fully trained one, else its adapter's. Of an adapter it is the base model, and may be ``None``: then the
            run or the adapter names it.
        adapter: an adapter's folder, a checkpoint, or the folder of a run.
        dtype: of the weights: ``float32``, ``bfloat16``, ``float16``; ``auto`` is what the hardware computes in.
        report: takes one line for each thing to know.

    Raises:
        AfaLoraError: model or adapter cannot be found or loaded.
    """
    accelerator = torch.accelerator.current_accelerator()
    device = torch.device("cpu") if accelerator is None else accelerator
    weights = hardware_dtype(device.type)[0] if dtype == "auto" else getattr(torch, dtype)
    if adapter is None and model is not None and _is_run(Path(model)):
        whole = Path(model) / "model"
        model, adapter = (str(whole), None) if (whole / "config.json").is_file() else (None, Path(model))
    if adapter is not None:
        return _with_adapter(model, adapter, weights, device, report)
    loaded, tokenizer = load_model(str(model), report=report, dtype=weights)
    return _on(device, loaded).eval(), tokenizer


def _is_run(folder: Path) -> bool:
    """Is ``folder`` a run of ``afa sft``, or an adapter's, rather than a model's?"""
    marks = ("recipe.yaml", "adapter_config.json", "adapter")
    return (
        folder.is_dir() and not (folder / "config.json").is_file() and any((folder / mark).exists() for mark in marks)
    )


def _with_adapter(
    base: str | None, adapter: Path, dtype: torch.dtype, device: torch.device, report: Callable[[str], None]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    located = locate(adapter, base)
    options: dict[str, Any] = {**located.options, "dtype": dtype}
    loaded, tokenizer = located.load_base(report=report, **options)
    with_adapter = load_adapter(_on(device, loaded), located.adapter).eval()
    beta = max((state.beta for state in anneal_states(with_adapter).values()), default=0.0)
    if beta > 0:
        report(f"{located.adapter} is still annealing, β = {beta:.4g}: it is evaluated as it is.")
        return with_adapter, tokenizer
    if getattr(loaded.config, "quantization_config", None) is not None:
        report(f"The base model {located.base} is quantised: {located.adapter} is evaluated beside it, not merged.")
        return with_adapter, tokenizer
    return with_adapter.merge_and_unload(), tokenizer


def _on(device: torch.device, model: PreTrainedModel) -> PreTrainedModel:
    return model.to(device) if model.device.type == "cpu" else model  # type: ignore[arg-type]
