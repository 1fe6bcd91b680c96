"""φ_β around shrink and expand, token by token, against the branch of the library; and adapters as files."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from afa_lora import AfaLoraConfig, linearize, set_beta
from afa_lora.core.activation import ACTIVATIONS
from afa_lora.core.branch import branch
from afa_lora.core.errors import AfaLoraError, CorruptedAdapterError, InvalidSettingError
from afa_lora.core.placement import PLACEMENTS, PLAIN
from afa_lora.grpo.rollout.annealing import OPTION, Sites, read_annealing
from afa_lora.grpo.rollout.cpu import expand_by_runs, shrink_by_runs
from afa_lora.grpo.rollout.slots import Slots, expand_with_phi, shrink_with_phi
from afa_lora.peft.linearize import linearized
from afa_lora.peft.model import anneal_states

SLOTS, RANK, IN, SLICES = 3, 4, 6, (5, 3)
BETA, SCALING = (1.0, 0.4, 0.0), (2.0, 0.5, 1.0)  # the last one is linear, its s in its B
TOKENS = torch.tensor([0, 0, 1, -1, 2, 1, -1, 0])


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_each_token_has_its_own_adapter(placement: str, activation: str) -> None:
    torch.manual_seed(0)
    sites = Sites(ACTIVATIONS[activation], PLACEMENTS[placement])
    slots = Slots(sites, SLOTS, "cpu", lambda count: TOKENS[:count])
    for index in range(SLOTS):
        slots.set(index, BETA[index], SCALING[index])
    A = [torch.randn(SLOTS, 1, RANK, IN, dtype=torch.float64) for _ in SLICES]
    B = [torch.randn(SLOTS, 1, size, RANK, dtype=torch.float64) for size in SLICES]
    x, y = torch.randn(len(TOKENS), IN, dtype=torch.float64), torch.randn(len(TOKENS), 10, dtype=torch.float64)
    start = 1  # as where vLLM splits the outputs among ranks

    out, buffer = y.clone(), tuple(torch.zeros(len(TOKENS), RANK, dtype=torch.float64) for _ in SLICES)
    shrink_with_phi(slots, shrink_by_runs(slots.indices))(buffer, x, A, 1.0)
    expand_with_phi(slots, expand_by_runs(slots.indices))(out, buffer, B, SLICES, offset_start=start)

    expected = y.clone()
    for token, slot in enumerate(TOKENS.tolist()):
        if slot < 0:
            continue
        place = sites.placement if BETA[slot] else PLAIN
        # float32, as the engine keeps it
        settings = {"beta": float(slots.beta[slot]), "activation": sites.activation, "placement": place}
        scaling = SCALING[slot] if sites.placement.after_b else 1.0
        offset = start
        for a, b, size in zip(A, B, SLICES, strict=True):
            value = branch(x[token : token + 1], a[slot, 0], b[slot, 0], None, **settings)[0]
            expected[token, offset : offset + size] += scaling * value
            offset += size
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(out[TOKENS < 0], y[TOKENS < 0])
    assert torch.equal(out[:, 0], y[:, 0])
    assert torch.equal(out[:, 9:], y[:, 9:])


def test_a_slot_forgets_its_adapter() -> None:
    slots = Slots(Sites.named("silu", "A-σ-B"), 1, "cpu", lambda count: torch.zeros(count, dtype=torch.int32))
    h = torch.randn(2, 3)
    slots.set(0, 1.0, 1.0)
    assert torch.equal(slots.phi(h, 2), nn.functional.silu(h))
    slots.set(0, 0.0, 1.0)
    assert torch.equal(slots.phi(h, 2), h)


@pytest.mark.parametrize("option", [{"activation": "silu"}, "A-σ-B", {"activation": "silu", "placement": "B"}])
def test_an_engines_option_is_checked(option: object) -> None:
    with pytest.raises(InvalidSettingError):
        Sites.from_option({OPTION: option})


def test_an_engine_need_not_ask() -> None:
    assert Sites.from_option({}) is Sites.from_option(None) is Sites.from_option({"other": 1}) is None
    asked = Sites.from_option({OPTION: {"activation": "relu", "placement": "s-A-B-s"}})
    assert str(asked) == "activation='relu', placement='σ-A-B-σ'"


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def tiny(**settings: object) -> nn.Module:
    torch.manual_seed(0)
    model = get_peft_model(Tiny(), AfaLoraConfig(r=3, target_modules=["first", "second"], **settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def test_what_a_folder_says(tmp_path: Path) -> None:
    model = tiny(activation="gelu", placement="A-B-σ")
    set_beta(model, 0.3)
    model.save_pretrained(tmp_path / "annealing")
    found = read_annealing(tmp_path / "annealing")
    assert found is not None
    assert (found.beta, found.sites) == (0.3, Sites.named("gelu", "A-B-σ"))
    set_beta(model, 0.0)
    model.save_pretrained(tmp_path / "linear")
    assert read_annealing(tmp_path / "linear") is None
    get_peft_model(Tiny(), LoraConfig(target_modules=["first"])).save_pretrained(tmp_path / "plain")
    assert read_annealing(tmp_path / "plain") is None


@pytest.mark.parametrize("fault", ["no β", "β = 2", "type", "no placement", "activation", "truncated"])
def test_what_does_not_fit_together_is_refused(tmp_path: Path, fault: str) -> None:
    """A file that lost its β would otherwise be sampled from as a linear one."""
    model = tiny()
    model.save_pretrained(tmp_path)
    weights, configuration = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    tensors, config = load_file(weights), json.loads(configuration.read_text())
    key = next(name for name in tensors if "afa_beta" in name)
    if fault == "no β":
        del tensors[key]
    elif fault == "β = 2":
        tensors[key] = torch.tensor(2.0)
    elif fault == "type":
        config["peft_type"] = "LORA"
    elif fault == "no placement":
        del config["placement"]
    elif fault == "activation":
        config["activation"] = "mine"
    save_file(tensors, weights)
    configuration.write_text(json.dumps(config))
    if fault == "truncated":
        weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(InvalidSettingError if fault == "activation" else CorruptedAdapterError):
        read_annealing(tmp_path)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_linear_for_a_while(placement: str, dora: bool) -> None:
    model, twin = tiny(placement=placement, use_dora=dora), tiny(placement=placement, use_dora=dora)
    state = anneal_states(model)["default"]
    state.set_step(5, 100)
    set_beta(twin, state.beta)
    before, place = {k: v.clone() for k, v in model.state_dict().items()}, (state.beta, 5, 100, True)
    x = torch.randn(32, 6)
    expected, annealed = linearize(twin, {"x": x}), model(x)
    with linearized(model, {"x": x}) as report:
        assert report == expected
        assert state.linear
        assert torch.equal(model(x), twin(x))
    assert torch.equal(model(x), annealed)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (state.beta, state.step, state.total_steps, state.driven) == place
    with pytest.raises(ZeroDivisionError), linearized(model, {"x": x}):
        _ = 1 / 0
    assert torch.equal(model(x), annealed)


def test_nothing_to_linearize() -> None:
    model = tiny()
    set_beta(model, 0.0)
    with pytest.raises(AfaLoraError, match="no active AFA adapter"), linearized(model, {"x": torch.randn(2, 6)}):
        pass
