"""What a run leaves behind: metrics, events, provenance, cards."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from afa_lora.data import load_data
from afa_lora.running.metrics import read_metrics
from afa_lora.sft import RecipeError, SftResult, parse_recipe, run_sft
from afa_lora.tuning.card import write_cards
from tests.tiny_chat import save_tiny_chat_model


@pytest.fixture
def result(settings: dict[str, Any]) -> SftResult:
    settings["anneal"] = {"anneal_end": 8}
    settings["train"] |= {"save_strategy": "steps", "save_steps": 4}
    return run_sft(parse_recipe(settings))


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_metrics_and_events_hold_the_whole_training_with_beta(result: SftResult) -> None:
    steps = [entry for entry in read_metrics(result.folder.metrics) if "loss" in entry]
    assert [entry["step"] for entry in steps] == list(range(1, 17))
    assert [entry["afa/beta"] for entry in steps] == [max(0.0, 1 - step / 8) for step in range(1, 17)]
    assert [(entry["step"], entry["loss"]) for entry in steps] == list(result.curve.loss)
    seconds = [entry["seconds"] for entry in steps]
    assert seconds == sorted(seconds)
    for name, key in (("train/loss", "loss"), ("train/afa/beta", "afa/beta")):
        logged = dict(scalars(result.folder.tensorboard, name))
        assert logged == {entry["step"]: pytest.approx(entry[key], rel=1e-6) for entry in steps}
    test_loss = [entry["test_loss"] for entry in read_metrics(result.folder.metrics) if "test_loss" in entry]
    assert test_loss == [result.test_loss]


def test_a_resumed_run_has_every_step_once_and_goes_on_counting(settings: dict[str, Any], result: SftResult) -> None:
    before = read_metrics(result.folder.metrics)
    result.folder.results.unlink()
    for step in (12, 16):
        (result.folder.checkpoints / f"checkpoint-{step}" / "sealed.json").unlink()
    with result.folder.metrics.open("a") as metrics:
        metrics.write('{"step": 17, "lo')  # killed while it wrote
    again = run_sft(parse_recipe(settings))
    after = read_metrics(again.folder.metrics)
    for key in ("step", "loss", "num_tokens", "test_loss", "afa/beta"):
        assert [entry.get(key) for entry in after] == [entry.get(key) for entry in before]
    assert after[:8] == before[:8]
    assert after[8]["seconds"] > after[7]["seconds"]
    assert [step for step, _ in scalars(result.folder.tensorboard, "train/loss")] == list(range(1, 17))
    starts = json.loads(again.folder.provenance.read_text())
    assert len(starts) == 2
    assert starts[0]["data"] == starts[1]["data"]


def test_provenance_says_command_versions_git_state_and_data(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(repository)]
    subprocess.run(["git", "init", "--quiet", str(repository)], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "first"], check=True)
    (repository / "new").touch()
    monkeypatch.chdir(repository)
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py"])
    settings["train"]["max_steps"] = 1
    [start] = json.loads(run_sft(parse_recipe(settings)).folder.provenance.read_text())
    assert start["command"] == ["python", "train.py"]
    assert len(start["git"]["commit"]) == 40
    assert start["git"]["changed_files"] == 1
    assert start["data"]["train_items"] == 32
    assert {"torch", "transformers", "peft", "trl", "afa-lora", "python"} <= start["environment"].keys()


def test_the_cards_say_what_it_is_how_it_was_made_and_how_to_load_it(
    settings: dict[str, Any], result: SftResult
) -> None:
    for folder, library in ((result.folder.adapter, "peft"), (result.folder.model, "transformers")):
        card = ModelCard.load(folder / "README.md")
        assert card.data.base_model == settings["model"]
        assert card.data.library_name == library
        for part in ("A-σ-B", "over steps 0 to 8 of 16", "100.0% of 8", "arXiv:2512.22455", f"{result.test_loss:.4f}"):
            assert part in card.text
        recipe = yaml.safe_load(card.text.split("```yaml\n")[1].split("```")[0])
        assert recipe == yaml.safe_load(result.folder.recipe.read_text())
    assert "None" not in ModelCard.load(result.folder.adapter / "README.md").text


def test_the_code_in_a_card_runs(result: SftResult, tmp_path: Path) -> None:
    for folder in (result.folder.adapter, result.folder.model):
        code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
        scope: dict[str, Any] = {}
        exec(code.replace("path/to/this/folder", str(folder)), scope)
        assert scope["model"].num_parameters() > 0


def test_an_adapter_that_still_anneals_says_so_in_its_card(settings: dict[str, Any]) -> None:
    result = run_sft(parse_recipe({**settings, "anneal": {"anneal_end": 1000}}))
    text = (result.folder.adapter / "README.md").read_text()
    assert "still annealing" in text
    assert "| β now | 0.984 |" in text
    assert "from afa_lora import load_adapter" in text


def test_without_merge_there_is_no_merged_model(settings: dict[str, Any]) -> None:
    result = run_sft(parse_recipe({**settings, "merge": False}))
    assert result.merge is None
    assert not result.folder.model.exists()
    assert result.after is not None


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_quantised_base_is_merged_as_it_was_before(
    settings: dict[str, Any], quantization: str, tmp_path: Path
) -> None:
    settings["model"] = str(save_tiny_chat_model(tmp_path / "model", hidden=128))  # bitsandbytes works in blocks of 64
    result = run_sft(parse_recipe({**settings, "load": {"quantization": quantization}}))
    assert result.merge is not None
    assert result.merge.max_logit_difference < 1e-3
    merged, base = (
        load_file(Path(folder) / "model.safetensors") for folder in (result.folder.model, settings["model"])
    )
    name = "model.embed_tokens.weight"
    assert merged[name].equal(base[name])  # no adapter there, so not a bit may have changed
    assert all(tensor.dtype == base[key].dtype for key, tensor in merged.items())


@pytest.mark.parametrize("logging", [{"logging_steps": 10}, {"logging_strategy": "no"}])
def test_a_run_that_logs_little_or_nothing_ends_well_and_its_card_counts_every_step(
    settings: dict[str, Any], logging: dict[str, Any]
) -> None:
    del settings["train"]["logging_steps"]
    settings["train"] |= {"max_steps": 15, **logging}
    result = run_sft(parse_recipe(settings))
    card = (result.folder.adapter / "README.md").read_text()
    assert "| optimizer steps | 15 |" in card
    assert "over steps 0 to 4.5 of 15" in card


def test_logs_between_checkpoints_are_whole_after_a_resume(settings: dict[str, Any]) -> None:
    settings["train"] |= {"save_strategy": "steps", "save_steps": 5, "logging_steps": 4}
    result = run_sft(parse_recipe(settings))
    before = read_metrics(result.folder.metrics)
    result.folder.results.unlink()
    (result.folder.checkpoints / "checkpoint-16" / "sealed.json").unlink()
    (result.folder.checkpoints / "checkpoint-15" / "sealed.json").unlink()
    after = read_metrics(run_sft(parse_recipe(settings)).folder.metrics)
    for key in ("step", "loss", "num_tokens", "entropy", "mean_token_accuracy", "afa/beta"):
        assert [entry.get(key) for entry in after] == [entry.get(key) for entry in before]


def test_what_does_not_change_the_training_may_change_before_it_goes_on(settings: dict[str, Any]) -> None:
    settings["train"] |= {"save_strategy": "steps", "save_steps": 4}
    result = run_sft(parse_recipe(settings))
    result.folder.results.unlink()
    settings["train"] |= {"save_total_limit": 2, "save_steps": 8}
    again = run_sft(parse_recipe({**settings, "output": f"{settings['output']}/../run"}))
    assert yaml.safe_load(again.folder.recipe.read_text())["train"]["save_total_limit"] == 2


def test_a_finished_adapter_is_not_overwritten_by_another_recipe(settings: dict[str, Any]) -> None:
    result = run_sft(parse_recipe(settings))  # no checkpoints
    result.folder.results.unlink()
    settings["train"]["learning_rate"] = 0.5
    with pytest.raises(RecipeError, match="of another recipe"):
        run_sft(parse_recipe(settings))


def test_another_number_of_processes_does_not_go_on(settings: dict[str, Any]) -> None:
    result = run_sft(parse_recipe(settings))
    result.folder.results.unlink()
    starts = json.loads(result.folder.provenance.read_text())
    starts[-1]["environment"]["processes"] = 4
    result.folder.provenance.write_text(json.dumps(starts))
    with pytest.raises(RecipeError, match="an interrupted run of 4 processes, now there are 1"):
        run_sft(parse_recipe(settings))


def test_cards_name_an_embedded_model_by_its_origin_and_a_fully_trained_one_as_a_model(
    settings: dict[str, Any], result: SftResult
) -> None:
    recipe = parse_recipe({**settings, "model": "smollm2-135m"})
    write_cards(recipe, load_data(recipe.data), result.folder, result.steps, [], result.merge)
    card = ModelCard.load(result.folder.adapter / "README.md")
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "load_model('smollm2-135m')" in card.text
    full = run_sft(parse_recipe({**settings, "method": "full", "output": settings["output"] + "-full"}))
    assert "This folder holds the model." in (full.folder.model / "README.md").read_text()
