"""Adapter files: β travels with an annealing adapter, and a file that does not fit is refused with one message."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from peft.utils.error import NoMatchingPeftModuleError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from afa_lora.core.errors import AfaLoraError, CorruptedAdapterError, NotLinearError
from afa_lora.peft.config import AfaLoraConfig

BETA_KEY = "afa_beta"


def with_beta(tensors: dict[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """Add β to the tensors of an adapter that is still annealing. vLLM refuses a tensor name that it cannot parse."""
    if isinstance(config, AfaLoraConfig) and not config.state.linear:
        return {**tensors, BETA_KEY: torch.tensor(config.beta, dtype=torch.float64)}
    return tensors


def without_beta(tensors: dict[str, Tensor], config: LoraConfig) -> tuple[dict[str, Tensor], float]:
    """Take β out of loaded tensors; a file without it holds a linear adapter, β = 0.

    Raises:
        NotLinearError: an annealing adapter is about to be loaded as plain LoRA.
    """
    rest = {key: tensor for key, tensor in tensors.items() if key.removeprefix("base_model.model.") != BETA_KEY}
    found = [tensor for key, tensor in tensors.items() if key not in rest]
    beta = float(found[0]) if found else 0.0
    if beta > 0 and not isinstance(config, AfaLoraConfig):
        raise NotLinearError(
            f"these weights are of an AFA-LoRA adapter that is still annealing (β = {beta:.4g}); loaded into a "
            f"{type(config).__name__} adapter they would be a different function. Load them with their own "
            "adapter_config.json, or linearize the adapter first."
        )
    return rest, beta


def check_fit(model: nn.Module, config: LoraConfig, adapter: str, tensors: dict[str, Tensor]) -> None:
    """Compare loaded tensors (in the model's key names) with the adapter's own parameters.

    Raises:
        CorruptedAdapterError: tensors are missing, or have other shapes: a damaged file, or another base model.
    """
    marks = (f".lora_A.{adapter}.", f".lora_B.{adapter}.", f".lora_magnitude_vector.{adapter}.")
    shapes = {name.replace("_fsdp_wrapped_module.", ""): p.shape for name, p in model.named_parameters()}
    expected = {name: shape for name, shape in shapes.items() if any(mark in name for mark in marks)}
    missing = [name for name in expected if name not in tensors]
    wrong = [name for name in expected if name in tensors and tensors[name].shape != expected[name]]
    if not missing and not wrong:
        return
    details = [f"{len(missing)} of {len(expected)} tensors are missing (first: {missing[0]})"] if missing else []
    if wrong:
        both = f"{tuple(tensors[wrong[0]].shape)} in the file, {tuple(expected[wrong[0]])} in the model"
        details.append(f"{len(wrong)} have another shape (first: {wrong[0]}, {both})")
    raise CorruptedAdapterError(
        f"the adapter file does not fit this model: {'; '.join(details)}. Either the file is damaged or it was made "
        f"for another base model (its config names {config.base_model_name_or_path!r})."
    )


def load_adapter(model: nn.Module, path: str | Path, is_trainable: bool = False) -> PeftModel:
    """`PeftModel.from_pretrained` with one clear message for a file that cannot be read.

    Raises:
        FileNotFoundError: no adapter there.
        CorruptedAdapterError: truncated or damaged safetensors, or tensors that do not fit ``model``.
    """
    folder = Path(path)
    if not (folder / "adapter_config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no adapter_config.json, so it is not an adapter folder.")
    try:
        loaded: PeftModel = PeftModel.from_pretrained(model, str(folder), is_trainable=is_trainable)
    except SafetensorError as error:
        raise CorruptedAdapterError(
            f"{folder / SAFETENSORS_WEIGHTS_NAME} is damaged or truncated ({error}). "
            "Restore it from the training run's last checkpoint."
        ) from error
    except AfaLoraError:
        raise
    except (NoMatchingPeftModuleError, RuntimeError) as error:  # other modules, or the same ones in another shape
        first = " ".join(str(error).splitlines()[:2])  # torch lists every tensor
        raise CorruptedAdapterError(f"{_for_another_model(folder, model)}: {first}") from error
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        missing = sorted(get_peft_model_state_dict(loaded, save_embedding_layers=False).keys() - set(file.keys()))
    if missing:  # PEFT fills up a plain adapter in silence
        raise CorruptedAdapterError(
            f"{_for_another_model(folder, model)}: {len(missing)} tensors are missing, the first is {missing[0]}"
        )
    return loaded


def _for_another_model(folder: Path, model: nn.Module) -> str:
    base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    return (
        f"the adapter in {folder} does not fit {type(model).__name__}; it was made for another base model (its config "
        f"names {base!r})"
    )
