"""The one seam in PEFT: `AfaLoraModel` takes the place of `LoraModel` in PEFT's tuner registry.

It covers `get_peft_model`, `add_adapter`, `inject_adapter_in_model`, transformers' own adapters and every quantised
layer that consults `lora_variant`. Plain `LoraConfig`s pass through untouched.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from peft import LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora import LoraModel
from peft.tuners.lora.layer import Conv1d, Conv2d, Conv3d, Linear, LoraLayer
from peft.utils import PeftType
from torch import Tensor, nn

from afa_lora.core.errors import InvalidSettingError, UnsupportedLayerError
from afa_lora.core.state import AnnealState
from afa_lora.peft import checkpoint
from afa_lora.peft.config import AFA_LORA, AfaLoraConfig
from afa_lora.peft.variant import AfaVariant, make_variant

# Layer classes whose forward consults `lora_variant`; the quantised ones by name, since importing them needs their
# backend. A class that is not here raises at injection: it would train as plain LoRA in silence.
PLAIN_LAYERS = (Linear, Conv1d, Conv2d, Conv3d)
QUANTISED_LAYERS = ("Linear8bitLt", "Linear4bit", "GPTQLoraLinear", "HqqLoraLinear")


class AfaLoraModel(LoraModel):  # type: ignore[misc]
    """`LoraModel` that gives the layers of an `AfaLoraConfig` adapter their activation."""

    def inject_adapter(self, model: nn.Module, adapter_name: str, **kwargs: Any) -> None:
        config = self.peft_config[adapter_name]
        if isinstance(config, AfaLoraConfig):
            shared = any(other is config for name, other in self.peft_config.items() if name != adapter_name)
            if shared:  # TRL hands the policy's config to its frozen "ref" adapter: that one's β must not move
                self.peft_config[adapter_name] = copy.copy(config)
            if config.target_parameters:
                raise UnsupportedLayerError(
                    f"target_parameters={config.target_parameters!r}: LoRA on a bare parameter adds s·BA to the weight "
                    "itself, where an activation has no place. Target modules instead, or use peft.LoraConfig."
                )
        try:
            super().inject_adapter(model, adapter_name, **kwargs)
        except UnsupportedLayerError:
            _remove_adapter(model, adapter_name)
            raise

    def _create_and_replace(
        self,
        lora_config: LoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        super()._create_and_replace(
            lora_config, adapter_name, target, target_name, parent, current_key=current_key, **kwargs
        )
        layer = getattr(parent, target_name)
        if isinstance(lora_config, AfaLoraConfig):
            _anneal_layer(layer, lora_config, adapter_name, current_key)
        if isinstance(layer, LoraLayer):
            # Our variants cast x themselves and save it uncast: one tensor shared with the base model, not a copy.
            layer.cast_input_dtype_enabled = not all(
                isinstance(layer.lora_variant.get(name), AfaVariant) for name in layer.lora_A
            )

    # Merging needs linear adapters: check before anything is changed.

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        self._require_mergeable(adapter_names)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> nn.Module:
        if merge:
            self._require_mergeable(kwargs.get("adapter_names"))
            for _, variant in variants(self.model):
                variant.keep_original = False
        unloaded: nn.Module = super()._unload_and_optionally_merge(merge=merge, **kwargs)
        return unloaded

    def add_weighted_adapter(self, adapters: list[str], *args: Any, **kwargs: Any) -> None:
        """As in PEFT; the sum of linear adapters is linear, so the new adapter's β is 0."""
        self._require_linear(adapters)
        super().add_weighted_adapter(adapters, *args, **kwargs)
        name = kwargs["adapter_name"] if "adapter_name" in kwargs else args[1]
        if isinstance(self.peft_config[name], AfaLoraConfig):
            self.peft_config[name].beta = 0.0

    def subtract_mutated_init(self, output_state_dict: Any, adapter_name: str, kwargs: Any = None) -> Any:
        self._require_linear(list(self.active_adapters))
        return super().subtract_mutated_init(output_state_dict, adapter_name, kwargs)

    def _require_mergeable(self, adapter_names: list[str] | None) -> None:
        names = list(self.active_adapters) if adapter_names is None else adapter_names
        self._require_linear(names)
        self._refuse_tied(names)

    def _require_linear(self, names: list[str]) -> None:
        for name, variant in variants(self.model):
            if name in names:
                variant.require_linear(name)

    def _refuse_tied(self, names: list[str]) -> None:
        """A weight that two modules share cannot be merged into: the other module would change with it."""
        targeted = {
            id(layer.get_base_layer().weight): key
            for key, layer in self.model.named_modules()
            if isinstance(layer, LoraLayer)
            and any(isinstance(layer.lora_variant.get(name), AfaVariant) for name in names)
            and hasattr(layer.get_base_layer(), "weight")
        }
        for key, parameter in self.model.named_parameters(remove_duplicate=False):
            owner = targeted.get(id(parameter))
            if owner is not None and key != f"{owner}.base_layer.weight":
                raise InvalidSettingError(
                    f"{owner} shares its weight with {key}; merging into the one would change the other. Untie them "
                    "first (load with tie_word_embeddings=False and copy the weight), or keep the adapter unmerged."
                )

    # Files: at β > 0 one more tensor, which engines that know only linear adapters cannot parse.

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: LoraConfig, adapter_name: str, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        tensors = super()._get_adapter_state_dict(model, config, adapter_name, *args, **kwargs)
        return checkpoint.with_beta(tensors, config)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: LoraConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        state_dict, beta = checkpoint.without_beta(state_dict, config)
        tensors: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        if isinstance(config, AfaLoraConfig):
            checkpoint.check_fit(model, config, adapter_name, tensors)
            config.state.restore(beta)
        return tensors


