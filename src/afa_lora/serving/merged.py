"""The merged model: an ordinary transformers folder, which everything loads."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from afa_lora.files import folder_atomic
from afa_lora.serving.check import Agreement, ExportError, compare
from afa_lora.serving.source import (
    PROBE,
    Export,
    Reference,
    find_source,
    load_source,
    refuse_existing,
    refuse_quantised,
)


def export_merged(path: Path, out: Path, *, base: str | None = None, probe: str = PROBE) -> Export:
    """Merge the adapter into its base model, in the base model's own dtype, and write it with its tokenizer.

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
    refuse_existing(out)
    source = find_source(path, base)
    model, reference = load_source(source, probe)
    refuse_quantised(source, model)
    with folder_atomic(out) as temporary:
        try:
            model.merge_and_unload().save_pretrained(temporary)
        except SafetensorError as error:  # what a full disk is here
            raise ExportError(f"the merged model cannot be written to {out}: {error}. Nothing was kept.") from error
        del model  # before it is loaded a second time
        reference.tokenizer.save_pretrained(temporary)
        agreement = check_merged(temporary, reference, probe)
    return Export(out, (f"Loaded back by transformers: {agreement}.",), f"vllm serve {shlex.quote(str(out))}")


@torch.no_grad()
def check_merged(folder: Path, reference: Reference, probe: str) -> Agreement:
    """Load the merged model back and compare it with base model + adapter.

    Raises:
        ExportError: it is another function, or its tokenizer reads the probe otherwise.
    """
    token_ids = AutoTokenizer.from_pretrained(folder)(probe, return_tensors="pt").input_ids
    if not torch.equal(token_ids, reference.token_ids):
        raise ExportError("the tokenizer that was written reads the probe otherwise. Nothing was kept.")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True).eval()
    return compare(reference.logits, model(token_ids).logits[0].float(), reference.base_logits, reference.dtype)
