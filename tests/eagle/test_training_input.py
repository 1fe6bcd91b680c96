"""What a training refuses, one clear message each; and the dry run, which finds it without training."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from afa_lora import AfaLoraError
from afa_lora.eagle.planning import plan_eagle, print_plan
from afa_lora.eagle.recipe import parse_recipe
from afa_lora.eagle.target import TargetEnds
from afa_lora.settings import RecipeError
from afa_lora.tuning.failures import RunStopped, explained
from tests.eagle.conftest import make_target
from tests.eagle.training import METHODS, make_settings, train
from tests.tiny_chat import save_tiny_chat_model


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_settings(tmp_path_factory.mktemp("input"))


def refused(settings: dict[str, Any], output: Path, message: str, **changes: Any) -> None:
    """The training and its dry run refuse it in the same words, and nothing was trained."""
    with pytest.raises(AfaLoraError, match=message):
        train(settings, output, **changes)
    assert not (output / "checkpoints").exists()
    merged = {k: {**settings[k], **v} if isinstance(v, dict) and k in settings else v for k, v in changes.items()}
    with pytest.raises(AfaLoraError, match=message):
        plan_eagle(parse_recipe({**settings, "output": str(output), **merged}))


def test_features_that_are_not_there(settings: dict[str, Any], tmp_path: Path) -> None:
    refused(settings, tmp_path / "run", "Write them: afa eagle features", features={"folder": str(tmp_path / "none")})


@pytest.mark.parametrize("hidden", [32, 64])
def test_features_of_another_target(settings: dict[str, Any], tmp_path: Path, hidden: int) -> None:
    other = save_tiny_chat_model(tmp_path / "other", layers=1, hidden=hidden)
    message = "holds features of the target .* (with 32 numbers each|has other weights)"
    refused(settings, tmp_path / "run", message, model=str(other))


def test_features_in_another_template(settings: dict[str, Any], tmp_path: Path) -> None:
    target = Path(shutil.copytree(settings["model"], tmp_path / "target"))
    template = target / "chat_template.jinja"
    template.write_text(template.read_text().replace("['role'] }}", "['role'] }} says"))
    refused(settings, tmp_path / "run", "another chat template", model=str(target))


def test_features_of_another_length(settings: dict[str, Any], tmp_path: Path) -> None:
    refused(settings, tmp_path / "run", r"was written with data\.max_length=150", data={"max_length": 100})


def test_features_of_another_dtype_and_of_other_conversations(settings: dict[str, Any], tmp_path: Path) -> None:
    refused(settings, tmp_path / "run", r"was written with features\.dtype=float32", features={"dtype": "bfloat16"})
    refused(settings, tmp_path / "run", r"was written with load\.dtype=float32", load={"dtype": "bfloat16"})
    other = tmp_path / "other.jsonl"
    other.write_text(Path(settings["data"]["conversations"][0]).read_text() + "\n")
    changes = {"data": {"conversations": [str(other)]}}
    refused(settings, tmp_path / "run", "was written from other conversations", **changes)


def test_a_conversation_longer_than_the_target_that_runs_along_reads(settings: dict[str, Any], tmp_path: Path) -> None:
    target = Path(shutil.copytree(settings["model"], tmp_path / "target"))
    config = target / "config.json"
    config.write_text(config.read_text().replace('"max_position_embeddings": 512', '"max_position_embeddings": 64'))
    changes = {"model": str(target), "features": {"folder": None}}
    refused(settings, tmp_path / "run", r"reads at most 64\. Set data\.max_length=64", **changes)


def test_a_features_folder_that_is_a_file(settings: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    refused(settings, tmp_path / "run", r"features\.folder=.* is a file", features={"folder": str(file)})


def test_a_draft_for_another_target(settings: dict[str, Any], tmp_path: Path) -> None:
    TargetEnds.of(make_target("llama"), "another").new_draft().save_pretrained(tmp_path / "draft")
    refused(settings, tmp_path / "run", "trained for another target, another", start=str(tmp_path / "draft"))


def test_a_start_of_another_size_whose_target_is_not_known(settings: dict[str, Any], tmp_path: Path) -> None:
    other = TargetEnds.load(str(save_tiny_chat_model(tmp_path / "other", hidden=64))).new_draft()
    other.config.target_digest = None
    other.save_pretrained(tmp_path / "draft")
    refused(settings, tmp_path / "run", "hidden_size: the draft has 64, .* has 32", start=str(tmp_path / "draft"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": {"target_modules": ["w_query"]}}, "no layer 'w_query'.*fc"),
        ({"adapter": {"modules_to_save": ["fc"]}}, r"adapter\.modules_to_save"),
        ({"train": {"average_tokens_across_devices": False}}, "mean over all positions"),
        ({"train": {"fsdp": "full_shard"}}, "nothing to shard"),
        ({"load": {"quantization": "4bit"}}, "cannot be. Leave quantization out"),
        ({"evaluate": {"max_new_tokens": 5}}, "afa eagle eval"),
        ({"method": "lora"}, "eagle\\+lora"),
        ({"train": {"optim": "adamw_unknown"}}, "adamw_unknown"),
    ],
)
def test_settings_that_cannot_be_used(
    settings: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    refused(settings, tmp_path / "run", message, **changes)


def test_a_test_of_nothing_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    changes = {"features": {"folder": None}, "data": {"test_items": 0}, "train": {"eval_strategy": "epoch"}}
    refused(settings, tmp_path / "run", "needs held-out conversations", **changes)


def test_without_held_out_conversations_nothing_is_tested(settings: dict[str, Any], tmp_path: Path) -> None:
    changes = {"features": {"folder": None}, "data": {"test_items": 0}}
    result = train(settings, tmp_path / "run", train={"max_steps": 2}, **changes)
    assert result.test is None
    assert result.held_out == ()
    assert result.merge is not None


def test_exhausted_memory_names_settings_of_a_draft(settings: dict[str, Any], tmp_path: Path) -> None:
    recipe = parse_recipe({**settings, "output": str(tmp_path)})
    with (
        pytest.raises(RunStopped, match=r"batch_size=2.*loss\.chunk=512.*per_device_eval_batch_size=4"),
        explained(recipe, tmp_path / "checkpoints"),
    ):
        raise torch.OutOfMemoryError("out of memory")


def test_an_interrupted_run_does_not_go_on_with_another_loss(settings: dict[str, Any], tmp_path: Path) -> None:
    result = train(settings, tmp_path / "run", train={"save_strategy": "epoch"})
    with pytest.raises(RecipeError, match="holds a finished run"):
        train(settings, tmp_path / "run", train={"save_strategy": "epoch"})
    result.folder.results.unlink()
    with pytest.raises(RecipeError, match=r"another recipe.*\n  loss\.noise: 0\.2 → 0\.1"):
        train(settings, tmp_path / "run", train={"save_strategy": "epoch"}, loss={"noise": 0.1})


@pytest.mark.parametrize("method", METHODS)
def test_the_dry_run_counts_what_the_training_does(settings: dict[str, Any], tmp_path: Path, method: str) -> None:
    train_settings = {**settings["train"], "per_device_train_batch_size": 5, "save_strategy": "epoch"}
    whole = {**settings, "method": method, "output": str(tmp_path / "run"), "train": train_settings}
    plan = plan_eagle(parse_recipe(whole))
    assert not (tmp_path / "run").exists()
    result = train(whole, tmp_path / "run")
    assert plan.steps == result.steps == 12
    assert 4 * plan.tokens == result.tokens
    assert plan.conversations == (12, 3)
    assert 0 < plan.positions < plan.tokens
    checkpoint = result.folder.checkpoints / "checkpoint-12"
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"].values()
    tensors = [*load_file(checkpoint / "model.safetensors").values()]
    tensors += [state[key] for state in optimizer for key in ("exp_avg", "exp_avg_sq")]
    assert plan.checkpoint_bytes == sum(tensor.nbytes for tensor in tensors)
    assert (plan.window == (0, 6)) == ("afa" in method)

    console = Console(record=True, width=200)
    print_plan(plan, console)
    text = console.export_text()
    assert f"{plan.positions:,} of {plan.tokens:,} tokens" in text
    assert f"{plan.draft:,} parameters" in text
