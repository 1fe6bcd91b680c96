"""The plug-in for vLLM (entry point ``vllm.general_plugins``): adapters that are still annealing, served exactly.

It does something in engines only that ask for it, by ``additional_config={"afa_lora": {"activation": ..., "placement":
...}}``. Everywhere else vLLM goes on refusing the file of an annealing adapter for its β.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from torch import Tensor

from afa_lora.core.errors import InvalidSettingError, UnsupportedLayerError
from afa_lora.grpo.rollout.annealing import OPTION, Sites, is_beta, read_annealing
from afa_lora.grpo.rollout.contract import seam_faults
from afa_lora.grpo.rollout.cpu import expand_by_runs, shrink_by_runs
from afa_lora.grpo.rollout.slots import Slots, expand_with_phi, shrink_with_phi

logger = logging.getLogger(__name__)

# Layers whose adapter goes another way through vLLM than `add_shrink` and `add_expand`.
OTHER_WAYS = ("lm_head", "embed_tokens")
EXPERTS = "experts"

_beta_is_known: ContextVar[bool] = ContextVar("afa_lora_beta_is_known", default=False)


def register() -> None:
    """Patch vLLM, once. vLLM calls this in each of its processes, at its start.

    A vLLM whose code differs from what is needed is left alone, with a warning: it refuses annealing adapters itself.
    """
    import vllm
    from vllm.lora import lora_model, model_manager, worker_manager

    if hasattr(model_manager.LoRAModelManager._init_punica_wrapper, "__wrapped__"):
        return
    if faults := seam_faults():
        logger.warning(
            "afa-lora: vLLM %s differs from what the plug-in knows (%s), so annealing adapters are refused.",
            vllm.__version__,
            "; ".join(faults),
        )
        return
    _wrap(model_manager.LoRAModelManager, "_init_punica_wrapper", _init_punica_wrapper)
    _wrap(model_manager.LoRAModelManager, "activate_adapter", _activate_adapter)
    _wrap(worker_manager.WorkerLoRAManager, "_load_adapter", _load_adapter)
    _wrap(lora_model, "is_base_embedding_weights", _is_not_lora)


def _wrap(owner: Any, name: str, wrapper: Any) -> None:
    stock = getattr(owner, name)

    @functools.wraps(stock)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrapper(stock, *args, **kwargs)

    setattr(owner, name, wrapped)


def _init_punica_wrapper(stock: Any, manager: Any, max_num_batched_tokens: int, vllm_config: Any) -> None:
    """Put φ_β around shrink and expand of this engine's wrappers, if the engine asks for it."""
    stock(manager, max_num_batched_tokens, vllm_config)
    manager.afa_sites = sites = Sites.from_option(vllm_config.additional_config)
    if sites is None:
        return
    ranks = vllm_config.parallel_config.tensor_parallel_size
    if ranks > 1 and not manager.lora_config.fully_sharded_loras:
        raise InvalidSettingError(
            f"tensor_parallel_size={ranks} with fully_sharded_loras=False: a layer that is split along its input has "
            "only its part of A x on each rank, and φ of the parts is not φ of their sum. Set "
            "fully_sharded_loras=True (vLLM then sums before B), or tensor_parallel_size=1."
        )
    manager.afa_slots = [
        _surround(wrapper, sites, manager.lora_slots) for wrapper in set(manager.punica_wrapper_mapping.values())
    ]


def _surround(wrapper: Any, sites: Sites, count: int) -> Slots:
    """Replace ``add_shrink`` and ``add_expand`` of one wrapper of vLLM's."""
    kind = type(wrapper).__name__
    if kind == "PunicaWrapperCPU":

        def indices(tokens: int) -> Tensor:
            found: Tensor = wrapper.token_lora_indices[:tokens]
            return found

        shrink, expand = shrink_by_runs(indices), expand_by_runs(indices)
    elif kind == "PunicaWrapperGPU":

        def indices(tokens: int) -> Tensor:
            found: Tensor = wrapper.token_mapping_meta.token_lora_mapping[:tokens]
            return found

        shrink, expand = wrapper.add_shrink, wrapper.add_expand
    else:
        raise InvalidSettingError(
            f"additional_config={{{OPTION!r}: ...}}: vLLM computes adapters with {kind} here; the plug-in knows its "
            "CPU and its GPU (CUDA, ROCm) code. Choose rollout: vllm-linearized, vllm-wait or transformers."
        )
    slots = Slots(sites, count, wrapper.device, indices)
    wrapper.add_shrink, wrapper.add_expand = shrink_with_phi(slots, shrink), expand_with_phi(slots, expand)
    return slots


def _load_adapter(stock: Any, worker: Any, lora_request: Any) -> Any:
    """Load an adapter; one that is annealing only if this engine computes what it computes."""
    from vllm.lora.utils import get_adapter_absolute_path

    sites: Sites | None = getattr(worker._adapter_manager, "afa_sites", None)
    folder = Path(get_adapter_absolute_path(lora_request.lora_path))
    if sites is None or not folder.is_dir():
        return stock(worker, lora_request)
    annealing = read_annealing(folder)
    if annealing is None:
        return stock(worker, lora_request)
    if annealing.sites != sites:
        raise InvalidSettingError(
            f"{folder} was trained with {annealing.sites}, and this engine computes {sites}. Start one with "
            f"additional_config={{{OPTION!r}: ...}} for this adapter."
        )
    with _accepting_beta():
        lora = stock(worker, lora_request)
    _refuse_other_ways(folder, lora)
    scalings = {layer.scaling for layer in lora.loras.values()}
    if sites.placement.after_b:
        if len(scalings) > 1:
            raise InvalidSettingError(
                f"{folder} scales its layers differently (s = {sorted(scalings)}, by rank_pattern or alpha_pattern), "
                f"and with {sites} s comes after φ, where vLLM knows no layers. Use one rank and one alpha."
            )
        for layer in lora.loras.values():
            layer.scaling = 1  # what vLLM folds into B
    lora.afa = annealing.beta, scalings.pop() if sites.placement.after_b else 1.0
    return lora


def _refuse_other_ways(folder: Path, lora: Any) -> None:
    for name in lora.loras:
        parts = name.split(".")
        if parts[-1] in OTHER_WAYS or EXPERTS in parts:
            raise UnsupportedLayerError(
                f"{folder} adapts {name}, and vLLM computes such an adapter with code of its own, into which the "
                "plug-in puts no activation. Take the layer out of target_modules, or choose rollout: transformers."
            )


def _activate_adapter(stock: Any, manager: Any, lora_id: int) -> bool:
    """Give the adapter's slot its β and s when vLLM gives it its A and B."""
    activated: bool = stock(manager, lora_id)
    if activated and getattr(manager, "afa_sites", None) is not None:
        index = manager.lora_index_to_id.index(lora_id)
        beta, scaling = getattr(manager._registered_adapters[lora_id], "afa", (0.0, 1.0))
        for slots in manager.afa_slots:
            slots.set(index, beta, scaling)
    return activated


@contextmanager
def _accepting_beta() -> Iterator[None]:
    """Within this block the loader passes over the tensor that holds β; elsewhere it refuses it."""
    token = _beta_is_known.set(True)
    try:
        yield
    finally:
        _beta_is_known.reset(token)


def _is_not_lora(stock: Any, name: str) -> bool:
    """Whether the loader of vLLM passes over this tensor."""
    passed: bool = stock(name) or (_beta_is_known.get() and is_beta(name))
    return passed
