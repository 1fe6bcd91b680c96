"""Rewards: each rule against answers made by hand, functions by name, and faults that say where they are."""

import asyncio
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reasoning_gym
import torch
from trl.trainer.utils import get_callable_name, is_async_callable

from afa_lora.core.errors import AfaLoraError, InvalidSettingError
from afa_lora.data import Gsm8kData
from afa_lora.data.gsm8k import load_gsm8k
from afa_lora.data.prompts import pack_entry
from afa_lora.grpo.rewards import (
    RewardError,
    RewardFunction,
    checked,
    equal_groups,
    format_reward,
    gsm8k_reward,
    load_reward,
    math_reward,
    task_reward,
)
from tests.grpo.rewards_table import FORMS, NUMBERS, TASKS, Row

COUNT = len(NUMBERS)
PROMPTS = [[{"role": "user", "content": f"question {i}"}] for i in range(COUNT)]


def said(text: str) -> list[dict[str, str]]:
    """A completion as TRL gives it for a conversational prompt."""
    return [{"role": "assistant", "content": text}]


def judge(function: RewardFunction, **options: Any) -> list[float | None]:
    """What a reward function gives for the whole table at once."""
    answers = [row.right for row in NUMBERS]
    found: list[float | None] = function(PROMPTS, [said(row.text) for row in NUMBERS], answer=answers, **options)
    return found


def differing(found: list[float | None], wanted: list[float]) -> list[tuple[Row, float | None]]:
    return [(row, f) for row, f, w in zip(NUMBERS, found, wanted, strict=True) if f != w]


def test_numbers_by_each_rule() -> None:
    assert differing(judge(gsm8k_reward), [row.strict for row in NUMBERS]) == []
    assert differing(judge(gsm8k_reward, method="flexible"), [row.flexible for row in NUMBERS]) == []
    assert differing(judge(math_reward), [row.math for row in NUMBERS]) == []


def test_plain_text_is_judged_like_messages() -> None:
    texts, answers = [row.text for row in NUMBERS], [row.right for row in NUMBERS]
    assert gsm8k_reward(texts, texts, answer=answers) == judge(gsm8k_reward)
    assert format_reward(["", ""], ["<think>2</think><answer>4</answer>", "4"]) == [1.0, 0.0]


def test_a_completion_that_only_calls_a_tool_says_nothing() -> None:
    calls = [[{"role": "assistant", "content": None}], [{"role": "assistant", "tool_calls": []}], []]
    assert gsm8k_reward(calls, calls, answer=["1"] * 3, method="flexible") == [0.0] * 3


def test_credit_for_a_wrong_number_but_not_for_none() -> None:
    texts = ["#### 7", "#### 8", "8"]
    assert gsm8k_reward(texts, texts, answer=["7"] * 3, format_score=0.1) == [1.0, 0.1, 0.0]
    assert gsm8k_reward(["."], ["."], answer=["7"], method="flexible", format_score=0.1) == [0.1]  # as verl's


def test_form() -> None:
    texts = [text for text, _ in FORMS]
    assert [(text, found) for text, found in zip(texts, format_reward(texts, texts), strict=True)] == FORMS
    assert format_reward(texts, ["#### 7", "7\n#### 7", "7"], pattern=r".*#### \d+") == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(("question", "task", "right", "text", "wanted"), TASKS)
def test_task(question: str, task: str, right: str, text: str, wanted: float) -> None:
    entry = {"question": question, "answer": right, "metadata": {"source_dataset": task}}
    assert task_reward([question], [said(text)], entry=[pack_entry(entry)]) == [wanted]


def test_every_task_gives_its_own_answer_the_full_reward_after_packing() -> None:
    from reasoning_gym.factory import DATASETS

    entries = [
        reasoning_gym.create_dataset(task, size=1, seed=1)[0] for task in sorted(DATASETS) if task != "composite"
    ]
    entries = [entry for entry in entries if isinstance(entry["answer"], str)]
    assert len(entries) > 90
    answers = [entry["answer"] for entry in entries]
    found = task_reward(answers, answers, entry=list(map(pack_entry, entries)))
    low = {e["metadata"]["source_dataset"]: f for e, f in zip(entries, found, strict=True) if f != 1.0}
    assert low == {}


