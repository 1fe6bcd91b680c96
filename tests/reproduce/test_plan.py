"""The plan of an experiment: what it says, that it is what then happens, and that nothing is written."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from afa_lora.core.errors import InvalidSettingError
from afa_lora.reproduce.jobs import Experiment, load_experiment
from afa_lora.reproduce.plan import ExperimentPlan, plan_experiment
from afa_lora.reproduce.plan_text import print_plan
from afa_lora.settings import RecipeError
from afa_lora.sft import run_sft
from afa_lora.sft.planning.plan import plan_sft

RECIPES = Path(__file__).parents[2] / "recipes"
SHAPES = RECIPES / "shapes"


def planned(experiment: Experiment) -> ExperimentPlan:
    return plan_experiment(experiment, SHAPES, lambda text: None)


def printed(plan: ExperimentPlan) -> str:
    console = Console(width=160, record=True)
    print_plan(plan, console)
    return console.export_text()


def test_the_plan_is_what_the_training_then_does(experiment: Experiment, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    plan = planned(experiment)
    assert sorted(tmp_path.rglob("*")) == before
    job = experiment.jobs[1]
    result = run_sft(job.recipe)
    alone = plan_sft(job.recipe.model_copy(update={"output": tmp_path / "other"}), lambda text: None)
    cost = plan.costs["lora"]
    assert cost.rows.measured
    assert cost.rows.count == 32
    assert cost.steps == result.steps == alone.steps == 4
    assert cost.memory == alone.step.total
    assert cost.tokens == pytest.approx(4 / 8 * result.lengths["row_tokens"], abs=1)  # half an epoch
    assert 0.9 * cost.tokens < cost.flops / alone.step.work.flops * alone.step.tokens < 1.2 * cost.tokens
    assert [*cost.hours] == ["this cpu"]
    assert cost.hours["this cpu"] > 0


def test_a_method_may_have_a_batch_of_its_own(suite: Path, tasks: Path, tmp_path: Path) -> None:
    overrides = ["train.max_steps=-1", "methods.full.train.per_device_train_batch_size=8"]
    plan = planned(load_experiment(suite, "tiny", tmp_path, tasks, ["Full", "LoRA"], overrides=overrides))
    assert (plan.costs["full"].steps, plan.costs["lora"].steps) == (3 * 32 / 8, 3 * 32 / 4)
    assert plan.costs["full"].rows.padded >= plan.costs["lora"].rows.padded


def test_every_arm_is_printed_with_its_settings(experiment: Experiment) -> None:
    text = printed(planned(experiment))
    for row in (
        "Full full – – – 0.0001",
        "AFA-LoRA σ-A-B-σ afa-lora σ-A-B-σ relu linear 0%–30% 0.001",
        "DoRA dora – – – 0.001",
    ):
        assert row in " ".join(text.split())
    assert "afa-lora 2 4 " in " ".join(text.split())
    assert "0 of 5 runs are done" in text
    assert "timed on this machine's cpu" in text


def test_llama_3_8b_is_planned_without_data_weights_or_a_network() -> None:
    arms = ["AFA-LoRA A-σ-B", "AFA-LoRA σ-A-B"]
    experiment = load_experiment(RECIPES / "reproduce" / "table1.yaml", "paper", Path("nowhere"), arms=arms)
    plan = planned(experiment)
    for cost in plan.costs.values():
        assert not cost.rows.measured
        assert cost.steps == 3 * 10652  # ⌈170,420 / 16⌉ an epoch
        assert cost.tokens == 3 * 170_420 * 256
        assert cost.hours["H100 SXM"] == pytest.approx(cost.flops / (0.4 * 989e12) / 3600)
    assert 16 < plan.costs["afa-lora"].memory / 2**30 < 24  # the base weights in bfloat16 are 15 GiB
    assert plan.hours("H100 SXM") == pytest.approx(2 * plan.costs["afa-lora"].hours["H100 SXM"])
    text = printed(plan)
    for part in ("130,882,560", "170,420 items, each counted with the 256 tokens", "assumed, not measured"):
        assert part in text


@pytest.mark.slow
def test_all_of_table_1_is_planned_with_one_estimate_a_method() -> None:
    experiment = load_experiment(RECIPES / "reproduce" / "table1.yaml", "paper", Path("nowhere"))
    plan = planned(experiment)
    assert list(plan.costs) == ["full", "lora", "afa-lora", "dora", "afa-dora"]
    text = printed(plan)
    for arm in experiment.arms:
        assert f" {arm} " in text
    assert plan.costs["full"].memory > 16 * 8_030_261_248  # weights, gradients and two moments in float32


def test_a_setting_that_training_would_refuse_is_refused(suite: Path, tasks: Path, tmp_path: Path) -> None:
    experiment = load_experiment(suite, "tiny", tmp_path, tasks, overrides=["train.report_to=wandbb"])
    with pytest.raises(RecipeError, match="wandbb is not supported"):
        planned(experiment)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=no/such", "plan.shape=llama-3-8"], "plan.shape='llama-3-8' is not known.*Did you mean 'llama-3-8b'"),
        ([], "give --data, or set plan.items"),
        (["plan.items=100", "train.max_length=null"], "train.max_length is needed"),
    ],
)
def test_what_a_plan_without_data_needs(suite: Path, tmp_path: Path, overrides: Any, message: str) -> None:
    with pytest.raises(InvalidSettingError, match=message):
        planned(load_experiment(suite, "tiny", tmp_path, overrides=overrides))
