"""The export of a draft: found, checked against its target, written, read back, and only then there."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from afa_lora.core.errors import unknown_name
from afa_lora.eagle.export.card import THERE, card, usage
from afa_lora.eagle.export.formats import FORMATS, dtype_name
from afa_lora.eagle.model import EagleDraft, find_draft, load_draft
from afa_lora.eagle.target import TargetEnds, check_is_of
from afa_lora.files import folder_atomic, write_atomic
from afa_lora.models import EMBEDDED
from afa_lora.serving import Export, ExportError
from afa_lora.serving.source import check_out, writing

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export_draft(path: Path, out: Path, *, to: str, model: str | None = None, dtype: str | None = None) -> Export:
    """Write a draft as another program loads it.

    Args:
        path: a merged draft's folder, or that of a run of ``afa eagle train``.
        out: a folder that does not exist yet.
        to: a key of `FORMATS`.
        model: the target, to check that the draft is for it; unless given, it is not looked at, and the commands have
            the name that the draft remembers.
        dtype: a key of `DTYPES`; that of the draft unless given.

    Raises:
        InvalidSettingError: no such format or dtype.
        DraftError: no merged draft there, or one for another target.
        ModelError: the target cannot be read.
        ExportError: ``out`` exists, the program cannot compute such a draft, or the check failed.
    """
    if to not in FORMATS:
        raise unknown_name("format", to, FORMATS)
    if dtype is not None and dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    check_out(out)
    draft = load_draft(find_draft(path), dtype="auto")
    if model is not None:
        check_is_of(draft, TargetEnds.load(model))
    chosen = DTYPES[dtype] if dtype is not None else draft.dtype
    target = model or draft.config.target_name or "TARGET"
    form = FORMATS[to]
    config, tensors = form.config(draft.config, chosen), form.tensors(draft, chosen)
    to_serve = usage(form, target, str(out.resolve()))
    with writing(out), folder_atomic(out) as temporary:
        try:
            save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        except SafetensorError as error:  # what a full disk is here
            raise ExportError(f"the draft cannot be written to {out}: {error}. Nothing was kept.") from error
        write_atomic(temporary / CONFIG, json.dumps(config, indent=2) + "\n")
        write_atomic(temporary / CARD, card(form, target, draft.config))
        check_written(temporary, tensors, form.names, draft)
    count = sum(tensor.numel() for tensor in tensors.values())
    checks = [f"Read back: {len(tensors)} tensors, {count / 1e6:.1f} M numbers in {dtype_name(chosen)}, as they were."]
    if target in EMBEDDED:
        folder = (
            f"python -c 'from afa_lora.models import embedded_folder; print(embedded_folder({json.dumps(target)}))'"
        )
        checks.append(f"For {THERE} put the folder of {target}, which this tells: {folder}")
    return Export(out, tuple(checks), to_serve)


def check_written(folder: Path, tensors: dict[str, Tensor], names: frozenset[str], draft: EagleDraft) -> None:
    """Read a written draft back.

    Args:
        folder: where it lies.
        tensors: what its file should hold.
        names: of the tensors that its loader asks for.
        draft: what it was made of.

    Raises:
        ExportError: other tensors, or a configuration with another rope.
    """
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    wrong = names ^ found.keys() or {name for name in names if not torch.equal(found[name], tensors[name])}
    if wrong:
        raise ExportError(
            f"the draft that was written has other tensors than its loader asks for: {', '.join(sorted(wrong))}. "
            "Nothing was kept."
        )
    rope, wanted = LlamaRotaryEmbedding(LlamaConfig.from_pretrained(folder)), LlamaRotaryEmbedding(draft.config)
    if not torch.equal(rope.inv_freq, wanted.inv_freq) or rope.attention_scaling != wanted.attention_scaling:
        raise ExportError("the configuration that was written has another rope than the draft's. Nothing was kept.")
