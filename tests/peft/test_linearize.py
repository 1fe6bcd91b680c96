import pytest
import torch

from afa_lora import AfaLoraConfig, InvalidSettingError, linearize, merge, set_beta
from tests.peft.helpers import adapted, logits
from tests.reference import PLACEMENTS


def config(**options):
    return AfaLoraConfig(**{"r": 4, "target_modules": "all-linear", **options})


@pytest.fixture
def batches():
    return [{"input_ids": torch.randint(3, 96, (4, 16))} for _ in range(3)]


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("use_dora", [False, True])
def test_afterwards_the_adapter_is_linear_and_near(tiny_llama, token_ids, batches, placement, use_dora):
    model = adapted(tiny_llama, config(placement=placement, use_dora=use_dora, activation="silu"))
    set_beta(model, 0.5)
    annealing = logits(model, token_ids)
    set_beta(model, 0.0)
    just_dropped = logits(model, token_ids)
    set_beta(model, 0.5)
    report = linearize(model, batches)
    assert model.peft_config["default"].beta == 0.0
    near, far = ((m - annealing).norm() for m in (logits(model, token_ids), just_dropped))
    assert near < 0.8 * far  # much nearer than setting β = 0 and hoping
    assert len(report.relative_error) == 14
    assert all(0 < error < 1 for error in report.relative_error.values())
    _, merge_report = merge(model, {"input_ids": token_ids})
    assert merge_report.max_logit_difference <= 1e-5


def test_slopes_are_the_least_squares_solution(tiny_llama, batches):
    """One layer, A-σ-B: no other slope of a channel leaves a smaller sum of squares."""
    model = adapted(tiny_llama, config(target_modules=["layers.0.self_attn.q_proj"], activation="relu"))
    set_beta(model, 0.7)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    A = layer.lora_A["default"].weight.detach().clone()
    inputs = []
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(0, 1)))
    for batch in batches:
        logits(model, batch["input_ids"])
    handle.remove()
    z = torch.cat(inputs).double() @ A.double().T
    h = 0.7 * z.relu() + 0.3 * z
    expected = torch.linalg.lstsq(torch.block_diag(*z.T.unsqueeze(-1)), h.T.reshape(-1, 1)).solution.flatten()
    linearize(model, batches)
    torch.testing.assert_close(layer.lora_A["default"].weight, A * expected.float().unsqueeze(1))


def test_reported_loss_and_error_are_what_the_models_give(tiny_llama, batches):
    model = adapted(tiny_llama, config())
    set_beta(model, 1.0)

    def loss():
        with torch.no_grad():
            return sum(float(model(**b, labels=b["input_ids"]).loss) for b in batches) / len(batches)

    before = loss()
    report = linearize(model, batches)
    assert report.loss_before == pytest.approx(before, rel=1e-6)
    assert report.loss_after == pytest.approx(loss(), rel=1e-6)
    assert "linearized 14 layers" in str(report)
    assert f"{report.loss_after - report.loss_before:+.4f}" in str(report)


def test_a_linear_region_is_linearized_exactly(tiny_llama, token_ids, batches):
    """Leaky ReLU on channels that are positive everywhere is the identity: nothing may be lost."""
    model = adapted(tiny_llama, config(activation="leaky_relu", target_modules=["down_proj"]))
    set_beta(model, 0.9)
    for layer in model.base_model.model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda _, args: (args[0].abs(),))
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, args: (args[0].abs(),))
        layer.mlp.down_proj.lora_A["default"].weight.data.abs_()
    expected = logits(model, token_ids)
    report = linearize(model, batches)
    assert max(report.relative_error.values()) < 1e-6
    torch.testing.assert_close(logits(model, token_ids), expected, rtol=1e-4, atol=1e-5)


def test_padding_does_not_count(tiny_llama):
    tokens = torch.randint(3, 96, (2, 10))
    padded = torch.nn.functional.pad(tokens, (0, 6))
    mask = torch.nn.functional.pad(torch.ones_like(tokens), (0, 6))
    weights = []
    for batch in ({"input_ids": tokens}, {"input_ids": padded, "attention_mask": mask}):
        torch.manual_seed(3)
        model = adapted(type(tiny_llama)(tiny_llama.config), config())
        set_beta(model, 1.0)
        report = linearize(model, batch)
        weights.append((report, {n: p for n, p in model.named_parameters() if "lora_A" in n}))
    for name, weight in weights[0][1].items():
        torch.testing.assert_close(weights[1][1][name], weight, rtol=1e-4, atol=1e-6)
    assert weights[0][0].loss_before == pytest.approx(weights[1][0].loss_before, rel=1e-5)


def test_convolution():
    x = torch.randn(4, 3, 8, 8)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 6, 3)

        def forward(self, x):
            return self.conv(x)

    model = adapted(Net(), config(r=2, target_modules=["conv"], placement="σ-A-σ-B-σ"))
    set_beta(model, 0.5)
    with torch.no_grad():
        annealing = model(x=x)
        report = linearize(model, {"x": x})
        assert report.loss_before is None
        error = (model(x=x) - annealing).norm() / (annealing - model.base_model.model.conv.base_layer(x)).norm()
    assert float(error) == pytest.approx(next(iter(report.relative_error.values())), rel=1e-3)


def test_nothing_to_do_is_an_error(tiny_llama, batches):
    model = adapted(tiny_llama, config())
    with pytest.raises(InvalidSettingError, match="data is empty"):
        linearize(model, [])
    set_beta(model, 0.0)
    with pytest.raises(InvalidSettingError, match="no active AFA adapter with β > 0"):
        linearize(model, batches)
