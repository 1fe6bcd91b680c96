"""The merged model as one GGUF file, for llama.cpp and what is built on it; run by llama.cpp before it is there."""

from __future__ import annotations

import importlib.util
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from afa_lora.core.errors import unknown_name
from afa_lora.files import flush
from afa_lora.serving.check import Agreement, ExportError, check_weight, compare
from afa_lora.serving.gguf_tokenizer import REMEDY, TEXTS, add_tokenizer
from afa_lora.serving.merged import merge
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

ARCHITECTURES = {
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
}
DTYPES = {
    "float32": (torch.float32, gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "float16": (torch.float16, gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bfloat16": (torch.bfloat16, gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}


def export_gguf(
    path: Path, out: Path, *, dtype: str | None = None, base: str | None = None, probe: str = PROBE
) -> Export:
    """Merge the adapter and write the model, its tokenizer and its chat template as a GGUF file.

    Llama, Qwen2 and Qwen3 with byte-level BPE tokenizers; not quantised (llama.cpp's ``llama-quantize`` does that).

    Args:
        path: an adapter's folder, or that of a run of ``afa sft``.
        out: a file that does not exist yet.
        dtype: ``float32``, ``float16`` or ``bfloat16`` for the matrices; the base model's unless given. Vectors, such
            as norms, stay float32.
        base: hub id, local folder or embedded model; see `find_source`.
        probe: text on which the logits are compared.

    Raises:
        NotLinearError: the adapter has β > 0.
        InvalidSettingError: another ``dtype``.
        ExportError: ``out`` exists, an architecture or tokenizer that is not written here, or the check failed.
        AfaLoraError: base model or adapter cannot be loaded.
    """
    check_out(out)
    if dtype is not None and dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    if importlib.util.find_spec("llama_cpp") is None:
        raise ExportError("llama.cpp, which has to run the file, is missing. Run: pip install llama-cpp-python")
    source = find_source(path, base)
    model, reference = load_source(source, probe)
    refuse_quantised(source, model)
    refuse_unwritable(model.get_base_model())
    chosen = dtype or str(reference.dtype).removeprefix("torch.")
    merged, unrounded = merge(model, reference)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            temporary = Path(folder) / out.name
            write_gguf(merged, reference.tokenizer, temporary, chosen, name=out.stem)
            check_tensors(temporary, merged, chosen)
            del model, merged  # before llama.cpp loads it a second time
            agreement = check_gguf(temporary, reference, chosen)
            flush(temporary)
            os.replace(temporary, out)
        flush(out.parent)
    checks = (
        f"Merged in float32: {unrounded}.",
        f"Run by llama.cpp: {agreement}.",
        "Its tokenizer splits the test texts as the base model's does.",
    )
    return Export(out, checks, shlex.join(["llama-server", "-m", str(out)]))


def refuse_unwritable(model: PreTrainedModel) -> None:
    """Raise `ExportError`, with the remedy, for a model that would be written wrongly."""
    architecture, config = type(model).__name__, model.config
    if architecture not in ARCHITECTURES:
        raise ExportError(f"{architecture} is none of {', '.join(ARCHITECTURES)}, which afa writes as GGUF. {REMEDY}")
    rope = config.rope_parameters["rope_type"]
    if rope not in ("default", "linear", "llama3"):
        raise ExportError(f"rope_type={rope!r} is none of default, linear, llama3, which afa writes as GGUF. {REMEDY}")
    if config.hidden_act != "silu":
        raise ExportError(f"hidden_act={config.hidden_act!r}: llama.cpp computes silu for {architecture}. {REMEDY}")
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise ExportError(f"{architecture} with sliding attention is not written as GGUF by afa. {REMEDY}")


def write_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, dtype: str, *, name: str
) -> None:
    """Write a model and its tokenizer to ``path``; the model is one that `refuse_unwritable` lets pass.

    Raises:
        ExportError: the tokenizer has no counterpart in llama.cpp, or a tensor no place in its architecture.
    """
    config, (_, kind, file_type) = model.config, DTYPES[dtype]
    architecture = ARCHITECTURES[type(model).__name__]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, config)
    add_tokenizer(writer, tokenizer, config)
    stored = {1: gguf.GGMLQuantizationType.F32, 2: kind}  # by the number of dimensions
    for tensor_name, tensor in _tensors(model, architecture):
        _, size = gguf.GGML_QUANT_SIZES[stored[tensor.ndim]]
        shape = tuple(tensor.shape)
        writer.add_tensor_info(tensor_name, shape, np.dtype(np.float32), tensor.numel() * size, stored[tensor.ndim])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, tensor in _tensors(model, architecture):  # converted one by one: no second model in memory
            values = tensor.detach().float().contiguous().numpy()
            writer.write_tensor_data(gguf.quants.quantize(values, stored[tensor.ndim]))
    finally:
        writer.close()


def _add_shape(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.rope_parameters["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])


def _tensors(model: PreTrainedModel, architecture: gguf.MODEL_ARCH) -> Iterator[tuple[str, Tensor]]:
    """The model's tensors under llama.cpp's names and in its layout; a tied head is left out, as llama.cpp expects."""
    config = model.config
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    heads: dict[str, int] = {}
    if architecture is gguf.MODEL_ARCH.LLAMA:
        heads = {".q_proj.": config.num_attention_heads, ".k_proj.": config.num_key_value_heads}
    for name, tensor in model.named_parameters():  # each once, tied ones under their first name
        there = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if there is None:
            raise ExportError(f"{name} has no place in llama.cpp's {architecture.name}. {REMEDY}")
        count = next((n for part, n in heads.items() if part in name), None)
        yield there, tensor if count is None else _interleave(tensor, count)
    if config.rope_parameters["rope_type"] == "llama3":
        yield "rope_freqs.weight", _rope_factors(model)


def _interleave(projection: Tensor, heads: int) -> Tensor:
    """Reorder the rows of each head from the two halves that transformers rotates to llama.cpp's adjacent pairs."""
    rows = projection.shape[0]
    return projection.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(projection.shape)


def _rope_factors(model: PreTrainedModel) -> Tensor:
    """By what Llama 3's scaling divides each frequency of the rotation, (head / 2,)."""
    scaled: Tensor = model.model.rotary_emb.inv_freq.float()
    steps = torch.arange(len(scaled), dtype=torch.float32) / len(scaled)
    return model.config.rope_parameters["rope_theta"] ** -steps / scaled


@torch.no_grad()
def check_tensors(path: Path, model: PreTrainedModel, dtype: str) -> None:
    """Read the file back: its matrices are the model's, rounded once, its vectors the model's.

    Raises:
        ExportError: they are not.
    """
    there = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, tensor in _tensors(model, ARCHITECTURES[type(model).__name__]):
        kind = DTYPES[dtype][0] if tensor.ndim == 2 else torch.float32
        found = gguf.dequantize(there[name].data, there[name].tensor_type) if name in there else None
        check_weight(name, tensor.to(kind).float(), None if found is None else torch.from_numpy(found), kind)


def check_gguf(path: Path, reference: Reference, dtype: str) -> Agreement:
    """Run the file in llama.cpp: its tokens are the tokenizer's, its logits those of base model + adapter.

    Raises:
        ExportError: they are not.
    """
    token_ids = reference.token_ids[0].tolist()
    llama = open_gguf(path, context=len(token_ids))
    try:
        for text in TEXTS:
            expected = reference.tokenizer(text, add_special_tokens=False).input_ids
            if llama.tokenize(text.encode(), add_bos=False, special=True) != expected:
                raise ExportError(f"llama.cpp splits {text!r} otherwise than the base model's tokenizer. {REMEDY}")
        llama.eval(token_ids)
        found = torch.from_numpy(np.array(llama.scores[: len(token_ids)]))
    finally:
        llama.close()
    return compare(reference.logits, found, reference.base_logits, DTYPES[dtype][0])


def open_gguf(path: Path, context: int) -> Any:
    """A `llama_cpp.Llama` that keeps every logit, computes on the CPU and does not round its cache."""
    from llama_cpp import Llama

    cache = int(gguf.GGMLQuantizationType.F32)
    return Llama(str(path), n_ctx=context, n_gpu_layers=0, logits_all=True, type_k=cache, type_v=cache, verbose=False)