@pytest.mark.integration
def test_worked_answers_of_gsm8k_earn_the_full_reward(real_data: Path) -> None:
    source = Gsm8kData(source="gsm8k", folder=real_data / "gsm8k", test_items=1319)
    items = load_gsm8k(source, [].append)
    worked = [str(sample.entry["answer"]) for sample in items.train + items.test]
    numbers = [sample.completion for sample in items.train + items.test]
    assert set(gsm8k_reward(worked, worked, answer=numbers)) == {1.0}
    assert set(math_reward(worked[:100], worked[:100], answer=numbers[:100])) == {1.0}
    others = numbers[1:] + numbers[:1]
    assert 0 < sum(filter(None, gsm8k_reward(worked, worked, answer=others))) < 0.1 * len(worked)


def test_what_does_not_apply_is_none() -> None:
    assert task_reward(["?"], ["4"], entry=[pack_entry({"question": "?"})]) == [None]
    assert math_reward(["?", "?"], ["4", "4"], answer=["", "4"]) == [None, 1.0]


def test_math_outside_of_the_main_thread() -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(math_reward(["?"], ["#### 0.5"], answer=["\\frac{1}{2}"])))
    thread.start()
    thread.join()
    assert found == [[1.0]]


def test_math_gives_up_on_what_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afa_lora.grpo.rewards.mathematics.SECONDS", 1)
    assert math_reward(["?"], ["9**9**9**9"], answer=["72"]) == [0.0]


# --- by name ---

