"""The adapter by itself: the folder that stock PEFT writes, and nothing else in it."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from afa_lora.files import folder_atomic
from afa_lora.serving.check import Agreement, ExportError, compare_exactly
from afa_lora.serving.source import (
    PROBE,
    Export,
    Reference,
    Source,
    check_out,
    find_source,
    load_source,
    writing,
)

PLAIN_KEYS = frozenset(field.name for field in fields(LoraConfig))


def export_adapter(path: Path, out: Path, *, base: str | None = None, probe: str = PROBE) -> Export:
    """Write a plain LoRA or DoRA adapter: the weights as they are, and a configuration that stock PEFT knows.

    Args:
        path: an adapter's folder (a checkpoint of the Trainer too), or that of a run of ``afa sft``.
        out: a folder that does not exist yet.
        base: hub id, local folder or embedded model, which the written configuration will name; see `find_source`.
        probe: text on which the logits are compared.

    Raises:
        NotLinearError: the adapter has β > 0.
        ExportError: ``out`` exists, or the check failed.
        AfaLoraError: base model or adapter cannot be loaded.
    """
    check_out(out)
    source = find_source(path, base)
    model, reference = load_source(source, probe)
    with writing(out), folder_atomic(out) as temporary:
        write_adapter(source, temporary, base)
        agreement = check_adapter(temporary, model, reference)
    usage = f"from peft import PeftModel\nmodel = PeftModel.from_pretrained(base_model, {str(out)!r})"
    return Export(out, (f"Loaded back as PEFT's own LoRA: {agreement}.",), usage)


def write_adapter(source: Source, folder: Path, base: str | None = None) -> None:
    """Write configuration and weights to ``folder``; the configuration names ``base`` if it is given."""
    if base is not None:
        source.config.base_model_name_or_path = base
    source.config.inference_mode = True
    source.config.save_pretrained(str(folder))
    shutil.copyfile(source.adapter / SAFETENSORS_WEIGHTS_NAME, folder / SAFETENSORS_WEIGHTS_NAME)


@torch.no_grad()
def check_adapter(folder: Path, model: PeftModel, reference: Reference) -> Agreement:
    """Load the adapter back as a `peft.LoraConfig` and compare. The adapter in ``model`` gives way to it.

    Raises:
        ExportError: a key that stock PEFT does not know, another type, or another function.
    """
    keys = set(json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8")))
    config = PeftConfig.from_pretrained(str(folder))
    if type(config) is not LoraConfig or keys - PLAIN_KEYS:
        raise ExportError(f"{CONFIG_NAME} is not a plain LoRA configuration ({sorted(keys - PLAIN_KEYS)}).")
    plain = PeftModel.from_pretrained(model.unload(), str(folder), config=config).eval()
    found = plain(reference.token_ids).logits[0].float()
    return compare_exactly(reference.logits, found, reference.base_logits)
