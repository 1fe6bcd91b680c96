"""The merged draft is an ordinary one and the same function; a draft that cannot be merged is kept whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from afa_lora import NotLinearError, set_beta
from afa_lora.eagle import run as run_module
from afa_lora.eagle.adapter import train_jointly
from afa_lora.eagle.features import FeatureStore
from afa_lora.eagle.merging import merge_draft
from afa_lora.eagle.model import ADAPTED_LAYERS, DraftError, EagleConfig, EagleDraft, load_draft
from afa_lora.eagle.recipe import parse_recipe
from afa_lora.eagle.run import run_eagle
from afa_lora.eagle.target import TargetEnds, check_is_of
from afa_lora.eagle.trainer import EagleTrainer
from afa_lora.models import EMBEDDED
from afa_lora.peft.model import AfaLoraModel
from tests.eagle.test_model import TENSORS
from tests.eagle.training import METHODS, make_settings, train

WITH_ADAPTER = METHODS[1:]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_settings(tmp_path_factory.mktemp("merge"))


def adapted(ends: TargetEnds, method: str, **adapter: Any) -> tuple[EagleDraft, AfaLoraModel]:
    """A draft with an adapter whose B is not 0."""
    recipe = {"model": "tiny", "output": "run", "method": method, "data": {"conversations": []}}
    draft = ends.new_draft()
    tuner = train_jointly(draft, parse_recipe({**recipe, "adapter": {"r": 4, "lora_alpha": 8, **adapter}}))
    assert tuner is not None
    for name, parameter in draft.named_parameters():
        if "lora_B" in name or "magnitude" in name:
            torch.nn.init.normal_(parameter, mean=1.0 * ("magnitude" in name), std=0.1)
    return draft, tuner


@pytest.mark.parametrize("method", WITH_ADAPTER)
def test_merged_equals_unmerged_after_both_were_changed(ends: TargetEnds, method: str) -> None:
    draft, tuner = adapted(ends, method)
    if "afa" in method:
        set_beta(draft, 0.0)
    with torch.no_grad():  # as the training does
        for parameter in draft.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    embeddings, features = torch.randn(2, 2, 9, 32)
    before = draft.eval()(embeddings, features).detach()
    report = merge_draft(draft, tuner, ends, embeddings, features)
    assert set(draft.state_dict()) == TENSORS
    after = draft(embeddings, features).detach()
    assert report.max_feature_difference == (after - before).abs().max() < 1e-5
    assert report.max_feature == before.abs().max() > 0.1
    logits = ends.logits(after) - ends.logits(before)
    assert report.max_logit_difference == pytest.approx(float(logits.abs().max()), abs=1e-6)


def test_one_with_an_activation_is_not_merged_and_not_changed(ends: TargetEnds) -> None:
    draft, tuner = adapted(ends, "eagle+afa-lora")
    set_beta(draft, 0.25)
    before = {name: value.clone() for name, value in draft.state_dict().items()}
    with pytest.raises(NotLinearError, match=r"β = 0\.25"):
        merge_draft(draft, tuner, ends, *torch.randn(2, 1, 4, 32))
    assert all(torch.equal(value, before[name]) for name, value in draft.state_dict().items())


def test_every_linear_layer_is_adapted_and_everything_trained(ends: TargetEnds) -> None:
    draft, _ = adapted(ends, "eagle+afa-lora")
    linear = {name for name, module in draft.named_modules() if isinstance(module, torch.nn.Linear)}
    bases = {name.removesuffix(".base_layer").rpartition(".")[2] for name in linear if "lora_" not in name}
    assert bases == set(ADAPTED_LAYERS)
    assert sum(name.endswith("base_layer") for name in linear) == len(ADAPTED_LAYERS)
    assert all(parameter.requires_grad for parameter in draft.parameters())


@pytest.mark.parametrize("method", ["eagle+dora", "eagle+afa-dora"])
def test_doras_norm_is_that_of_the_trained_weight(ends: TargetEnds, method: str) -> None:
    draft, _ = adapted(ends, method)
    if "afa" in method:
        set_beta(draft, 0.0)
    layer = draft.fc
    draft.train()
    draft(*torch.randn(2, 1, 3, 32))  # what may be kept from the weight as it was
    with torch.no_grad():
        layer.base_layer.weight.add_(torch.randn_like(layer.base_layer.weight))
    draft.train()  # as every step of the Trainer does
    x = torch.randn(5, 64)
    W, A, B = (w.detach() for w in (layer.base_layer.weight, layer.lora_A.default.weight, layer.lora_B.default.weight))
    m = layer.lora_magnitude_vector.default.weight.detach()
    weight = W + 2.0 * B @ A  # s = 8 / 4
    by_formula: Tensor = (m / weight.norm(dim=1)) * (x @ weight.T)
    torch.testing.assert_close(layer(x).detach(), by_formula, atol=1e-5, rtol=1e-5)
    layer(x).sum().backward()
    expected = (m / weight.norm(dim=1))[:, None] * x.sum(0)  # the norm counts as a constant
    torch.testing.assert_close(layer.base_layer.weight.grad, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_an_ordinary_draft(settings: dict[str, Any], tmp_path: Path, method: str) -> None:
    result = train(settings, tmp_path / "run", method=method, train={"save_strategy": "epoch"})
    with safe_open(result.folder.draft / "model.safetensors", framework="pt") as saved:
        assert set(saved.keys()) == TENSORS
    ends = TargetEnds.load(settings["model"])
    draft = load_draft(result.folder.draft)
    check_is_of(draft, ends)
    item = FeatureStore.open(Path(settings["features"]["folder"]), "test")[0]
    inputs = ends.embed(item["tokens"][1:])[None], item["features"][None, :-1]
    unmerged = ends.new_draft()
    train_jointly(unmerged, parse_recipe({**settings, "method": method}))
    if "afa" in method:
        set_beta(unmerged, 0.0)
    unmerged.load_state_dict(load_file(result.folder.checkpoints / "checkpoint-12" / "model.safetensors"))
    torch.testing.assert_close(draft(*inputs), unmerged.eval()(*inputs), atol=1e-5, rtol=0)
    assert (result.merge is None) == (method == "eagle")
    if result.merge:
        assert result.merge.max_feature_difference < 1e-5


def test_a_window_that_outlasts_the_training_is_said_and_loses_nothing(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parse_recipe({**settings, "output": str(tmp_path / "run"), "anneal": {"anneal_end": 100}})
    made: list[EagleTrainer] = []
    original = run_module.make_trainer
    monkeypatch.setattr(run_module, "make_trainer", lambda *given: made.append(original(*given)) or made[0])
    result = run_eagle(recipe)
    assert result.merge is None
    assert result.test is not None
    assert not result.folder.draft.exists()
    weights = load_file(result.folder.unmerged / "model.safetensors")
    assert float(weights["afa_beta"]) == pytest.approx(1 - 12 / 100)
    assert sum("lora_" in name for name in weights) == 16
    printed = capsys.readouterr().out
    assert "Not merged" in printed
    assert str(result.folder.unmerged) in printed

    with pytest.raises(DraftError, match="no merged draft"):
        load_draft(str(result.folder.unmerged))
    draft = EagleDraft(EagleConfig.from_pretrained(result.folder.unmerged))
    config = PeftConfig.from_pretrained(str(result.folder.unmerged / "adapter"))
    AfaLoraModel(draft, config, "default")
    set_beta(draft, float(weights.pop("afa_beta")))
    draft.load_state_dict(weights)
    inputs = torch.randn(2, 1, 9, 32)
    trained = made[0].model.eval()
    torch.testing.assert_close(draft.eval()(*inputs), trained(*inputs), atol=1e-6, rtol=0)


def test_computing_in_half_precision_leaves_an_exact_merge(settings: dict[str, Any], tmp_path: Path) -> None:
    result = train(settings, tmp_path / "run", train={"bf16": True})
    draft = load_draft(str(result.folder.draft), dtype="auto")
    assert {parameter.dtype for parameter in draft.parameters()} == {torch.float32}
    assert result.merge is not None
    assert 0 < result.merge.max_feature_difference < 1e-5
    exact = train(settings, tmp_path / "exact")
    assert [v for _, v in result.curve.loss] == pytest.approx([v for _, v in exact.curve.loss], rel=0.05)
    assert result.curve.loss != exact.curve.loss


def test_it_can_be_trained_on(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(settings, tmp_path / "first")
    again = train(settings, tmp_path / "again", start=str(first.folder.draft), method="eagle+lora")
    monkeypatch.setenv("HOME", str(tmp_path))
    same = train(settings, tmp_path / "same", start="~/first", method="eagle+lora")
    assert same.curve == again.curve
    assert again.curve.loss[0][1] < first.curve.loss[0][1]


def test_merging_on_real_inputs(real_data: Path, tmp_path: Path) -> None:
    """SmolLM2-135M and a few real conversations: as much as a CPU trains in seconds."""
    settings = {
        "model": next(iter(EMBEDDED)),
        "method": "eagle+afa-lora",
        "output": str(tmp_path / "run"),
        "data": {
            "conversations": [str(real_data / "conversations" / "sharegpt_v3_part")],
            "limit": 4,
            "test_items": 2,
            "max_length": 96,
        },
        "adapter": {"r": 8},
        "anneal": {"anneal_end": 0.5},
        "train": {"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "save_strategy": "no"},
    }
    result = run_eagle(parse_recipe(settings))
    assert result.merge is not None
    assert result.merge.max_feature > 1
    assert result.merge.max_feature_difference < 1e-5 * result.merge.max_feature
    assert result.merge.max_logit_difference < 1e-5 * result.merge.max_logit
