"""The whole way with a tiny model: every method, resuming in the midst of a generation, and what is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from afa_lora import AfaLoraError
from afa_lora.grpo import run as run_module
from afa_lora.grpo.recipe import parse_recipe
from afa_lora.grpo.run import GrpoResult, run_grpo
from afa_lora.tuning.failures import RunStopped


def run(settings: dict[str, Any], **changes: Any) -> GrpoResult:
    return run_grpo(parse_recipe({**settings, **changes}))


@pytest.mark.parametrize("method", ["full", "lora", "dora", "afa-lora", "afa-dora"])
def test_every_method_learns_and_saves_a_model_that_loads(settings: dict[str, Any], method: str) -> None:
    settings["train"] |= {"max_steps": 20, "per_device_train_batch_size": 32}
    result = run(settings, method=method)
    assert result.rise is not None
    assert result.rise.last > result.rise.first + 0.1
    assert result.before is not None
    assert result.after is not None
    assert result.after.mean > result.before.mean
    assert result.logprob_difference is not None
    assert result.logprob_difference < 1e-5
    assert result.folder.curves.read_bytes().startswith(b"\x89PNG")
    assert [b > 0 for _, b in result.curve.beta] == ([True] * 9 + [False] * 11 if "afa" in method else [])
    AutoModelForCausalLM.from_pretrained(result.folder.model)
    if method != "full":
        assert result.merge is not None
        assert result.merge.max_logit_difference < 1e-4
        saved = json.loads((result.folder.adapter / "adapter_config.json").read_text())
        assert saved["peft_type"] == "LORA"
        assert "grpo" in ModelCard.load(result.folder.adapter / "README.md").data.tags


class Stop(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == self.step


class Interrupted(Exception):
    pass


def interrupt(settings: dict[str, Any], step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until after ``step``, whose checkpoint is the last thing that is left."""
    make = run_module.make_trainer

    def stopping(*args: Any) -> Any:
        trainer = make(*args)
        trainer.add_callback(Stop(step))
        return trainer

    def no_end(*args: Any) -> Any:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "make_trainer", stopping)
        patch.setattr(run_module._Run, "finish", no_end)
        with pytest.raises(Interrupted):
            run(settings)