OWN = '''
"""Rewards of a user."""

def brevity(prompts, completions, limit=10, **columns):
    return [float(len(text) <= limit) for text in completions]

async def later(prompts, completions, **columns):
    return [0.5] * len(completions)

def closed(prompts, completions):
    return [0.5] * len(completions)

number = 3
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with modules of a user."""
    (tmp_path / "my_own_rewards.py").write_text(OWN)
    (tmp_path / "my_broken_rewards.py").write_text("raise OSError('no table here')")
    (tmp_path / "my_missing_rewards.py").write_text("import a_package_that_nobody_has")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # what an import adds is gone afterwards
    return tmp_path


def call(function: RewardFunction, *texts: str, **columns: Any) -> list[float | None]:
    """As TRL calls it."""
    prompts, completions = [f"question {i}" for i in range(len(texts))], list(texts)
    ids, more = [[0]] * len(texts), {"trainer_state": None, "log_extra": print, "log_metric": print}
    found: list[float | None] = function(
        prompts=prompts, completions=completions, completion_ids=ids, **more, **columns
    )
    return found


def test_built_in_by_name() -> None:
    function = load_reward("gsm8k", {"method": "flexible"})
    assert call(function, "it is 7", answer=["7"], entry=["{}"]) == [1.0]
    assert get_callable_name(function) == "gsm8k"
    assert not is_async_callable(function)


def test_own_by_module_and_function(own: Path) -> None:
    function = load_reward("my_own_rewards:brevity", {"limit": 3})
    assert call(function, "four", "two") == [0.0, 1.0]
    assert get_callable_name(function) == "my_own_rewards:brevity"


def test_own_async(own: Path) -> None:
    function = load_reward("my_own_rewards:later")
    assert is_async_callable(function)
    assert asyncio.run(call(function, "a", "b")) == [0.5, 0.5]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        ("gms8k", {}, ["'gms8k' is no reward function. Did you mean 'gsm8k'?", "task, gsm8k, math, format"]),
        ("gsm8k", {"methd": "flexible"}, ["gsm8k has no option 'methd'. Did you mean 'method'?", "format_score"]),
        ("gsm8k", {"method": "flexibel"}, ["method='flexibel' is not known", "Did you mean 'flexible'?"]),
        ("gsm8k", {"answer": "7"}, ["'answer' is passed by the trainer"]),
        ("task", {"limit": 1}, ["task has no option 'limit'", "It has: none."]),
        ("format", {"pattern": "(a"}, ["format: pattern='(a' is no regular expression"]),
        ("my_own_reward:brevity", {}, ["there is no module 'my_own_reward'", "Did you mean 'my_own_rewards'?"]),
        ("my_own_rewards:brevty", {}, ["has no function 'brevty'. Did you mean 'brevity'?", "my_own_rewards.py"]),
        ("my_own_rewards:number", {}, ["has no function 'number'"]),
        ("my_own_rewards:brevity", {"limt": 1}, ["has no option 'limt'. Did you mean 'limit'?"]),
        ("my_own_rewards:closed", {}, ["my_own_rewards:closed must take every column", "**columns"]),
        ("my_broken_rewards:f", {}, ["my_broken_rewards cannot be imported: OSError: no table here"]),
        ("my_missing_rewards:f", {}, ["cannot be imported: ModuleNotFoundError", "a_package_that_nobody_has"]),
    ],
)
def test_what_cannot_be_loaded(own: Path, name: str, options: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(InvalidSettingError) as caught:
        load_reward(name, options)
    for part in parts:
        assert part in str(caught.value)


# --- faults ---


def gives(value: Any) -> Callable[..., Any]:
    return lambda **columns: value


def twice(text: str) -> float:
    return 2 * float(text)


def doubles(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [twice(text) for text in completions]


async def later_doubles(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return doubles(prompts, completions)


@pytest.mark.parametrize(
    "value", [[1, 0.5], (True, 0.5), np.array([1, 0.5]), torch.tensor([1, 0.5]), [np.float32(1), torch.tensor(0.5)]]
)
def test_numbers_become_floats(value: Any) -> None:
    found = call(checked(gives(value), "mine"), "a", "b")
    assert found == [1.0, 0.5]
    assert [type(number) for number in found] == [float, float]


def test_none_is_allowed() -> None:
    assert call(checked(gives([None, 1]), "mine"), "a", "b") == [None, 1.0]


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ([0.5, float("nan"), 0.5], ["nan for prompt 2 of 3, 'question 1', answered 'b'", "finite number, or None"]),
        ([0.5, 0.5, float("-inf")], ["returned -inf for prompt 3 of 3, 'question 2'"]),
        ([torch.tensor(float("nan")), 1, 1], ["returned tensor(nan) for prompt 1 of 3"]),
        ([0.5, "0.5", 0.5], ["returned '0.5' for prompt 2 of 3"]),
        ([[0.5], 1, 1], ["returned [0.5] for prompt 1 of 3"]),
        ([0.5, 0.5], ["returned 2 rewards for 3 completions: [0.5, 0.5]."]),
        ([], ["returned 0 rewards for 3 completions"]),
        ([0.5] * 4, ["returned 4 rewards for 3 completions"]),
        (None, ["returned None, no list", "list of 3 numbers"]),
        (0.5, ["returned 0.5, no list"]),
        ({"a": 1}, ["returned {'a': 1}, no list"]),
        ("abc", ["returned 'abc', no list"]),
    ],
)  # fmt: skip
def test_what_is_no_list_of_numbers(value: Any, parts: list[str]) -> None:
    with pytest.raises(RewardError) as caught:
        call(checked(gives(value), "mine"), "a", "b", "c")
    for part in ["The reward function 'mine' ", *parts]:
        assert part in str(caught.value)


@pytest.mark.parametrize("function", [doubles, later_doubles])
def test_a_function_that_raises(function: RewardFunction) -> None:
    def run(*texts: str) -> list[float | None]:
        found: Any = call(checked(function, "mine"), *texts)
        return asyncio.run(found) if asyncio.iscoroutine(found) else found

    assert run("1", "2") == [2.0, 4.0]
    with pytest.raises(
        AfaLoraError, match=r"'mine' raised ValueError: could not convert string to float: 'two'"
    ) as caught:
        run("1", "two", "three")
    assert "for prompt 2 of 3, 'question 1', answered 'two'" in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_function_that_raises_for_all_together() -> None:
    def pairs(completions: list[str], **columns: Any) -> list[float]:
        if len(completions) > 1:
            raise RuntimeError("one at a time")
        return [1.0]

    with pytest.raises(RewardError, match=r"raised RuntimeError: one at a time \(for all of them together\)"):
        call(checked(pairs, "mine"), "a", "b")


def test_ctrl_c_in_a_function_is_ctrl_c() -> None:
    def interrupted(**columns: Any) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(checked(interrupted, "mine"), "a")


def test_excerpts_are_short() -> None:
    with pytest.raises(RewardError) as caught:
        call(checked(gives(["x" * 9999]), "mine"), "y" * 9999)
    assert len(str(caught.value)) < 500


# --- groups ---


@pytest.mark.parametrize(
    ("rewards", "size", "count"),
    [([0, 0, 1, 1], 2, 2), ([0, 1, 1, 1], 2, 1), ([0, 1, 1, 0], 2, 0), ([0.1] * 3, 3, 1), ([0, 1], 1, 2), ([], 4, 0)],
)  # fmt: skip
def test_groups_without_a_signal(rewards: list[float], size: int, count: int) -> None:
    assert equal_groups(rewards, size) == count


def test_groups_must_be_whole() -> None:
    with pytest.raises(InvalidSettingError, match="num_generations=2 does not divide the 3 completions"):
        equal_groups([0, 1, 0], 2)
