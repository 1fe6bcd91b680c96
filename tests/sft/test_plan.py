"""The plan of a recipe: what it says, what it refuses, and that it writes nothing."""

import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from afa_lora.core.errors import AfaLoraError
from afa_lora.sft import run_sft
from afa_lora.sft.planning.plan import Plan, plan_sft, print_plan
from afa_lora.sft.recipe import load_recipe, parse_recipe

PROJECT = Path(__file__).parents[2]


def silent(text: str) -> None:
    pass


def planned(settings: dict[str, Any], **changes: Any) -> Plan:
    return plan_sft(parse_recipe({**settings, **changes}), silent)


def printed(plan: Plan) -> str:
    console = Console(width=200, record=True, quiet=False)
    print_plan(plan, console)
    return console.export_text()


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_plan_is_what_the_training_then_does(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["train"] |= {"max_steps": -1, "num_train_epochs": 3, "gradient_accumulation_steps": 2}
    before = files(tmp_path)
    plan = planned(settings)
    assert files(tmp_path) == before
    result = run_sft(parse_recipe(settings))
    assert plan.steps == result.curve.loss[-1][0] == 6
    assert plan.lengths is not None
    assert plan.lengths.items == 32
    assert plan.window == (0.0, pytest.approx(1.8))
    assert plan.layers["q_proj"] == 2
    assert sum(plan.layers.values()) == 14
    assert plan.seconds_per_step > 0


@pytest.mark.parametrize("method", ["full", "lora", "afa-dora"])
def test_it_is_printed_part_by_part(settings: dict[str, Any], method: str) -> None:
    settings["adapter"] = {} if method == "full" else settings["adapter"]
    text = printed(planned(settings, method=method))
    for part in ("16 of 8 sequences", "base weights", "optimizer", "saved for the backward", "time in all", "(free)"):
        assert part in text
    assert ("no annealing" in text) == (method != "afa-dora")
    assert ("q_proj ×2" in text) == (method != "full")


def test_everything_that_is_wrong_is_said_at_once(settings: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "run"
    output.mkdir()
    (output / "thesis.tex").write_text("")
    settings["data"]["train"] = str(tmp_path / "nowhere.jsonl")
    settings["adapter"]["target_modules"] = ["q_porj"]
    with pytest.raises(AfaLoraError) as caught:
        planned(settings)
    message = str(caught.value)
    for part in ("thesis.tex", "nowhere.jsonl", "no layer 'q_porj'. Did you mean 'q_proj'?", "down_proj ×2"):
        assert part in message


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj", "w_v"], "no layer 'w_v'"),
        ("nothing.*", "Its linear layers are q_proj ×2"),
        (["lm_head"], "output layer"),
    ],
)
def test_targets_that_do_not_match(settings: dict[str, Any], targets: Any, message: str) -> None:
    settings["adapter"]["target_modules"] = targets
    with pytest.raises(AfaLoraError, match=message):
        planned(settings)


def test_a_window_that_outlasts_the_training_is_noted(settings: dict[str, Any]) -> None:
    plan = planned(settings, anneal={"anneal_end": 1000})
    assert any("β does not reach 0" in note for note in plan.notes)
    assert str(Path(settings["output"]) / "model") not in printed(plan)


def test_a_folder_with_a_config_alone_still_has_a_plan(settings: dict[str, Any], tmp_path: Path) -> None:
    shape = tmp_path / "shape"
    shape.mkdir()
    (shape / "config.json").write_bytes((Path(settings["model"]) / "config.json").read_bytes())
    plan = planned(settings, model=str(shape))
    assert plan.lengths is None
    assert plan.length == 1024
    assert any("weights (safetensors) and tokenizer" in note for note in plan.notes)


def test_llama_3_8b_is_planned_without_its_weights() -> None:
    recipe = load_recipe(
        PROJECT / "recipes/sft/llama3_8b.yaml",
        [f"model={PROJECT / 'recipes/shapes/llama-3-8b'}", "output=nowhere/llama"],
    )
    started = time.perf_counter()
    plan = plan_sft(recipe, silent)
    assert time.perf_counter() - started < 30
    assert plan.step.weights == pytest.approx(2 * 8_030_261_248, rel=1e-6)  # bytes of the published 8.03 billion
    assert sum(plan.layers.values()) == 7 * 32
    assert plan.step.total < 80e9
    assert plan.step.work.flops > 3 * 2 * 6.9e9 * plan.step.tokens  # forward, forward again, backward through the input
    assert "TFLOP" in printed(plan)
