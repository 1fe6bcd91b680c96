"""The files of reproductions: those that come with the package, what they mean, and what is refused."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from afa_lora.core.errors import InvalidSettingError
from afa_lora.core.placement import PLACEMENTS
from afa_lora.data.commonsense import TASKS
from afa_lora.reproduce.jobs import Experiment, load_experiment
from afa_lora.reproduce.suite import read_suite, slug
from afa_lora.settings import RecipeError, dump_yaml
from afa_lora.sft import load_recipe
from afa_lora.tuning.recipe import dump_recipe

FILES = Path(__file__).parents[2] / "recipes" / "reproduce"
SCALES = ("paper", "small", "tiny")


def load(name: str, scale: str, *overrides: str, **options: Any) -> Experiment:
    return load_experiment(FILES / f"{name}.yaml", scale, Path("out"), overrides=overrides, **options)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["table1", "table4"])
def test_every_scale_of_every_suite_is_whole(name: str, scale: str) -> None:
    experiment = load(name, scale)
    assert experiment.scale.deviations
    for job in experiment.jobs:
        assert job.recipe.train["chat_template_path"] == "alpaca"
        assert job.recipe.train["seed"] == job.seed
        assert not job.recipe.merge
        assert not job.recipe.evaluate.before


def test_table_1_has_its_17_arms() -> None:
    experiment = load("table1", "paper")
    arms = experiment.arms
    assert len(arms) == 17
    for family in ("lora", "dora"):
        placed = [recipe.anneal.placement for recipe in arms.values() if recipe.method == f"afa-{family}"]
        assert placed == [*PLACEMENTS]
    annealed = [recipe.anneal for recipe in arms.values() if recipe.anneals]
    assert {(a.activation, a.schedule, a.anneal_start, a.anneal_end) for a in annealed} == {
        ("relu", "linear", 0.0, 0.3)
    }
    assert {recipe.train["completion_only_loss"] for recipe in arms.values()} == {False}
    rates = {recipe.method: recipe.train["learning_rate"] for recipe in arms.values()}
    assert rates == {"full": 2e-5, "lora": 3e-4, "afa-lora": 3e-4, "dora": 1e-4, "afa-dora": 1e-4}
    for name, recipe in arms.items():
        assert not recipe.anneals or name.endswith(recipe.anneal.placement)


def test_table_4_has_two_activations_and_three_lengths_for_each_adapter() -> None:
    arms = load("table4", "paper").arms
    annealed = {(r.method, r.anneal.activation, r.anneal.anneal_end) for r in arms.values() if r.anneals}
    methods, lengths = ("afa-lora", "afa-dora"), (0.3, 0.6, 1.0)
    assert annealed == {(m, a, end) for m in methods for a in ("gelu", "silu") for end in lengths}
    assert {r.anneal.placement for r in arms.values() if r.anneals} == {"A-σ-B"}
    assert {name for name, recipe in arms.items() if not recipe.anneals} == {"Full fine-tuning", "LoRA", "DoRA"}


@pytest.mark.parametrize(
    ("name", "digest"),
    [("table1", "51e434bc7ed24779"), ("table4", "393524f809b46132")],
)
def test_paper_values_are_there_and_their_averages_agree(name: str, digest: str) -> None:
    """A value in a wrong row would hardly leave the row's average as it is; the digest sees a swap within a row."""
    off = {}
    for arm in load(name, "paper").describe().arms:
        assert list(arm.paper) == [*TASKS, "average"]
        mean = sum(arm.paper[task] for task in TASKS) / len(TASKS)
        if abs(mean - arm.paper["average"]) > 0.011:
            off[arm.name] = round(mean, 2), arm.paper["average"]
    assert off == {"Full fine-tuning": (87.04, 87.07)}  # the paper's own
    rows = "".join(f"{arm.name} {[*arm.paper.values()]}\n" for arm in load(name, "paper").describe().arms)
    assert hashlib.sha256(rows.encode()).hexdigest()[:16] == digest