# 24 prompts: an epoch is 12 steps of 2 prompts with 4 updates a generation of 8, or 3 steps of 8 prompts
@pytest.mark.parametrize(
    ("step", "train"),
    [
        (2, {"steps_per_generation": 4}),
        (3, {"steps_per_generation": 4}),
        (5, {"steps_per_generation": 4}),
        (3, {"gradient_accumulation_steps": 4}),
        (5, {"gradient_accumulation_steps": 4}),
        (7, {"gradient_accumulation_steps": 4, "num_iterations": 2}),
    ],
)
def test_resumed_equals_uninterrupted_in_the_midst_of_a_generation_and_of_a_later_epoch(
    settings: dict[str, Any], step: int, train: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings["train"] |= {"save_strategy": "steps", "save_steps": 1, "beta": 0.01, **train}
    whole = run(settings, output=str(tmp_path / "whole"))
    interrupt(settings, step, monkeypatch)
    again = run(settings)
    assert again.curve == whole.curve
    assert (again.groups, again.equal_groups) == (whole.groups, whole.equal_groups)
    one, two = (load_file(r.folder.adapter / "adapter_model.safetensors") for r in (whole, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_linear_policy_is_tested_apart_while_it_is_another(settings: dict[str, Any]) -> None:
    settings["train"] |= {"eval_strategy": "steps", "eval_steps": 2}
    result = run(settings)
    assert [step for step, _ in result.curve.validation] == [2, 4, 6, 8]
    assert [step for step, _ in result.curve.linear] == [2]  # from step 4 on β is 0
    entries = [json.loads(line) for line in result.folder.metrics.read_text().splitlines()]
    assert {"eval_reward", "eval_accuracy", "eval_linear_reward", "afa/beta"} <= entries[2].keys()


def test_equal_groups_are_counted_and_said(settings: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    result = run(settings, rewards=["own_rewards:same"])
    assert result.equal_groups == result.groups == 16
    assert "16 of 16 groups had equal rewards (100%)" in capsys.readouterr().out


def test_long_prompts_are_dropped_and_counted(settings: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    limit = len("<|im_start|>user\nSay 1.<|im_end|>\n<|im_start|>assistant\n") - 12 - 10 - 12 + 3
    result = run(settings, max_prompt_length=limit)
    assert 0 < result.dropped < 24
    assert f"of more than max_prompt_length={limit} tokens left out" in capsys.readouterr().out
    with pytest.raises(AfaLoraError, match="None of the 24 prompts fits into max_prompt_length=3"):
        run(settings, max_prompt_length=3, output=settings["output"] + "-2")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", "KeyError"),
        ("short", "1"),
        ("not_a_number", "nan"),
    ],
)
def test_a_faulty_reward_is_one_message_and_the_run_can_go_on(
    settings: dict[str, Any], function: str, message: str, tmp_path: Path
) -> None:
    settings["evaluate"]["before"] = False
    settings["train"] |= {"save_strategy": "steps", "save_steps": 2}
    source = tmp_path / "own_rewards.py"
    right = source.read_text()
    late = f"""
calls = []
def late(completions, **columns):
    calls.append(1)
    return ({function} if len(calls) > 4 else plain)(completions, **columns)
"""
    (tmp_path / f"late_{function}.py").write_text(right + late)
    with pytest.raises(RunStopped) as stopped:
        run(settings, rewards=[f"late_{function}:late"])
    assert f"late_{function}:late" in str(stopped.value)
    assert message in str(stopped.value)
    assert "The last good checkpoint is" in str(stopped.value)
    assert "goes on from there" in str(stopped.value)
    (tmp_path / f"late_{function}.py").write_text(right + late.replace("> 4", "> 400"))
    del sys.modules[f"late_{function}"]
    assert run(settings, rewards=[f"late_{function}:late"]).steps == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": {"lora_dropout": 0.05}}, "adapter.lora_dropout=0.05: each forward would draw another mask"),
        ({"rewards": "own_rewards:nothing"}, "nothing"),
        ({"rewards": "tsk"}, "task"),
        ({"train": {"num_generations": 3, "per_device_train_batch_size": 8}}, "num_generations"),
        ({"train": {"per_device_train_batch_size": 200, "num_generations": 4}}, "A generation is for 50 prompts"),
        ({"train": {"use_vllm": True}}, "this is set by rollout"),
        (
            {"train": {"gradient_accumulation_steps": 2, "steps_per_generation": 3}},
            "generations would end within steps",
        ),
        ({"train": {"disable_dropout": False}}, "train.disable_dropout=false"),
        ({"train": {"generation_kwargs": {"temperature": 3.0}}}, "Set train.temperature."),
        ({"train": {"generation_kwargs": {"num_beams": 2}}}, "not be sampled from the policy"),
        ({"train": {"sync_ref_model": True, "beta": 0.1}, "method": "full"}, "lost at a resume"),
        ({"train": {"beta": 0.1}, "adapter": {"init_lora_weights": "pissa"}, "method": "lora"}, "init_lora_weights"),
        ({"train": {"beta": 0.1}, "adapter": {"bias": "all"}}, "trained biases stay"),
        ({"train": {"metric_for_best_model": "loss"}}, "a test gives reward and accuracy"),
        ({"train": {"vllm_mode": "server"}}, "this is set by rollout and engine"),
        ({"train": {"chat_template_kwargs": {"x": 1}}}, "this is set by the chat template"),
        ({"rewards": [{"function": "own_rewards:plain", "weight": float("nan")}]}, "rewards[0].weight"),
        ({"train": {"use_transformers_continuous_batching": True}}, "Leave it out"),
        ({"data": {"test_items": 0}, "train": {"eval_strategy": "steps", "eval_steps": 2}}, "needs test items"),
        ({"method": "full", "rollout": "vllm-exact"}, "rollout"),
    ],
)
def test_what_cannot_be_run_is_refused(settings: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    for key, value in changes.items():
        settings[key] = {**settings.get(key, {}), **value} if isinstance(value, dict) else value
    with pytest.raises(AfaLoraError) as refused:
        run(settings)
    assert message in str(refused.value)


def test_what_trl_passes_is_there_in_a_test_too(settings: dict[str, Any], tmp_path: Path) -> None:
    source = (tmp_path / "own_rewards.py").read_text()
    logging = """
def logging(completions, trainer_state, log_extra, log_metric, **columns):
    log_metric("steps", trainer_state.global_step)
    log_extra("length", [len(c[0]["content"]) for c in completions])
    return plain(completions)
"""
    (tmp_path / "logging_rewards.py").write_text(source + logging)
    result = run(settings, rewards="logging_rewards:logging")
    assert result.before is not None
    assert result.after is not None


def test_a_generation_that_no_function_judges_is_an_error(settings: dict[str, Any], tmp_path: Path) -> None:
    nothing = "def nothing(completions, **columns):\n    return [None] * len(completions)\n"
    (tmp_path / "no_rewards.py").write_text(nothing)
    settings["evaluate"]["before"] = False
    with pytest.raises(RunStopped, match="None for all 8 completions"):
        run(settings, rewards="no_rewards:nothing")


def test_sampled_in_parts_a_generation_is_as_large(settings: dict[str, Any]) -> None:
    result = run(settings, rollout_batch_size=3)
    assert result.groups == 16
    assert result.logprob_difference is not None
    assert result.logprob_difference < 1e-5


@pytest.mark.parametrize("train", [{"load_best_model_at_end": True}, {"lr_scheduler_type": "reduce_lr_on_plateau"}])
def test_a_test_gives_the_metric_to_choose_by(settings: dict[str, Any], train: dict[str, Any]) -> None:
    saves = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    settings["train"] |= {**saves, **train}
    assert len(run(settings).curve.validation) == 4
