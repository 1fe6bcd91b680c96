"""The model of a recipe without its weights: what is trained, on what, and how many bytes that takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from trl import SFTConfig
from trl.trainer.utils import add_fused_lm_head

from afa_lora.sft.recipe import Recipe
from afa_lora.tuning.adapter import adapted_layers, adapter_config, add_adapter
from afa_lora.tuning.loading import model_options, training_precision

# Attention without a mask, as for batches without padding. Under a name of its own transformers makes no mask for it;
# on tensors without data it could not see that it may leave the mask out.
UNMASKED = "afa_unmasked"
AttentionInterface.register(UNMASKED, sdpa_attention_forward)

NF4_BLOCK = 64  # weights with one scale
NF4_SCALES = 256  # scales, of one byte each, with one float32 of their own
NF4_TABLES = 4 * (16 + 256) + 4  # bytes a layer: the 16 values, the 256 of the scales, and their offset
ADAM_BLOCK = 256  # numbers with one float32 scale, in bitsandbytes' 8-bit optimizers
ADAM_SMALLEST = 4096  # numbers; smaller tensors keep float32 states there


@dataclass(frozen=True)
class ModelShape:
    """A model that is set up for training, but has no weights.

    Attributes:
        model: every weight is one number, expanded to the weight's shape.
        layers: how many layers of each name have an adapter.
        weights: bytes of the base model as it is loaded.
        unpacked: bytes of its largest quantised weight when that is unpacked for a product; 0 without quantisation.
    """

    model: PreTrainedModel | PeftModel
    layers: Counter[str]
    weights: int
    unpacked: int

    @property
    def trained(self) -> list[nn.Parameter]:
        """The weights that get a gradient."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def masked(self) -> bool:
        """Whether attention has a mask: batches of several sequences are padded."""
        return bool(self.model.config._attn_implementation != UNMASKED)


def shape_model(recipe: Recipe, args: SFTConfig, config: PretrainedConfig) -> ModelShape:
    """The model that the recipe trains, set up as `SFTTrainer` sets it up.

    Args:
        recipe: gives method, adapter, precision and quantisation.
        args: from `training_arguments`.
        config: the model's.

    Raises:
        RecipeError: the adapter does not fit the model.
    """
    options, precision, quantization = model_options(recipe), training_precision(recipe), recipe.load.quantization
    settings = adapter_config(recipe) if recipe.method != "full" else None
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(
            config,
            dtype=precision.weights,
            trust_remote_code=options["trust_remote_code"],
            attn_implementation="eager" if options.get("attn_implementation") == "eager" else None,
        )
        packed = quantized_layers(base) if quantization else []
        weights = sum(map(byte_size, [*base.parameters(), *base.buffers()]))
        weights += sum(quantized_bytes(layer, quantization) - byte_size(layer.weight) for layer in packed)
        model = base if settings is None else add_adapter(base, recipe, settings)
    padded = args.per_device_train_batch_size > 1 and not (args.packing or args.padding_free)
    if base.config._attn_implementation == "sdpa" and not padded:
        base.set_attn_implementation(UNMASKED)
    if args.gradient_checkpointing:
        given = args.gradient_checkpointing_kwargs or {}
        assert isinstance(given, dict)  # the Trainer has parsed it
        base.gradient_checkpointing_enable({key: value for key, value in given.items() if key != "selective"} or None)
        if settings is not None:
            base.enable_input_require_grads()
    add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))
    _expand_weights(model, quantized=bool(quantization))
    unpacked = max((layer.get_parameter("weight").numel() for layer in packed), default=0) * precision.compute.itemsize
    return ModelShape(model.train(), adapted_layers(model), weights, unpacked)


def quantized_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers that transformers quantises with bitsandbytes: all linear ones but the output layer."""
    kept = get_keys_to_not_convert(model)
    return [
        layer
        for path, layer in model.named_modules()
        if (type(layer) is nn.Linear or isinstance(layer, Conv1D)) and path not in kept
    ]


def quantized_bytes(layer: nn.Module, quantization: str | None) -> int:
    """The weight of a linear layer in bitsandbytes' form: ``8bit``, or ``4bit`` NF4 with double quantisation."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if quantization == "8bit":
        return weight.numel() + 4 * weight.shape[0]  # one float32 scale a row
    scales = -(-weight.numel() // NF4_BLOCK)
    return -(-weight.numel() // 2) + scales + 4 * -(-scales // NF4_SCALES) + NF4_TABLES


def optimizer_bytes(name: str, trained: Iterable[Tensor]) -> tuple[int, bool]:
    """The size of an optimizer's state, and whether the optimizer is known here; an unknown one counts as AdamW.

    torch keeps states in the parameter's dtype; bitsandbytes in float32, or in one byte with a scale for each block.
    The states of ``paged`` optimizers may lie in the host's memory.
    """
    plain = name.removeprefix("paged_")
    family = plain.split("_")[0]
    states = {"adamw": 2, "sgd": 0, "adagrad": 1, "rmsprop": 1, "lion": 1}.get(family)
    known = states is not None and not plain.startswith(("adamw_anyprecision", "adamw_torch_4bit", "adamw_torch_8bit"))
    if plain.endswith("8bit") and known:
        each = [_one_byte_state(p.numel()) for p in trained]
    elif plain.endswith("32bit"):
        each = [4 * p.numel() for p in trained]
    else:
        each = [byte_size(p) for p in trained]
    return (2 if states is None else states) * sum(each), known


def byte_size(tensor: Tensor | nn.Module) -> int:
    """The bytes of a tensor's numbers."""
    assert isinstance(tensor, Tensor)
    return tensor.numel() * tensor.element_size()


def _one_byte_state(numel: int) -> int:
    return 4 * numel if numel < ADAM_SMALLEST else numel + 4 * -(-numel // ADAM_BLOCK)


def _expand_weights(model: nn.Module, quantized: bool) -> None:
    """Put one number, expanded to the shape, in place of every meta tensor; tied ones stay tied."""
    made: dict[int, Tensor] = {}
    for path, module in model.named_modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    if id(tensor) not in made:
                        made[id(tensor)] = _expanded(tensor, quantized and "lora_magnitude_vector" not in path)
                    table[name] = made[id(tensor)]


def _expanded(tensor: Tensor, halve_trained: bool) -> Tensor:
    """``halve_trained``: `SFTTrainer` puts the adapters of quantised models into bfloat16."""
    dtype = torch.bfloat16 if halve_trained and tensor.requires_grad else tensor.dtype
    small = torch.zeros((), dtype=dtype, device="cpu").expand(tensor.shape)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(small, requires_grad=tensor.requires_grad)
    return small
