"""Merging an adapter folder into its base model, with the check that the function stays the same."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedModel

from afa_lora import AfaLoraError, MergeReport, load_adapter, merge
from afa_lora.files import folder_atomic
from afa_lora.models import load_model


def merge_adapter(adapter: Path, out: Path, *, probe: str, base: str | None = None) -> MergeReport:
    """Write the merged model and its tokenizer to ``out``, in the base model's own dtype.

    Args:
        adapter: a folder with adapter_config.json and adapter_model.safetensors.
        out: a folder that does not exist yet.
        probe: text on which the logits before and after are compared.
        base: hub id, local folder or embedded model; the one that the adapter's config names unless given.

    Raises:
        NotLinearError: the adapter has β > 0.
        AfaLoraError: ``out`` exists, or base model or adapter cannot be loaded.
    """
    if out.exists():
        raise AfaLoraError(f"{out} exists already. Choose another folder for the merged model.")
    if base is None:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        base = config.get("base_model_name_or_path")
    if not base:
        raise AfaLoraError(f"{adapter} does not say which base model it is for. Name the base model (--base).")
    model, tokenizer = load_model(base, dtype="auto")
    merged, report = merge(load_adapter(model, adapter), tokenizer(probe, return_tensors="pt"))
    assert isinstance(merged, PreTrainedModel)
    with folder_atomic(out) as temporary:
        merged.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return report
