"""The adapter as vLLM serves it beside its base model: by ``--lora-modules``, or a `LoRARequest`."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path

from peft import LoraConfig, PeftModel
from peft.tuners.lora.layer import LoraLayer
from peft.utils import CONFIG_NAME
from torch import nn

from afa_lora.files import folder_atomic
from afa_lora.models import EMBEDDED, embedded_folder
from afa_lora.peft.config import EXCLUSIVE_SETTINGS
from afa_lora.serving.adapter import check_adapter, write_adapter
from afa_lora.serving.check import ExportError
from afa_lora.serving.source import PROBE, Export, Source, check_out, find_source, load_source, writing

# What vLLM 0.32 allows for --max-lora-rank (vllm/config/lora.py).
MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Settings that change what the adapter computes and that vLLM refuses, or does not read (vllm/lora/peft_helper.py).
UNSERVED = (
    "use_dora",
    "modules_to_save",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    *EXCLUSIVE_SETTINGS,
)
LINEAR_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")  # these leave the base weights as they are
EMBEDDINGS = ("embed_tokens", "lm_head")


def export_vllm(path: Path, out: Path, *, base: str | None = None, probe: str = PROBE) -> Export:
    """Write the adapter as `export_adapter` does, if vLLM can serve it.

    vLLM's own loader reads it back where vLLM is installed; its rules, as they are in vLLM 0.32, are applied anyway.

    Args:
        path: an adapter's folder, or that of a run of ``afa sft``.
        out: a folder that does not exist yet.
        base: hub id, local folder or embedded model; see `find_source`.
        probe: text on which the logits are compared.

    Raises:
        NotLinearError: the adapter has β > 0.
        ExportError: vLLM cannot serve such an adapter, ``out`` exists, or the check failed.
        AfaLoraError: base model or adapter cannot be loaded.
    """
    check_out(out)
    source = find_source(path, base)
    _refuse(source, config_faults(source.config))
    model, reference = load_source(source, probe)
    _refuse(source, layer_faults(model))
    rank = max_lora_rank(source.config)
    with writing(out), folder_atomic(out) as temporary:
        write_adapter(source, temporary, base)
        if importlib.util.find_spec("vllm") is None:
            loader = "vLLM is not installed here, so its rules were checked and its loader was not run."
        else:
            loader = load_with_vllm(temporary, model, rank)
        agreement = check_adapter(temporary, model, reference)
    return Export(out, (f"Loaded back as PEFT's own LoRA: {agreement}.", loader), usage(source, out, rank))


def config_faults(config: LoraConfig) -> list[str]:
    """What in the configuration vLLM cannot serve, as ``key=value``."""
    faults = [f"{key}={value!r}" for key in UNSERVED if (value := getattr(config, key, None))]
    if config.bias != "none":
        faults.append(f"bias={config.bias!r}")
    if isinstance(config.init_lora_weights, str) and config.init_lora_weights.lower() not in LINEAR_STARTS:
        faults.append(f"init_lora_weights={config.init_lora_weights!r}")
    if _largest_rank(config) > MAX_LORA_RANKS[-1]:
        faults.append(f"rank {_largest_rank(config)} (at most {MAX_LORA_RANKS[-1]})")
    return faults


def layer_faults(model: PeftModel) -> list[str]:
    """Which adapted layers vLLM does not adapt: anything but linear layers and the two embeddings."""
    return [
        f"{type(layer.get_base_layer()).__name__} layer {name.removeprefix('base_model.model.')}"
        for name, layer in _adapted(model)
        if not isinstance(layer.get_base_layer(), nn.Linear) and name.rsplit(".", 1)[-1] not in EMBEDDINGS
    ]


def max_lora_rank(config: LoraConfig) -> int:
    """The smallest ``--max-lora-rank`` of vLLM that holds this adapter."""
    return min(rank for rank in MAX_LORA_RANKS if rank >= _largest_rank(config))


def load_with_vllm(folder: Path, model: PeftModel, rank: int) -> str:
    """Read the adapter with vLLM's own code, without starting an engine.

    Returns:
        one sentence that says so.

    Raises:
        ExportError: vLLM refuses the base model or the adapter; with vLLM's words.
    """
    import vllm
    from vllm.config.lora import LoRAConfig
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper
    from vllm.model_executor.models import ModelRegistry, supports_lora

    architecture = model.config.architectures[0]
    if architecture not in ModelRegistry.models or not supports_lora(
        ModelRegistry.models[architecture].load_model_cls()
    ):
        raise ExportError(f"vLLM {vllm.__version__} serves no adapters for {architecture}. Use --to merged.")
    adapted = {name.removeprefix("base_model.model.") for name, _ in _adapted(model)}
    try:
        helper = PEFTHelper.from_local_dir(str(folder), model.config.max_position_embeddings)
        helper.validate_legal(LoRAConfig(max_lora_rank=rank))
        leaves = {name.rsplit(".", 1)[-1] for name in adapted}
        loaded = LoRAModel.from_local_checkpoint(str(folder), leaves, helper, device="cpu")
    except (ValueError, RuntimeError) as error:
        raise ExportError(f"vLLM {vllm.__version__} cannot load the adapter: {error} Use --to merged.") from error
    if set(loaded.loras) != adapted:
        raise ExportError(f"vLLM {vllm.__version__} reads other layers than were trained. Use --to merged.")
    return f"Loaded back by vLLM {vllm.__version__}: {len(adapted)} layers, max_lora_rank {rank}."


def usage(source: Source, out: Path, rank: int) -> str:
    """The command line, and the lines of Python, that serve the adapter in ``out``."""
    base = str(embedded_folder(source.base)) if source.base in EMBEDDED else source.base
    name, folder = out.name, str(out.resolve())
    serve = ["vllm", "serve", base, "--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{name}={folder}"]
    return "\n".join(
        [
            shlex.join(serve),
            "",
            "from vllm import LLM",
            "from vllm.lora.request import LoRARequest",
            f"llm = LLM({base!r}, enable_lora=True, max_lora_rank={rank})",
            f"llm.generate(prompts, lora_request=LoRARequest({name!r}, 1, {folder!r}))",
        ]
    )


def _refuse(source: Source, faults: list[str]) -> None:
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ExportError(
            f"{source.adapter / CONFIG_NAME}: vLLM serves no adapter with {', '.join(faults[:3])}{more}. "
            "Merge it and serve that: --to merged."
        )


def _largest_rank(config: LoraConfig) -> int:
    return max([config.r, *config.rank_pattern.values()])


def _adapted(model: PeftModel) -> list[tuple[str, LoraLayer]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
