import copy
import pickle

import pytest
import torch
from peft import get_peft_model

from afa_lora import AfaLoraConfig, anneal_states, set_beta
from afa_lora.core.errors import InvalidSettingError
from afa_lora.core.schedule import Schedule
from afa_lora.core.state import AnnealState

BETA = 0.123456789  # not representable in bfloat16


def test_step_sets_beta_and_says_where_training_stands():
    state = AnnealState(Schedule("linear", 0.0, 0.3))
    assert state.set_step(15, 100) == pytest.approx(0.5)
    assert state.where() == "β = 0.5 at step 15 of 100; it reaches 0 at step 30"
    assert state.set_step(30, 100) == 0.0
    assert state.linear


@pytest.mark.parametrize("beta", [-0.1, 1.1, float("nan"), "0.5"])
def test_beta_out_of_range(beta):
    with pytest.raises(InvalidSettingError, match=r"must be a number in \[0, 1\]"):
        AnnealState(Schedule()).beta = beta


@pytest.fixture
def model(tiny_llama):
    model = get_peft_model(tiny_llama, AfaLoraConfig(r=4, target_modules="all-linear"))
    set_beta(model, BETA)
    return model


def test_casting_the_model_does_not_round_beta(model):
    model.to(torch.bfloat16)
    assert anneal_states(model)["default"].beta == BETA


def test_materialising_the_model_anew_does_not_lose_beta(model):
    model.to("meta").to_empty(device="cpu")
    assert anneal_states(model)["default"].beta == BETA


def test_beta_is_no_entry_of_the_state_dict(model):
    assert not any("beta" in key for key in model.state_dict())
    assert not any("beta" in name for name, _ in [*model.named_buffers(), *model.named_parameters()])


def test_all_layers_of_an_adapter_share_one_state(model):
    states = {id(v.state) for m in model.modules() for v in getattr(m, "lora_variant", {}).values()}
    assert states == {id(model.peft_config["default"].state)}


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copied_model_has_a_state_of_its_own_shared_by_its_layers(model, clone):
    twin = clone(model)
    set_beta(twin, 0.5)
    assert anneal_states(model)["default"].beta == BETA
    assert twin.peft_config["default"].beta == 0.5
    test_all_layers_of_an_adapter_share_one_state(twin)


def test_a_state_made_under_a_device_context_stays_on_the_cpu():
    with torch.device("meta"):
        state = AnnealState(Schedule(), 0.5)
    assert state._tensor.device.type == "cpu"
    assert state._tensor.item() == 0.5
