"""Tasks of reasoning-gym: reproducible, disjoint, and clear about what cannot be made."""

from typing import Any

import pytest

from afa_lora.data import DataError, TaskData, load_data
from afa_lora.evaluation import score_for

CHAIN_SUM = {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}


def source(**changes: Any) -> TaskData:
    settings = {"task": "chain_sum", "options": CHAIN_SUM, "train_items": 200, "test_items": 50}
    return TaskData(source="reasoning-gym", **{**settings, **changes})


def test_the_same_seed_gives_the_same_items_and_none_twice() -> None:
    items = load_data(source())
    assert load_data(source()) == items
    assert load_data(source(seed=1)) != items
    questions = [sample.prompt[-1]["content"] for sample in items.train + items.test]
    assert len(set(questions)) == 250


def test_what_was_made_is_said() -> None:
    said: list[str] = []
    load_data(source(seed=3), said.append)
    assert said == ["chain_sum: 200 items to train on and 50 to test on, made with seed 3."]


def test_more_training_items_leave_the_test_items_as_they_are() -> None:
    assert load_data(source(train_items=400)).test == load_data(source()).test


def test_without_a_number_a_hundred_are_tested_on() -> None:
    assert len(load_data(source(test_items=None), [].append).test) == 100


def test_system_message() -> None:
    sample = load_data(source(system="Only the result.")).train[0]
    assert [message["role"] for message in sample.prompt] == ["system", "user"]
    assert [m["role"] for m in load_data(source()).train[0].prompt] == ["user"]


def test_the_task_scores_its_own_answers() -> None:
    sample, score = load_data(source()).test[0], score_for(source())
    assert score(sample.completion, sample) == 1.0
    assert score(f"{sample.completion}.00", sample) == 1.0
    assert score("no idea", sample) < 1.0
    assert score("", sample) < 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "chain_sums"}, r"data.task='chain_sums' is no task .* Did you mean 'chain_sum'\?"),
        ({"options": {"min_term": 2}}, r"data.options.min_term .* Did you mean 'min_terms'\?"),
        ({"options": {"min_terms": 9}}, "chain_sum refuses these values: max_terms must be >= min_terms"),
        ({"options": {"min_terms": "two"}}, "chain_sum refuses these values"),
        ({"options": {"seed": 2}}, "data.options.seed is no option"),
        ({"task": "rush_hour", "options": {}}, "has no single right answer"),
        ({"task": "coin_flip", "options": {}, "train_items": 1000}, "has only .* different items"),
    ],
)
def test_what_cannot_be_made(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(source(**changes))
