"""The merged model: an ordinary transformers folder, which everything loads."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from afa_lora.files import folder_atomic
from afa_lora.serving.check import Agreement, ExportError, check_weight, compare, compare_exactly
from afa_lora.serving.source import (
    PROBE,
    Export,
    Reference,
    check_out,
    find_source,
    load_source,
    refuse_quantised,
    writing,
)


def export_merged(path: Path, out: Path, *, base: str | None = None, probe: str = PROBE) -> Export:
    """Merge the adapter into its base model, in float32, and write it in the base model's own dtype with its tokenizer.

    Args:
        path: an adapter's folder, or that of a run of ``afa sft``.
        out: a folder that does not exist yet.
        base: hub id, local folder or embedded model; see `find_source`.
        probe: text on which the logits are compared.

    Raises:
        NotLinearError: the adapter has β > 0.
        ExportError: ``out`` exists, the base model is quantised, or the check failed.
        AfaLoraError: base model or adapter cannot be loaded.
    """
    check_out(out)
    source = find_source(path, base)
    model, reference = load_source(source, probe)
    refuse_quantised(source, model)
    merged, unrounded = merge(model, reference)
    _restore_dtypes(merged, reference)
    with writing(out), folder_atomic(out) as temporary:
        try:
            merged.save_pretrained(temporary)
        except SafetensorError as error:  # what a full disk is here
            raise ExportError(f"the merged model cannot be written to {out}: {error}. Nothing was kept.") from error
        reference.tokenizer.save_pretrained(temporary)
        agreement = check_merged(temporary, merged, reference, probe)
    return Export(
        out,
        (f"Merged in float32: {unrounded}.", f"Loaded back by transformers: {agreement}."),
        f"vllm serve {shlex.quote(str(out))}",
    )


@torch.no_grad()
def merge(model: PeftModel, reference: Reference) -> tuple[PreTrainedModel, Agreement]:
    """Merge the adapter into its base model, both in float32, and compare before anything is rounded.

    Raises:
        ExportError: the merged model is another function than base model + adapter.
    """
    merged = model.merge_and_unload()
    found = merged(reference.token_ids).logits[0]
    return merged, compare_exactly(reference.logits, found, reference.base_logits)


def _restore_dtypes(model: PreTrainedModel, reference: Reference) -> None:
    """Round each tensor to the dtype that it has in the base model's file."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in reference.dtypes:
            tensor.data = tensor.data.to(reference.dtypes[name])


@torch.no_grad()
def check_merged(folder: Path, merged: PreTrainedModel, reference: Reference, probe: str) -> Agreement:
    """Load the merged model back and compare it with the one in memory and with base model + adapter.

    Raises:
        ExportError: other weights, another function, or its tokenizer reads the probe otherwise.
    """
    token_ids = AutoTokenizer.from_pretrained(folder)(probe, return_tensors="pt").input_ids
    if not torch.equal(token_ids, reference.token_ids):
        raise ExportError("the tokenizer that was written reads the probe otherwise. Nothing was kept.")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True).eval()
    found = model.state_dict()
    for name, weight in merged.state_dict().items():
        check_weight(name, weight, found.get(name), weight.dtype)
    return compare(reference.logits, model(token_ids).logits[0].float(), reference.base_logits, reference.dtype)