def test_a_suite_takes_over_the_scales_of_another(suite: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    changes = {"tiny": {"train": {"learning_rate": 0.5}, "evaluate": {"limit": 1}, "arms": ["LoRA"]}}
    other = {**settings, "title": "Another", "like": suite.name, "deviations": ["It is another."], "scales": changes}
    path = tmp_path / "table9.yaml"
    path.write_text(dump_yaml(other))
    mine = load_experiment(path, "tiny", Path("out"), overrides=["adapter.r=2"])
    theirs = load_experiment(suite, "tiny", Path("out"), arms=["LoRA"])
    (job,), (their_job,) = mine.jobs, theirs.jobs
    assert job.recipe.train == {**their_job.recipe.train, "learning_rate": 0.5}
    assert job.recipe.adapter == {**their_job.recipe.adapter, "r": 2}
    assert (mine.scale.evaluate.limit, mine.scale.evaluate.max_new_tokens) == (1, theirs.scale.evaluate.max_new_tokens)
    assert mine.describe().deviations == ["It is another.", *theirs.describe().deviations]


def test_mistakes_in_a_suite_like_another_are_told_with_file_and_line(
    suite: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    other = {**settings, "like": suite.name, "scales": {"tiny": {"evaluate": {"limti": 1}}}}
    settings["scales"]["tiny"]["train"]["learning_rte"] = 1
    suite.write_text(dump_yaml(settings))
    path = tmp_path / "table9.yaml"
    path.write_text(dump_yaml(other))

    def line(file: Path, key: str) -> int:
        return 1 + next(i for i, text in enumerate(file.read_text().splitlines()) if text.strip().startswith(key))

    with pytest.raises(RecipeError) as caught:
        read_suite(path, "tiny")
    message = str(caught.value)
    assert f"\n  line {line(path, 'limti')}: scales.tiny.evaluate.limti: no such key" in message
    assert f"\n  {suite.name}, line {line(suite, 'learning_rte')}: scales.tiny.train.learning_rte: no such" in message

    path.write_text(dump_yaml({**other, "like": "tabel0.yaml"}))
    with pytest.raises(RecipeError, match=r"There is no recipe .*tabel0\.yaml"):
        read_suite(path, "tiny")
    path.write_text(dump_yaml({**other, "like": path.name}))
    with pytest.raises(RecipeError, match=r"like = 'table9.yaml' has its scales from 'table9.yaml'"):
        read_suite(path, "tiny")


def test_an_arm_is_a_recipe_of_afa_sft(suite: Path, tasks: Path, tmp_path: Path) -> None:
    experiment = load_experiment(suite, "tiny", tmp_path / "out", tasks, ["afa-lora s-A-B-s"], [3, 4])
    first, second = experiment.jobs
    assert (first.arm, first.seed, second.seed) == ("AFA-LoRA σ-A-B-σ", 3, 4)
    assert first.folder == tmp_path / "out" / "afa-lora-s-a-b-s" / "seed-3"
    assert first.recipe.anneal.placement == "σ-A-B-σ"
    assert first.recipe.anneal.activation == "relu"
    assert first.recipe.data.folder == tasks  # type: ignore[union-attr]
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(first.recipe))
    assert load_recipe(path) == first.recipe


def test_data_names_the_folder_of_tests_and_file(tasks: Path) -> None:
    data = load("table1", "paper", data=tasks).jobs[0].recipe.data.model_dump()
    assert data["folder"] == tasks
    assert data["file"] == tasks / "commonsense_170k.json"


def test_overrides_change_the_scale_and_a_method_keeps_its_own() -> None:
    arms = load("table1", "tiny", "train.learning_rate=5e-4", "anneal.schedule=cosine", "adapter.r=8", "seeds=[1]").arms
    assert arms["LoRA"].train["learning_rate"] == 5e-4
    assert arms["Full fine-tuning"].train["learning_rate"] == 1e-4
    assert arms["AFA-LoRA A-σ-B"].anneal.schedule == "cosine"
    assert {recipe.train["seed"] for recipe in arms.values()} == {1}
    arms = load("table1", "tiny", "methods.full.train.learning_rate=1e-5").arms
    assert arms["Full fine-tuning"].train["learning_rate"] == 1e-5


def test_every_mistake_is_told_at_once_with_its_line(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["arms"]["LoRA"]["metod"] = "lora"
    settings["arms"]["AFA-LoRA A-σ-B"]["anneal"] = {"placement": "B-σ-A"}
    scale = settings["scales"]["tiny"]
    scale["train"]["learning_rte"] = 1e-4
    scale["train"]["seed"] = 1
    scale["methods"]["afa-lra"] = {}
    scale["data"]["test_items"] = 3
    scale["evaluate"]["protocol"] = "papr"
    path = tmp_path / "table0.yaml"
    path.write_text(dump_yaml(settings))
    with pytest.raises(RecipeError) as caught:
        read_suite(path, "tiny", ["adapter.lora_alhpa=3"])
    message = str(caught.value)
    lines = path.read_text().splitlines()

    def line(key: str) -> str:
        return f"line {1 + next(i for i, text in enumerate(lines) if text.strip().startswith(key))}: "

    for part in (
        f"{path}: 8 mistakes",
        line("metod") + "arms.LoRA.metod: no such key. Did you mean 'method'?",
        "arms.AFA-LoRA A-σ-B.anneal.placement = 'B-σ-A': it is not known.",
        line("learning_rte") + "scales.tiny.train.learning_rte: no such argument of trl.SFTConfig.",
        line("seed") + "scales.tiny.train.seed: this is set by seeds, not here.",
        "scales.tiny.methods.afa-lra: no such key. Did you mean 'afa-lora'?",
        "test_items must be 0",
        "scales.tiny.evaluate.protocol = 'papr': it must be 'paper' or 'likelihood'. Did you mean 'paper'?",
        "command line: scales.tiny.adapter.lora_alhpa: no such argument of peft.LoraConfig. Did you mean 'lora_alpha'?",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paper": [1.0]}, "arms.LoRA.paper has 1 numbers, columns 9 names"),
        ({"method": "lroa"}, r"arms.LoRA.method = 'lroa': it must be .* Did you mean 'lora'"),
    ],
)
def test_an_arm_that_does_not_fit(settings: dict[str, Any], tmp_path: Path, change: Any, message: str) -> None:
    settings["arms"]["LoRA"] |= change
    path = tmp_path / "table0.yaml"
    path.write_text(dump_yaml(settings))
    with pytest.raises(RecipeError, match=message):
        read_suite(path, "tiny")


def test_arms_that_would_share_a_folder_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["arms"]["lora"] = {"method": "lora"}
    path = tmp_path / "table0.yaml"
    path.write_text(dump_yaml(settings))
    with pytest.raises(RecipeError, match="arms 'LoRA' and 'lora' would share the folder lora"):
        read_suite(path, "tiny")


@pytest.mark.parametrize("method", ["full", "lora", "dora"])
def test_two_baselines_of_one_method_are_refused(settings: dict[str, Any], tmp_path: Path, method: str) -> None:
    first = {"full": "Full", "lora": "LoRA", "dora": "DoRA"}[method]
    settings["arms"]["Another"] = {"method": method}
    path = tmp_path / "table0.yaml"
    path.write_text(dump_yaml(settings))
    with pytest.raises(RecipeError, match=f"arms '{first}' and 'Another' are both of method {method}"):
        read_suite(path, "tiny")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.folder=elsewhere", "folder would be that of the training alone: give --data"),
        ("data.system=Be brief.", "system must be left out: the arms are tested without a system message"),
    ],
)
def test_what_would_change_the_training_alone_is_refused(suite: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_suite(suite, "tiny", [override])


def test_an_unknown_name_gets_the_closest_one(suite: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match=r"scale='tinny' is not known.*Did you mean 'tiny'"):
        read_suite(suite, "tinny")
    with pytest.raises(
        InvalidSettingError, match=r"--arms='AFA-LoRA A-σ-C' is not known.*Did you mean 'AFA-LoRA A-σ-B'"
    ):
        load_experiment(suite, "tiny", tmp_path, arms=["AFA-LoRA A-σ-C"])
    with pytest.raises(RecipeError, match=r"scales.tiny.arms='LoRa'.*Did you mean 'LoRA'"):
        read_suite(suite, "tiny", ["arms=[LoRa]"])
    with pytest.raises(InvalidSettingError, match="there is no such folder"):
        load_experiment(suite, "tiny", tmp_path, data=tmp_path / "nowhere")


def test_slugs_are_plain_and_tell_the_placements_apart() -> None:
    assert slug("AFA-LoRA A-σ-B") == "afa-lora-a-s-b"
    assert slug("AFA-DoRA GELU 100 %") == "afa-dora-gelu-100"
    assert len({slug(name) for name in PLACEMENTS}) == 7
