"""The whole way, with a tiny model: every method, resuming, and a window that outlasts the training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from afa_lora import AfaLoraError
from afa_lora.models import ModelError
from afa_lora.sft import RecipeError, SftResult, parse_recipe, run_sft
from afa_lora.sft import run as run_module
from tests.tiny_chat import without_chat_template


def run(settings: dict[str, Any], **changes: Any) -> SftResult:
    return run_sft(parse_recipe({**settings, **changes}))


@pytest.mark.parametrize("method", ["full", "lora", "dora", "afa-lora", "afa-dora"])
def test_every_method_learns_and_saves_a_model_that_loads(settings: dict[str, Any], method: str) -> None:
    result = run(settings, method=method)

    losses = [loss for _, loss in result.curve.loss]
    assert losses[-1] < 0.5 * losses[0]
    assert result.after is not None
    assert result.after.share == 1.0
    assert result.before is not None
    assert result.before.share == 0.0
    assert result.folder.curves.read_bytes().startswith(b"\x89PNG")
    assert [b > 0 for _, b in result.curve.beta] == ([True] * 4 + [False] * 12 if method.startswith("afa") else [])

    model = AutoModelForCausalLM.from_pretrained(result.folder.model)
    tokenizer = AutoTokenizer.from_pretrained(result.folder.model)
    inputs = tokenizer("Say yes to 3.", return_tensors="pt")
    if method == "full":
        assert not result.folder.adapter.exists()
        return
    assert result.merge is not None
    assert result.merge.max_logit_difference < 1e-4
    saved = json.loads((result.folder.adapter / "adapter_config.json").read_text())
    assert saved["peft_type"] == "LORA"
    assert "beta" not in saved
    base = AutoModelForCausalLM.from_pretrained(settings["model"])
    adapted = PeftModel.from_pretrained(base, result.folder.adapter)
    torch.testing.assert_close(adapted(**inputs).logits, model(**inputs).logits, atol=1e-4, rtol=0)


def test_results_file_tells_numbers_data_and_environment(settings: dict[str, Any]) -> None:
    result = run(settings)
    numbers = json.loads(result.folder.results.read_text())
    assert numbers["accuracy_after"] == {"correct": 8, "items": 8, "interval_95": [pytest.approx(0.6756, abs=1e-3), 1]}
    assert numbers["data"]["train_items"] == 32
    assert len(numbers["loss"]) == 16
    assert numbers["environment"]["torch"] == torch.__version__
    answers = [json.loads(line) for line in result.folder.answers.read_text().splitlines()]
    assert {answer["given"] for answer in answers} == {"yes"}


def test_lora_and_afa_lora_start_from_the_same_adapter_and_see_the_same_data(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    original = run_module.make_trainer

    def spy(model: Any, tokenizer: Any, items: Any, args: Any, recipe: Any) -> Any:
        trainer = original(model, tokenizer, items, args, recipe)
        weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        batches = [batch["input_ids"] for batch in trainer.get_train_dataloader()]
        started.append((weights, batches))
        return trainer

    monkeypatch.setattr(run_module, "make_trainer", spy)
    for method in ("lora", "afa-lora"):
        run(settings, method=method, output=f"{settings['output']}-{method}")
    (lora, lora_batches), (afa, afa_batches) = started
    assert lora.keys() == afa.keys()
    assert all(torch.equal(lora[name], afa[name]) for name in lora)
    assert all(torch.equal(a, b) for a, b in zip(lora_batches, afa_batches, strict=True))


def test_loss_is_on_the_completion_alone(settings: dict[str, Any], learnt: set[str]) -> None:
    run(settings)
    assert learnt == {"yes<|im_end|>\n"}


def test_items_that_are_cut_off_are_counted(settings: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    data = Path(settings["data"]["train"])
    data.write_text(data.read_text().replace("Say yes to 7.", "Say yes to " + "7" * 400))
    settings["train"]["max_length"] = 100
    run(settings)
    assert (
        "1 of 32 training items has no completion token within max_length 100 and is dropped" in capsys.readouterr().out
    )


def test_a_window_that_outlasts_the_training_is_said_and_not_merged(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(settings, anneal={"anneal_end": 1000})
    assert result.merge is None
    assert result.after is not None
    assert not result.folder.model.exists()
    saved = json.loads((result.folder.adapter / "adapter_config.json").read_text())
    assert saved["peft_type"] == "AFA_LORA"
    assert saved["beta"] == pytest.approx(1 - 16 / 1000)
    printed = capsys.readouterr().out
    assert "Not merged" in printed
    assert "linearize" in printed


class Interruption(Exception):
    pass


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Interruption


# In the middle of an epoch; at its end, where a test draws random numbers between the steps.
@pytest.mark.parametrize(
    ("step", "changes"),
    [(3, {}), (4, {"eval_strategy": "epoch"}), (4, {"logging_strategy": "epoch"}), (16, {"eval_strategy": "epoch"})],
)
def test_an_interrupted_run_goes_on_and_ends_like_an_uninterrupted_one(
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: int,
    changes: dict[str, Any],
) -> None:
    settings["train"] |= {"save_strategy": "steps", "save_steps": 1, **changes}
    settings["adapter"] = {**settings.get("adapter", {}), "lora_dropout": 0.1}
    settings["anneal"] = {"anneal_end": 0.6}
    whole = run(settings)

    again = {**settings, "output": settings["output"] + "-again"}
    original = run_module.make_trainer

    def interrupted(*arguments: Any) -> Any:
        trainer = original(*arguments)
        trainer.add_callback(StopAfter(step))
        return trainer

    monkeypatch.setattr(run_module, "make_trainer", interrupted)
    with pytest.raises(Interruption):
        run(again)
    monkeypatch.setattr(run_module, "make_trainer", original)
    resumed = run(again)

    assert "Going on from" in capsys.readouterr().out
    assert resumed.curve == whole.curve
    assert held_out(resumed) == held_out(whole)
    assert len(held_out(whole)) == (4 if "eval_strategy" in changes else 0)
    weights = [load_file(r.folder.adapter / "adapter_model.safetensors") for r in (whole, resumed)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def held_out(result: SftResult) -> dict[int, float]:
    """The losses on held-out items, by step."""
    entries = [json.loads(line) for line in result.folder.metrics.read_text().splitlines()]
    return {entry["step"]: entry["eval_loss"] for entry in entries if "eval_loss" in entry}


@pytest.mark.parametrize("most", [8, 6])
def test_an_epochs_log_and_test_are_done_once_and_at_the_very_end(settings: dict[str, Any], most: int) -> None:
    settings["train"] |= {"eval_strategy": "epoch", "logging_strategy": "epoch", "max_steps": most}
    result = run(settings)
    assert [*held_out(result)] == [4, most]
    assert [step for step, _ in result.curve.loss] == [4, most]


def test_a_folder_is_not_used_twice(settings: dict[str, Any]) -> None:
    run(settings)
    with pytest.raises(RecipeError, match="holds a finished run"):
        run(settings)


def test_an_interrupted_run_does_not_go_on_with_other_settings(settings: dict[str, Any]) -> None:
    settings["train"] |= {"save_strategy": "steps", "save_steps": 8}
    Path(run(settings).folder.results).unlink()
    settings["train"]["learning_rate"] = 0.5
    with pytest.raises(RecipeError, match=r"another recipe.*\n  train\.learning_rate: 0\.02 → 0\.5"):
        run(settings)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("anneal", {"placement": "B-σ-A"}, "placement"),
        ("anneal", {"activation": "sigmoid"}, "activation"),
        ("anneal", {"schedule": "linaer"}, "Did you mean 'linear'"),
        ("anneal", {"anneal_start": 0.5, "anneal_end": 0.5}, "anneal_end=0.5 must come after"),
        ("adapter", {"r": 0}, "adapter.r = 0"),
        ("adapter", {"target_modules": ["w_query"]}, "w_query"),
        ("train", {"eval_strategy": "sometimes"}, "sometimes"),
        ("train", {"packing": True, "max_length": None}, "max_length"),
        ("train", {"max_length": 4}, "train.max_length=4 is too small"),
    ],
)
def test_what_a_library_refuses_becomes_one_message(
    settings: dict[str, Any], section: str, change: dict[str, Any], message: str
) -> None:
    settings.setdefault(section, {}).update(change)
    with pytest.raises(AfaLoraError, match=message):
        run(settings)


def test_a_model_without_chat_template_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    plain = without_chat_template(settings["model"], tmp_path / "plain")
    with pytest.raises(ModelError, match="has no chat template"):
        run(settings, model=str(plain))


def test_a_model_that_is_not_there(settings: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="there is no such folder"):
        run(settings, model="./no/such/model")
