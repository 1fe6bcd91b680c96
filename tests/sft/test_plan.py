"""The plan of a recipe: what it says, what it refuses, and that it writes nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from afa_lora.core.errors import AfaLoraError
from afa_lora.sft import run_sft
from afa_lora.sft.planning.plan import Plan, plan_sft, print_plan
from afa_lora.sft.recipe import load_recipe, parse_recipe
from afa_lora.tuning.folder import RunFolder
from afa_lora.tuning.recipe import dump_recipe

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
    assert "1 up to step 0, 0 from step 2, linear" in printed(plan)


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
        ("q_prj", "no layer 'q_prj'. Did you mean 'q_proj'\\? Its linear layers are q_proj ×2"),
        ("(q_proj", "is no regular expression"),
        ("nothing.*", "Its linear layers are q_proj ×2"),
        (["lm_head"], "output layer"),
    ],
)
def test_targets_that_do_not_match(settings: dict[str, Any], targets: Any, message: str) -> None:
    settings["adapter"]["target_modules"] = targets
    with pytest.raises(AfaLoraError, match=message):
        planned(settings)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"packing": True, "max_length": None}, "train.packing=true needs train.max_length"),
        ({"report_to": "wandb"}, "train.report_to='wandb': WandbCallback requires wandb to be installed"),
        ({"report_to": "wandbb"}, "train.report_to='wandbb': wandbb is not supported"),
        ({"use_liger_kernel": True}, "pip install liger-kernel"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "through the train.lr_scheduler_kwargs"),
        ({"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"power": 2}}, "train: .*'power'"),
        ({"optim": "galore_adamw"}, "train: "),
    ],
)
def test_what_the_training_would_refuse(settings: dict[str, Any], train: dict[str, Any], message: str) -> None:
    settings["train"] |= train
    with pytest.raises(AfaLoraError, match=message):
        planned(settings)


def test_a_test_during_training_needs_items(settings: dict[str, Any]) -> None:
    settings["data"]["test_items"] = 0
    settings["train"]["eval_strategy"] = "epoch"
    with pytest.raises(AfaLoraError, match=r"train\.eval_strategy='epoch' needs test items"):
        planned(settings)


def test_test_items_that_are_cut_are_told(settings: dict[str, Any]) -> None:
    plan = planned(settings)
    assert plan.test_lengths is not None
    assert plan.test_lengths.items == 8
    assert "test items" not in printed(plan)
    settings["train"]["max_length"] = plan.test_lengths.longest - 1
    assert "8 test items" in printed(planned(settings))


def test_an_output_that_cannot_be_made(settings: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AfaLoraError, match="file is a file"):
        planned(settings, output=str(tmp_path / "file" / "run"))
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)  # root may write everywhere
    with pytest.raises(AfaLoraError, match="is not writable"):
        planned(settings, output=str(tmp_path / "new" / "run"))


def test_an_output_inside_a_run(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run").provenance.write_text("[]")
    with pytest.raises(AfaLoraError, match=r"lies inside the run .*run\."):
        planned(settings, output=str(tmp_path / "run" / "sub"))


def test_an_interrupted_run_goes_on_from_its_last_checkpoint(settings: dict[str, Any]) -> None:
    settings["train"] |= {"save_strategy": "steps", "save_steps": 8, "max_steps": 8}
    recipe, folder = parse_recipe(settings), RunFolder(Path(settings["output"]))
    folder.path.mkdir()
    folder.recipe.write_text(dump_recipe(recipe))
    assert "without a checkpoint, which starts anew" in printed(plan_sft(recipe, silent))
    run_sft(recipe)
    folder.results.unlink()
    plan = plan_sft(recipe, silent)
    assert plan.resumes == 8
    assert "goes on from step 8)" in printed(plan)


def test_small_sizes_have_small_units(settings: dict[str, Any]) -> None:
    plan = planned(settings)
    text = printed(replace(plan, speed=replace(plan.speed, seconds=0.02)))
    assert "GiB" not in text
    assert "TFLOP" not in text
    for unit in (" MiB", " ms: ", " GFLOP"):
        assert unit in text
    assert ("this machine has no GPU: the time is its CPU's" in text) == (not torch.accelerator.is_available())


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
    plan = plan_sft(recipe, silent)
    assert plan.step.weights == pytest.approx(2 * 8_030_261_248, rel=1e-6)  # bytes of the published 8.03 billion
    assert sum(plan.layers.values()) == 7 * 32
    assert plan.step.total < 80e9
    assert plan.step.work.flops > 3 * 2 * 6.9e9 * plan.step.tokens  # forward, forward again, backward through the input
    assert "TFLOP" in printed(plan)
