"""What a GRPO recipe may hold, and how its mistakes are told."""

from typing import Any

import pytest

from afa_lora.grpo.recipe import Recipe, parse_recipe
from afa_lora.settings import RecipeError
from afa_lora.tuning.recipe import dump_recipe

BASE = {"model": "smollm2-135m", "output": "runs/x", "data": {"source": "gsm8k"}, "rewards": "gsm8k"}


def mistake(**changes: Any) -> str:
    with pytest.raises(RecipeError) as refused:
        parse_recipe({**BASE, **changes})
    return str(refused.value)


@pytest.mark.parametrize("rewards", ["gsm8k", ["gsm8k"], {"function": "gsm8k"}, [{"function": "gsm8k"}]])
def test_one_reward_can_be_written_in_each_way(rewards: Any) -> None:
    (reward,) = parse_recipe({**BASE, "rewards": rewards}).rewards
    assert (reward.function, reward.weight, reward.options) == ("gsm8k", 1.0, {})


def test_what_is_dumped_reads_back_equal() -> None:
    recipe = parse_recipe({**BASE, "rewards": ["gsm8k", {"function": "format", "weight": 0.5}]})
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    assert "weight: 0.5" in dump_recipe(recipe)
    assert recipe.reward_weights == [1.0, 0.5]


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([{"function": "gsm8k", "wight": 2}], "rewards[0].wight: no such key. Did you mean 'weight'?"),
        (["task", {"weight": 2}], "rewards[1].function is needed."),
        ([{"function": "gsm8k", "weight": "two"}], "rewards[0].weight = 'two': it must be a number."),
        ([3], "rewards[0] = 3: it must be keys with values."),
        (["task", "task"], "task is there twice"),
        ([], "at least 1 item"),
    ],
)
def test_a_mistake_in_a_list_is_told_with_its_place(rewards: Any, message: str) -> None:
    assert message in mistake(rewards=rewards)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": {"lora_dropout": 0.05}}, "would compare two different policies"),
        ({"train": {"use_vllm": True}}, "train.use_vllm: this is set by rollout, not here."),
        (
            {"train": {"reward_weights": [1.0]}},
            "this is set by the weights of rewards, not here.",
        ),
        ({"train": {"num_generatons": 4}}, "Did you mean 'num_generations'?"),
        ({"rollout": "vllm"}, "it must be 'transformers', 'vllm-wait', 'vllm-linearized' or 'vllm-exact'."),
        ({"data": {"source": "commonsense"}}, "source = 'commonsense'"),
    ],
)
def test_what_does_not_go(changes: dict[str, Any], message: str) -> None:
    assert message in mistake(**changes)


def test_dropout_is_no_matter_without_an_adapter() -> None:
    assert parse_recipe({**BASE, "method": "full", "adapter": {"lora_dropout": 0.05}}).method == "full"
