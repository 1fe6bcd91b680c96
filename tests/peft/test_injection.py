"""The seam in PEFT: every way to add an adapter, and every layer that must be refused."""

import copy
import inspect

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from peft.tuners.lora.model import LoraModel
from torch import nn

from afa_lora import AfaLoraConfig, Annealer, InvalidSettingError, UnsupportedLayerError, anneal_states, set_beta
from afa_lora.peft.variant import AfaVariant
from tests.peft.helpers import adapted, fill_b, logits


def config(**options):
    return AfaLoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], **options})


def test_plain_lora_is_untouched(tiny_llama):
    model = get_peft_model(tiny_llama, LoraConfig(r=4, target_modules="all-linear"))
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    assert layers
    assert all(not layer.lora_variant and layer.cast_input_dtype_enabled for layer in layers)
    assert anneal_states(model) == {}


def test_get_peft_model_inject_adapter_and_transformers_give_the_same_function(tiny_llama, token_ids):
    outputs = []
    for how in ("get_peft_model", "inject", "transformers"):
        model = copy.deepcopy(tiny_llama)
        torch.manual_seed(1)
        if how == "get_peft_model":
            model = get_peft_model(model, config())
        elif how == "inject":
            model = inject_adapter_in_model(config(), model)
        else:
            model.add_adapter(config())
        fill_b(model)
        Annealer(model, 10).set_step(1)
        outputs.append(logits(model.eval(), token_ids))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_two_afa_adapters_have_their_own_beta(tiny_llama, token_ids):
    model = adapted(tiny_llama, config(placement="A-B-σ"))
    model.add_adapter("second", config(activation="relu"))
    fill_b(model)
    states = anneal_states(model)
    states["default"].beta, states["second"].beta = 0.2, 0.9
    first = logits(model, token_ids)
    model.set_adapter("second")
    second = logits(model, token_ids)
    assert not torch.equal(first, second)
    states["default"].beta = 0.7
    assert torch.equal(logits(model, token_ids), second)
    model.set_adapter("default")
    assert not torch.equal(logits(model, token_ids), first)


def test_afa_and_plain_adapters_on_one_model(tiny_llama, token_ids):
    model = adapted(tiny_llama, config())
    model.add_adapter("plain", LoraConfig(r=2, target_modules="all-linear"))
    fill_b(model)
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    assert all(layer.cast_input_dtype_enabled for layer in layers)  # the plain adapter needs PEFT's cast
    set_beta(model, 1.0)
    both = {name: logits(model, token_ids) for name in ("default", "plain") if model.set_adapter(name) is None}
    set_beta(model, 0.0)
    model.set_adapter("plain")
    assert torch.equal(logits(model, token_ids), both["plain"])
    model.set_adapter("default")
    assert not torch.equal(logits(model, token_ids), both["default"])
    model.delete_adapter("default")
    assert anneal_states(model) == {}


def test_disable_adapter_is_the_base_model(tiny_llama, token_ids):
    base = logits(tiny_llama, token_ids)
    model = adapted(tiny_llama, config())
    with model.disable_adapter():
        assert torch.equal(logits(model, token_ids), base)
    assert not torch.equal(logits(model, token_ids), base)


def test_mixed_batch_by_adapter_names(tiny_llama, token_ids):
    model = adapted(tiny_llama, config())
    model.add_adapter("second", config())
    fill_b(model)
    set_beta(model, 0.5)
    rows = []
    for name in ("default", "second"):
        model.set_adapter(name)
        rows.append(logits(model, token_ids))
    with torch.no_grad():
        mixed = model(input_ids=token_ids, adapter_names=["default", "second"]).logits
    torch.testing.assert_close(mixed, torch.stack([rows[0][0], rows[1][1]]), rtol=1e-5, atol=1e-5)


def test_a_second_adapter_from_the_same_config_object_keeps_its_own_beta(tiny_llama):
    """TRL makes its frozen reference policy so."""
    model = get_peft_model(tiny_llama, config())
    set_beta(model, 0.4)
    model.add_adapter("ref", model.peft_config["default"])
    Annealer(model, 100).set_step(90)
    assert {name: state.beta for name, state in anneal_states(model).items()} == {"default": 0.0, "ref": 0.4}
    assert list(anneal_states(model, trainable_only=True)) == ["default"]


