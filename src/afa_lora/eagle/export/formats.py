"""What each loader of a draft wants: tensors, and keys of ``config.json``. They contradict each other.

Looked up in:

- vLLM 0.32.0 (``model_executor/models/llama_eagle.py``, ``transformers_utils/configs/eagle.py``): ``model_type`` llama
  and ``LlamaForCausalLM``, which vLLM renames to ``EagleLlamaForCausalLM``. Its ``fc`` has no bias: one in the file is
  dropped without a word. A key ``bias`` that is true would give the attention biases. Embedding and output layer come
  from the target, tied or not, because the file has none.
- SGLang 0.5.23 (``srt/models/llama_eagle.py``): ``LlamaForCausalLMEagle``, whose ``fc`` is an ``nn.Linear``
  with a bias. It stays random unless the file has one, and nothing says so: zeros are written. Embedding and output
  layer are set from the target (``set_embed_and_head``), which fails where the draft ties its own.
- SafeAILab's EAGLE (``eagle/model/ea_model.py``, commit 47de7b0e; ``cnets1.py``, the draft of EAGLE-1 and EAGLE-2,
  commit c9292914): the key ``bias`` says whether ``fc`` has one, and is true unless given. It looks for
  ``pytorch_model.bin`` and, where there is none, takes ``model.safetensors``; versions before that, the release 1.2.1
  among them, know the pickle alone. Its own attention knows no ``head_dim``, and of rope's scalings the linear one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from afa_lora.eagle.model import EagleConfig, EagleDraft
from afa_lora.serving import ExportError

UNSCALED_THETA = 10_000.0  # what SafeAILab's scaled rope takes, whatever the configuration says

SHAPE_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "tie_word_embeddings",
)
"""Keys that all of them read, taken over as they are."""


TENSORS = frozenset(
    f"{name}.weight"
    for name in (
        "fc",
        *(f"layers.0.self_attn.{part}_proj" for part in ("q", "k", "v", "o")),
        *(f"layers.0.mlp.{part}_proj" for part in ("gate", "up", "down")),
        "layers.0.post_attention_layernorm",
    )
)
"""Names of the tensors that all of them ask for."""


@dataclass(frozen=True)
class Format:
    """What one loader wants.

    Attributes:
        name: as the command line has it.
        program: as its users know it.
        fc_bias: whether the file holds a bias of ``fc``, of zeros.
        config: makes ``config.json`` of the draft's configuration and the dtype of the tensors.
    """

    name: str
    program: str
    fc_bias: bool
    config: Callable[[EagleConfig, torch.dtype], dict[str, Any]]

    @property
    def names(self) -> frozenset[str]:
        """Those of the tensors that the loader asks for."""
        return TENSORS | {"fc.bias"} if self.fc_bias else TENSORS

    def tensors(self, draft: EagleDraft, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors of the file.

        Raises:
            ExportError: a weight is no finite number in ``dtype``.
        """
        tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in draft.state_dict().items()}
        if self.fc_bias:
            tensors["fc.bias"] = torch.zeros(draft.config.hidden_size, dtype=dtype)
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise ExportError(
                    f"{name} has weights that are no finite numbers in dtype={dtype_name(dtype)}. Write it in float32 "
                    "or bfloat16 (--dtype); if that does not help, the draft is damaged."
                )
        return tensors


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def _shape(config: EagleConfig, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "model_type": "llama",
        **{key: getattr(config, key) for key in SHAPE_KEYS},
        "torch_dtype": dtype_name(dtype),
    }


def _served(architecture: str) -> Callable[[EagleConfig, torch.dtype], dict[str, Any]]:
    """For loaders that read a `LlamaConfig` by transformers; of any version, so rope and dtype stand there twice."""

    def make(config: EagleConfig, dtype: torch.dtype) -> dict[str, Any]:
        rope: dict[str, Any] = dict(config.rope_parameters or {})
        theta = rope.pop("rope_theta")
        return {
            "architectures": [architecture],
            **_shape(config, dtype),
            "dtype": dtype_name(dtype),
            "head_dim": config.head_dim,
            "attention_bias": False,
            "mlp_bias": False,
            "rope_parameters": {"rope_theta": theta, **rope},
            "rope_theta": theta,
            "rope_scaling": None if rope["rope_type"] == "default" else rope,
        }

    return make


def _safeailab(config: EagleConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The keys of SafeAILab's ``EConfig``; its attention's limits are refused.

    Raises:
        ExportError: heads or a rope that it would compute otherwise.
    """
    if config.head_dim and config.head_dim * config.num_attention_heads != config.hidden_size:
        raise ExportError(
            f"head_dim={config.head_dim}: SafeAILab's EAGLE takes hidden_size / num_attention_heads = "
            f"{config.hidden_size / config.num_attention_heads:g} for it. Use --format vllm or sglang."
        )
    rope: dict[str, Any] = dict(config.rope_parameters or {})
    kind, theta = rope["rope_type"], rope["rope_theta"]
    if kind != "default" and (kind != "linear" or theta != UNSCALED_THETA):
        raise ExportError(
            f"rope_type={kind!r} with rope_theta={theta:g}: SafeAILab's EAGLE-1 draft knows rope without scaling, or "
            f"linear scaling with rope_theta={UNSCALED_THETA:g}; it would compute another function. "
            "Use --format vllm or sglang."
        )
    return {
        "architectures": ["LlamaForCausalLM"],
        **_shape(config, dtype),
        "bias": False,
        "rope_theta": theta,
        "rope_scaling": None if kind == "default" else {"type": kind, "factor": float(rope["factor"])},
    }


FORMATS = {
    "vllm": Format("vllm", "vLLM", False, _served("LlamaForCausalLM")),
    "sglang": Format("sglang", "SGLang", True, _served("LlamaForCausalLMEagle")),
    "safeailab": Format("safeailab", "SafeAILab's EAGLE", False, _safeailab),
}
"""By name."""
