"""The joint training: what the loss is a mean of, what is trained, noise, clipping, resuming, what is saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import smooth_l1_loss
from transformers import TrainerCallback

from afa_lora.eagle import run as run_module
from afa_lora.eagle.features import FeatureStore
from afa_lora.eagle.model import DraftError, load_draft
from afa_lora.eagle.recipe import parse_recipe
from afa_lora.eagle.target import TargetEnds, check_is_of
from afa_lora.eagle.trainer import EagleTrainer, add_noise, training_arguments
from tests.eagle.training import METHODS, make_settings, train


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_settings(tmp_path_factory.mktemp("training"))


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[EagleTrainer]:
    """The trainers of the runs, and nothing changed in them."""
    made: list[EagleTrainer] = []
    original = run_module.make_trainer

    def spy(*arguments: Any) -> EagleTrainer:
        made.append(original(*arguments))
        return made[-1]

    monkeypatch.setattr(run_module, "make_trainer", spy)
    return made


def reference(draft: Any, ends: TargetEnds, items: list[dict[str, Tensor]]) -> tuple[float, float]:
    """Loss and accuracy, one conversation and one position at a time, in float64."""
    draft, head, losses, agrees = draft.double().requires_grad_(False), ends.head.double(), [], []
    for item in items:
        t, f, said = item["tokens"], item["features"].double(), item["assistant"]
        predicted = draft(ends.embed(t[1:])[None].double(), f[None, :-1])[0]  # position i: t_{i+1}, f_i
        for i in range(len(t) - 2):
            if said[i + 1] and said[i + 2]:
                p, log_q = (head @ f[i + 1]).softmax(0), (head @ predicted[i]).log_softmax(0)
                losses.append(smooth_l1_loss(predicted[i], f[i + 1]) - 0.1 * (p * log_q).sum())
                agrees.append(float(p.argmax() == log_q.argmax()))
    return float(sum(losses) / len(losses)), sum(agrees) / len(agrees)


STILL = 1e-30
"""A learning rate that changes no float32 weight."""


def items_of(settings: dict[str, Any], split: str) -> list[dict[str, Tensor]]:
    store = FeatureStore.open(Path(settings["features"]["folder"]), split)
    return [store[index] for index in range(len(store))]


def test_loss_and_accuracy_are_the_means_over_the_positions_that_count(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    result = train(settings, tmp_path / "run", loss={"noise": 0})
    ends = TargetEnds.load(settings["model"])
    draft = load_draft(result.folder.draft)
    check_is_of(draft, ends)
    loss, accuracy = reference(draft, ends, items_of(settings, "test"))
    assert result.test is not None
    assert result.test["loss"] == pytest.approx(loss, abs=1e-5)
    assert result.test["accuracy"] == pytest.approx(accuracy, abs=1e-9)
    parts = result.test["feature_loss"] + 0.1 * result.test["token_loss"]
    assert result.test["loss"] == pytest.approx(parts, abs=1e-9)

    whole = {"per_device_train_batch_size": 12, "learning_rate": STILL, "max_steps": 1}
    first = train(settings, tmp_path / "first", start=str(result.folder.draft), loss={"noise": 0}, train=whole)
    loss, accuracy = reference(draft, ends, items_of(settings, "train"))
    assert first.curve.loss[0][1] == pytest.approx(loss, abs=1e-5)
    assert first.accuracy[0][1] == pytest.approx(accuracy, abs=1e-9)


def test_accumulating_gradients_changes_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    plain = {"optim": "sgd", "learning_rate": 0.5, "max_steps": 2, "lr_scheduler_type": "constant"}
    results = [
        train(
            settings,
            tmp_path / str(size),
            method="eagle",
            loss={"noise": 0, "value_clip": None},
            train={**plain, "per_device_train_batch_size": size, "gradient_accumulation_steps": 12 // size},
        )
        for size in (12, 4, 1)
    ]
    weights = [load_file(r.folder.draft / "model.safetensors") for r in results]
    for other, result in zip(weights[1:], results[1:], strict=True):
        assert all(torch.allclose(weights[0][name], other[name], atol=1e-6) for name in other)
        assert [loss for _, loss in result.curve.loss] == pytest.approx([loss for _, loss in results[0].curve.loss])
        assert result.tokens == results[0].tokens


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_trains_every_weight(
    settings: dict[str, Any], tmp_path: Path, trainers: list[EagleTrainer], method: str
) -> None:
    result = train(settings, tmp_path / "run", method=method, merge=False)
    draft = trainers[0].model
    torch.manual_seed(0)
    fresh = TargetEnds.load(settings["model"]).new_draft().state_dict()
    after = {name.replace(".base_layer", ""): value for name, value in draft.state_dict().items()}
    assert all(not torch.equal(fresh[name], after[name]) for name in fresh)
    adapted = {name for name in after if "lora_B" in name}
    assert len(adapted) == (0 if method == "eagle" else 8)  # fc among them
    assert all(after[name].any() for name in adapted)
    assert [beta > 0 for _, beta in result.curve.beta] == ([True] * 5 + [False] * 7 if "afa" in method else [])
    losses = [loss for _, loss, _ in result.held_out]
    assert len(losses) == 4  # one an epoch
    assert losses[-1] < 0.8 * losses[0]


def test_all_methods_start_from_the_same_draft_and_see_the_same_noise(settings: dict[str, Any], tmp_path: Path) -> None:
    steps = {"train": {"max_steps": 1}}
    first = [train(settings, tmp_path / method, method=method, **steps).curve.loss[0][1] for method in METHODS]
    assert first == pytest.approx([first[0]] * len(METHODS), abs=1e-6)


def test_noise_is_uniform_and_falls_with_the_length() -> None:
    features = torch.zeros(2, 400, 16)
    noise = add_noise(features, torch.tensor([512, 2048]), 0.2)
    for row, largest in zip(noise, (0.1, 0.025), strict=True):
        assert row.abs().max() <= largest
        assert row.std() == pytest.approx(2 * largest / 12**0.5, rel=0.05)
        assert row.mean().abs() < 0.05 * largest


def test_noise_is_in_the_training_alone(settings: dict[str, Any], tmp_path: Path, trainers: list[EagleTrainer]) -> None:
    still = {"learning_rate": STILL, "per_device_train_batch_size": 12}
    result = train(settings, tmp_path / "run", method="eagle", train=still)
    losses = [loss for _, loss in result.curve.loss]
    assert len(set(losses)) == len(losses)  # new noise every step
    assert len({loss for _, loss, _ in result.held_out}) == 1
    assert trainers[0].evaluate()["eval_loss"] == result.held_out[0][1]


class Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, *arguments: Any, model: Any, **kwargs: Any) -> None:
        self.seen.append({name: p.grad.clone() for name, p in model.named_parameters()})


def test_gradients_are_cut_by_value_once_they_are_complete(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, seen = 0.003, []
    original = run_module.make_trainer

    def watched(*arguments: Any) -> EagleTrainer:
        trainer = original(*arguments)
        seen.append(Gradients())
        trainer.add_callback(seen[-1])
        return trainer

    monkeypatch.setattr(run_module, "make_trainer", watched)
    steps = {"max_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 6}
    for clip in (None, limit):
        train(settings, tmp_path / str(clip), method="eagle", loss={"value_clip": clip}, train=steps)
    whole, cut = (gradients.seen[0] for gradients in seen)
    assert any((gradient.abs() > limit).any() for gradient in whole.values())
    assert all(torch.equal(cut[name], gradient.clamp(-limit, limit)) for name, gradient in whole.items())


def test_the_target_running_along_trains_the_same_draft(settings: dict[str, Any], tmp_path: Path) -> None:
    stored = train(settings, tmp_path / "stored")
    online = train(settings, tmp_path / "online", features={"folder": None}, train={"save_strategy": "epoch"})
    assert [v for _, v in online.curve.loss] == pytest.approx([v for _, v in stored.curve.loss], rel=1e-4)
    checkpoint = load_file(online.folder.checkpoints / "checkpoint-12" / "model.safetensors")
    assert {name.split(".")[0] for name in checkpoint} == {"fc", "layers"}  # nothing of the target


def test_the_targets_dtype_is_not_the_drafts(
    settings: dict[str, Any], tmp_path: Path, trainers: list[EagleTrainer]
) -> None:
    changes: dict[str, Any] = {"features": {"folder": None}, "load": {"dtype": "bfloat16"}}
    result = train(settings, tmp_path / "run", **changes, train={"bf16": False, "max_steps": 2})
    target = trainers[0]._target
    assert target is not None
    assert target.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in trainers[0].model.parameters()} == {torch.float32}
    assert not trainers[0].args.bf16
    assert result.merge is None or result.merge.max_feature_difference < 1e-5
    exact = train(settings, tmp_path / "exact", train={"max_steps": 2})
    assert [v for _, v in result.curve.loss] == pytest.approx([v for _, v in exact.curve.loss], rel=0.02)
    assert result.curve.loss != exact.curve.loss


class Interruption(Exception):
    pass


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Interruption


# Within the window, at the end of an epoch, and after the window.
@pytest.mark.parametrize(
    ("step", "method", "logging"),
    [
        (2, METHODS[3], "steps"),
        (3, METHODS[3], "epoch"),
        (8, METHODS[3], "steps"),
        (2, "eagle+dora", "steps"),
    ],
)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, method: str, logging: str
) -> None:
    steps = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 5, "gradient_accumulation_steps": 2}
    steps["logging_strategy"] = logging
    changes = {"method": method, "train": {**steps, "per_device_train_batch_size": 2, "num_train_epochs": 4}}
    whole = train(settings, tmp_path / "whole", **changes)
    original = run_module.make_trainer

    def interrupted(*arguments: Any) -> EagleTrainer:
        trainer = original(*arguments)
        trainer.add_callback(StopAfter(step))
        return trainer

    monkeypatch.setattr(run_module, "make_trainer", interrupted)
    with pytest.raises(Interruption):
        train(settings, tmp_path / "again", **changes)
    monkeypatch.setattr(run_module, "make_trainer", original)
    resumed = train(settings, tmp_path / "again", **changes)

    weights = [load_file(r.folder.draft / "model.safetensors") for r in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for part in ("curve", "accuracy", "held_out", "test", "tokens", "merge"):
        assert getattr(resumed, part) == getattr(whole, part)


def test_a_checkpoint_holds_the_whole_draft_its_beta_and_the_optimizer(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    saves = {"save_strategy": "steps", "save_steps": 3, "save_total_limit": 4}
    result = train(settings, tmp_path / "run", train=saves)
    during, after = (result.folder.checkpoints / f"checkpoint-{step}" for step in (3, 12))
    weights = load_file(during / "model.safetensors")
    assert weights.pop("afa_beta") == 0.5  # 6 steps of window
    assert weights.keys() == load_file(after / "model.safetensors").keys()  # at β = 0 it is left out
    assert sum("lora_" in name for name in weights) == 16
    assert sum("lora_" not in name for name in weights) == 9
    optimizer = torch.load(during / "optimizer.pt", weights_only=True)
    assert len(optimizer["state"]) == len(weights)
    with pytest.raises(DraftError, match="no merged draft"):
        load_draft(str(during))


def test_metrics_and_results_tell_everything(settings: dict[str, Any], tmp_path: Path) -> None:
    result = train(settings, tmp_path / "run")
    entries = [json.loads(line) for line in result.folder.metrics.read_text().splitlines()]
    training = [entry for entry in entries if "loss" in entry]
    assert [entry["step"] for entry in training] == [*range(1, 13)]
    assert training[0].keys() >= {"accuracy", "feature_loss", "token_loss", "tokens", "afa/beta", "learning_rate"}
    assert [e["step"] for e in entries if "eval_accuracy" in e] == [3, 6, 9, 12]
    assert "test_accuracy" in entries[-1]
    numbers = json.loads(result.folder.results.read_text())
    assert numbers["test"] == result.test
    assert numbers["merge"]["max_feature_difference"] < 1e-5
    assert numbers["tokens"] == training[-1]["tokens"] > 0
    assert numbers["tokens_per_second"] > 0
    assert len(numbers["loss"]) == len(numbers["accuracy"]) == len(numbers["beta"]) == 12
    assert numbers["data"]["train_items"] == 12
    assert result.folder.curves.read_bytes().startswith(b"\x89PNG")


def test_defaults_are_those_of_eagle_1(settings: dict[str, Any]) -> None:
    recipe = {key: value for key, value in settings.items() if key != "train"}
    args = training_arguments(parse_recipe(recipe))
    assert (args.learning_rate, args.adam_beta1, args.adam_beta2) == (3e-5, 0.9, 0.95)
    assert (args.num_train_epochs, args.max_grad_norm) == (50, 0.0)
    assert not args.bf16  # this CPU computes in float32