class Odd(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.odd = layer
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(x)


@pytest.mark.filterwarnings("ignore:.*MultiheadAttention")
@pytest.mark.parametrize(
    ("layer", "kind"),
    [(nn.Embedding(10, 8), "Embedding"), (nn.MultiheadAttention(8, 2), "MultiheadAttention")],
)
def test_unsupported_layers_raise_by_name_and_leave_the_model_as_it_was(layer, kind):
    model = Odd(layer)
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(UnsupportedLayerError, match=rf"odd \({kind}.*cannot carry.*exclude_modules"):
        get_peft_model(model, AfaLoraConfig(r=2, target_modules=["linear", "odd"]))
    assert [name for name, _ in model.named_modules()] == before


def test_target_parameters_raise(tiny_llama):
    with pytest.raises(UnsupportedLayerError, match=r"target_parameters=\['q_proj.weight'\]"):
        get_peft_model(tiny_llama, config(target_modules=[], target_parameters=["q_proj.weight"]))


def test_no_matching_module_says_so(tiny_llama):
    with pytest.raises(ValueError, match=r"Target modules .*wrong.* not found"):
        get_peft_model(tiny_llama, config(target_modules=["wrong"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "sillu"}, r"activation='sillu' is not known.*Did you mean 'silu'"),
        ({"placement": "B-σ-A"}, "placement='B-σ-A' is not known"),
        ({"schedule": "linaer"}, "schedule='linaer' is not known"),
        ({"anneal_start": 0.5}, "anneal_end=0.3 must come after anneal_start=0.5"),
        ({"r": 0}, "r=0 must be a positive rank"),
        ({"beta": 1.5}, "beta=1.5 must be a number"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' moves part of W₀"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4' moves"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora' moves"),
        ({"init_lora_weights": "orthogonal"}, "init_lora_weights='orthogonal' moves"),
        ({"init_lora_weights": "eva", "use_dora": True}, "init_lora_weights='eva' rebuilds"),
        ({"alora_invocation_tokens": [1], "task_type": "CAUSAL_LM"}, "alora_invocation_tokens=.* replaces LoRA"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*eva_config")
def test_settings_that_cannot_work_say_why(options, message):
    with pytest.raises(InvalidSettingError, match=message):
        config(**options)


def test_an_activation_that_shifts_is_refused_after_b():
    from afa_lora.core.activation import ACTIVATIONS, register_activation

    register_activation("softplus", nn.functional.softplus)
    try:
        config(activation="softplus", placement="A-σ-B")
        with pytest.raises(InvalidSettingError, match=r"σ\(0\) = 0.69"):
            config(activation="softplus", placement="A-B-σ")
    finally:
        del ACTIVATIONS["softplus"]


@pytest.mark.parametrize("kernel", [nn.Conv1d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1, stride=2)])
@pytest.mark.parametrize("use_dora", [False, True])
def test_convolutions(kernel, use_dora):
    dims = (2, 3, 8, 8)[: kernel.weight.dim()]
    x = torch.randn(dims)
    models = []
    for cls in (LoraConfig, AfaLoraConfig):
        torch.manual_seed(1)
        model = get_peft_model(nn.Sequential(copy.deepcopy(kernel)), cls(r=2, target_modules=["0"], use_dora=use_dora))
        fill_b(model)
        models.append(model.train())
    peft_model, ours = models
    set_beta(ours, 0.0)
    torch.testing.assert_close(ours(x), peft_model(x), rtol=1e-5, atol=1e-5)
    set_beta(ours, 0.7)
    annealing = ours(x)
    annealing.sum().backward()
    layer = ours.base_model.model[0]
    A, B, s = layer.lora_A["default"], layer.lora_B["default"], layer.scaling["default"]
    h = A(x)
    base = kernel(x)
    branch = s * B(0.7 * nn.functional.silu(h) + 0.3 * h)
    if use_dora:
        bias = kernel.bias.view(-1, *(1,) * (x.dim() - 2))
        delta = (B.weight.flatten(1) @ A.weight.flatten(1)).view_as(kernel.weight) * s
        norm = (kernel.weight + delta).flatten(1).norm(dim=1)
        factor = (layer.lora_magnitude_vector["default"].weight.flatten() / norm).view_as(bias)
        expected = factor * (base - bias + branch) + bias
    else:
        expected = base + branch
    torch.testing.assert_close(annealing, expected, rtol=1e-5, atol=1e-5)
    set_beta(ours, 0.0)
    unmerged = ours.eval()(x)
    torch.testing.assert_close(ours.merge_and_unload()(x), unmerged, rtol=1e-5, atol=1e-5)


def test_contract_with_peft():
    """PEFT calls this API private. When a version changes it, this names what changed."""
    assert peft.__version__.startswith("0.21.")
    parameters = {
        "forward": (LoraVariant.forward, ["module", "active_adapter", "x", "result", "kwargs"]),
        "merge_safe": (LoraVariant.merge_safe, ["module", "active_adapter", "orig_weight"]),
        "merge_unsafe": (LoraVariant.merge_unsafe, ["module", "active_adapter", "orig_weight"]),
        "unmerge": (LoraVariant.unmerge, ["module", "active_adapter", "orig_weight"]),
        "_create_and_replace": (
            LoraModel._create_and_replace,
            ["self", "lora_config", "adapter_name", "target", "target_name", "parent", "current_key", "parameter_name"],
        ),
        "_get_adapter_state_dict": (
            LoraModel._get_adapter_state_dict,
            ["model", "config", "adapter_name", "state_dict", "unwanted_adapter_names"],
        ),
        "_remap_adapter_state_dict_for_load": (
            LoraModel._remap_adapter_state_dict_for_load,
            ["model", "config", "adapter_name", "state_dict"],
        ),
        "_unload_and_optionally_merge": (
            LoraModel._unload_and_optionally_merge,
            ["self", "merge", "progressbar", "safe_merge", "adapter_names"],
        ),
        "add_weighted_adapter": (
            LoraModel.add_weighted_adapter,
            ["self", "adapters", "weights", "adapter_name"],
        ),
    }
    for name, (function, expected) in parameters.items():
        found = list(inspect.signature(function).parameters)
        assert found[: len(expected)] == expected, f"PEFT changed LoraModel/LoraVariant.{name}: {found}"
    source = inspect.getsource(peft.tuners.lora.layer.Linear.forward)
    assert "self.lora_variant[active_adapter].forward(" in source
    assert issubclass(AfaVariant, LoraVariant)
