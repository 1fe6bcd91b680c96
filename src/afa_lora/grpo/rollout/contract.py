"""Which functions of vLLM the plug-in stands on, and whether the installed vLLM still has them in that form."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from types import CodeType
from typing import Any

from afa_lora.core.errors import AfaLoraError

TESTED = "0.32"


class VllmSeamError(AfaLoraError, RuntimeError):
    """The installed vLLM is built otherwise than the plug-in needs it."""


@dataclass(frozen=True)
class Seam:
    """One function of vLLM.

    Args:
        module: where it is.
        name: its name in the module, dotted.
        parameters: what it takes, `self` and variable keyword arguments left out.
        uses: names that its body must refer to, for the plug-in's part to be reached.
    """

    module: str
    name: str
    parameters: tuple[str, ...]
    uses: tuple[str, ...] = ()


_SHRINK = ("y", "x", "lora_a_stacked", "scale")
_EXPAND = ("y", "x", "lora_b_stacked", "output_slices", "offset_start", "add_inputs")
_LINEAR = ("y", "x", "lora_a_stacked", "lora_b_stacked", "scale", "output_slices", "buffer")
_CPU, _GPU = "vllm.lora.punica_wrapper.punica_cpu", "vllm.lora.punica_wrapper.punica_gpu"
_MANAGER, _WORKER, _MODEL = "vllm.lora.model_manager", "vllm.lora.worker_manager", "vllm.lora.lora_model"

SEAMS = (
    *(
        seam
        for module, wrapper in ((_CPU, "PunicaWrapperCPU"), (_GPU, "PunicaWrapperGPU"))
        for seam in (
            Seam(module, f"{wrapper}.add_shrink", _SHRINK),
            Seam(module, f"{wrapper}.add_expand", _EXPAND),
            Seam(module, f"{wrapper}.add_lora_linear", _LINEAR, ("add_shrink", "add_expand")),
        )
    ),
    Seam(_MANAGER, "LoRAModelManager._init_punica_wrapper", ("max_num_batched_tokens", "vllm_config")),
    Seam(_MANAGER, "LoRAModelManager.__init__", (), ("_init_punica_wrapper",)),
    Seam(_MANAGER, "LoRAModelManager.activate_adapter", ("lora_id",), ("lora_index_to_id", "set_lora")),
    Seam(_WORKER, "WorkerLoRAManager._load_adapter", ("lora_request",), ("from_local_checkpoint",)),
    Seam(_MODEL, "is_base_embedding_weights", ("name",)),
    Seam(_MODEL, "LoRAModel.from_local_checkpoint", (), ("is_base_embedding_weights", "from_lora_tensors")),
    Seam(_MODEL, "LoRAModel.from_lora_tensors", (), ("is_base_embedding_weights",)),
    Seam("vllm.lora.lora_weights", "LoRALayerWeights.optimize", (), ("scaling", "lora_b")),
)


def seam_faults() -> list[str]:
    """What the installed vLLM does not have as the plug-in needs it; empty where all is well."""
    return [fault for seam in SEAMS if (fault := _fault(seam))]


def check_seams() -> None:
    """Compare the installed vLLM with what the plug-in needs.

    Raises:
        VllmSeamError: something differs; with its name and what has changed.
    """
    if faults := seam_faults():
        import vllm

        raise VllmSeamError(
            f"vLLM {vllm.__version__} is built otherwise than the plug-in needs it: {'; '.join(faults)}. It was made "
            f"for vLLM {TESTED}: install that, or choose rollout: vllm-linearized, vllm-wait or transformers."
        )


def _fault(seam: Seam) -> str | None:
    where = f"{seam.module}.{seam.name}"
    try:
        found: Any = importlib.import_module(seam.module)
        for part in seam.name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return f"{where} is gone"
    if seam.parameters:
        kinds = inspect.signature(found).parameters
        names = tuple(name for name, p in kinds.items() if name != "self" and p.kind is not p.VAR_KEYWORD)
        if names != seam.parameters:
            return f"{where} takes {', '.join(names)}, not {', '.join(seam.parameters)}"
    missing = set(seam.uses) - _names(inspect.unwrap(getattr(found, "__func__", found)).__code__)
    return f"{where} does not use {', '.join(sorted(missing))}" if missing else None


def _names(code: CodeType) -> set[str]:
    """Every name that a function's body refers to, its inner functions' too."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return {*code.co_names, *code.co_freevars}.union(*map(_names, inner))
