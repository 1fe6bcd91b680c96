"""The dry run says what the training does, and refuses what it would refuse."""

from typing import Any

import pytest
from rich.console import Console

from afa_lora import AfaLoraError
from afa_lora.grpo.plan import plan_grpo, print_plan
from afa_lora.grpo.recipe import parse_recipe
from afa_lora.grpo.run import run_grpo


def printed(settings: dict[str, Any]) -> str:
    console = Console(record=True, width=160, quiet=True)
    console.quiet = False
    with console.capture() as captured:
        print_plan(plan_grpo(parse_recipe(settings), lambda line: None), console)
    return captured.get()


def test_it_counts_what_the_training_does(settings: dict[str, Any]) -> None:
    del settings["train"]["max_steps"]
    settings["train"] |= {"num_train_epochs": 2, "steps_per_generation": 4, "num_iterations": 2, "logging_steps": 1}
    settings["train"]["gradient_accumulation_steps"] = 2
    plan = plan_grpo(parse_recipe(settings), lambda line: None)
    result = run_grpo(parse_recipe(settings))
    assert plan.steps == result.steps
    assert plan.updates == 4
    assert plan.right_answers == (1.0,) * 8
    text = printed({**settings, "output": settings["output"] + "-2"})
    assert "8 prompts × 4 completions of at most 6 tokens, by transformers" in text
    assert "a generation serves 4" in text
    assert "held for 4 steps at a time" in text
    assert "mean reward 1.000" in text


def test_a_reward_that_fails_is_told_before_the_training(settings: dict[str, Any]) -> None:
    with pytest.raises(AfaLoraError, match=r"broken.*KeyError"):
        plan_grpo(parse_recipe({**settings, "rewards": "own_rewards:broken"}), lambda line: None)


def test_an_interrupted_run_is_told(settings: dict[str, Any]) -> None:
    run_grpo(parse_recipe(settings))
    with pytest.raises(AfaLoraError, match="holds a finished run"):
        plan_grpo(parse_recipe(settings), lambda line: None)