def _anneal_layer(layer: LoraLayer, config: AfaLoraConfig, adapter: str, key: str) -> None:
    """Put the AFA variant around the one that PEFT chose for this layer."""
    known = type(layer) in PLAIN_LAYERS or (
        type(layer).__module__.startswith("peft.") and type(layer).__name__ in QUANTISED_LAYERS
    )
    variant = make_variant(config, layer.lora_variant.get(adapter)) if known else None
    if variant is None:
        supported = ", ".join([c.__name__ for c in PLAIN_LAYERS] + ["Conv1D", *QUANTISED_LAYERS])
        base = layer.get_base_layer()
        raise UnsupportedLayerError(
            f"{key} ({type(base).__name__}, PEFT layer {type(layer).__name__}) cannot carry an annealed activation and "
            f"would train as plain LoRA. Supported are {supported}. Take it out of target_modules (or add it to "
            "exclude_modules), or adapt it with a second adapter of peft.LoraConfig."
        )
    layer.lora_variant[adapter] = variant
    if config.use_dora:
        variant.reset_magnitude(layer, adapter)


def _remove_adapter(model: nn.Module, adapter_name: str) -> None:
    """Undo an injection that failed half-way, so that the model can be used again."""
    for key, layer in reversed(list(model.named_modules())):  # children before the layer that holds them
        if not isinstance(layer, LoraLayer) or adapter_name not in layer._get_available_adapters():
            continue
        if len(layer._get_available_adapters()) > 1:
            layer.delete_adapter(adapter_name)
        else:
            parent, _, name = key.rpartition(".")
            setattr(model.get_submodule(parent), name, layer.get_base_layer())


def variants(model: nn.Module) -> Iterator[tuple[str, AfaVariant]]:
    """Yield (adapter name, variant) for every AFA layer of ``model``."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name, variant in module.lora_variant.items():
                if isinstance(variant, AfaVariant):
                    yield name, variant


def anneal_states(model: nn.Module, trainable_only: bool = False) -> dict[str, AnnealState]:
    """Return the state of each AFA adapter in ``model``, by adapter name.

    Args:
        model: a `PeftModel`, or any model with injected adapters.
        trainable_only: leave out frozen adapters (a reference policy keeps the β that it has).
    """
    found: dict[str, AnnealState] = {}
    for module in model.modules():
        if not isinstance(module, LoraLayer):
            continue
        for name, variant in module.lora_variant.items():
            if not isinstance(variant, AfaVariant):
                continue
            if trainable_only and not any(p.requires_grad for p in _adapter_parameters(module, name)):
                continue
            found[name] = variant.state
    return found


def set_beta(model: nn.Module, beta: float) -> None:
    """Set β of every AFA adapter in ``model`` by hand; training code uses the callback or the `Annealer`.

    Raises:
        InvalidSettingError: β outside [0, 1], or a model without an AFA adapter.
    """
    states = anneal_states(model)
    if not states:
        raise InvalidSettingError(no_afa_layer(model))
    for state in states.values():
        state.beta = beta


def no_afa_layer(model: nn.Module) -> str:
    """The message for a model without an AFA layer: what there is, and what to change."""
    kinds = sorted({type(m).__name__ for m in model.modules() if hasattr(m, "adapter_layer_names")})
    configs = {name: type(c).__name__ for name, c in (getattr(model, "peft_config", None) or {}).items()}
    there = f"adapters {configs}, adapter layers {kinds}" if kinds else "no adapter at all"
    return (
        f"{type(model).__name__} has no AFA-LoRA layer (found: {there}). Build it with "
        "get_peft_model(model, AfaLoraConfig(...)) or pass peft_config=AfaLoraConfig(...) to the trainer."
    )


def _adapter_parameters(layer: LoraLayer, adapter: str) -> Iterator[nn.Parameter]:
    for part in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
        if adapter in part:
            yield from part[adapter].parameters()


def register() -> None:
    """Put `AfaLoraModel` and `AfaLoraConfig` into PEFT's registries."""
    PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORA] = AfaLoraModel
    PEFT_TYPE_TO_CONFIG_MAPPING[AFA_LORA] = AfaLoraConfig
