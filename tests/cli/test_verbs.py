"""``afa sft``, ``afa schedule`` and ``afa demo``, and errors that are not the user's."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import Afa


@pytest.fixture
def recipe(chat_model: Path, tmp_path: Path) -> Path:
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"instruction": f"Say yes to {i}.", "input": "", "output": "yes"} for i in range(24)]))
    settings = {
        "model": str(chat_model),
        "output": str(tmp_path / "run"),
        "data": {"source": "file", "train": str(data), "test_items": 8},
        "train": {"max_steps": 4, "gradient_checkpointing": False, "logging_steps": 1, "save_strategy": "no"},
        "evaluate": {"max_new_tokens": 4},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_sft_prints_numbers_and_places(afa: Afa, recipe: Path, tmp_path: Path) -> None:
    done = afa("sft", recipe, "adapter.r=4", "train.learning_rate=2e-2")
    assert done.code == 0
    for part in ("accuracy on held-out items", "peak memory", "merged = unmerged", str(tmp_path / "run" / "model")):
        assert part in done.out
    assert "Tokenizing train dataset" not in done.err
    saved = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert saved["adapter"] == {"r": 4}
    assert saved["train"]["learning_rate"] == 0.02


def test_a_dry_run_plans_a_model_that_is_not_there_and_writes_nothing(
    afa: Afa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = Path(__file__).parents[2] / "recipes" / "shapes" / "llama-3-8b"
    monkeypatch.chdir(tmp_path)
    planned = afa("sft", "llama3_8b", f"model={shape}", "--dry-run")
    assert planned.code == 0
    for part in (
        "224 layers",
        "500 of 16 sequences",
        "0 from step 150",
        "14.96 GiB",
        "GFLOP/s",
        "runs/llama3-8b/adapter",
    ):
        assert part in planned.out
    assert "Training needs them" in planned.out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_tells_everything_that_is_wrong_at_once(afa: Afa, recipe: Path, tmp_path: Path) -> None:
    refused = afa(
        "sft",
        recipe,
        "--dry-run",
        "model=./nowhere",
        "data.train=none.json",
        "train.packing=true",
        "train.max_length=null",
    )
    assert refused.code == 2
    for part in (
        "This recipe cannot be run",
        "model='./nowhere'",
        "none.json: there is no such file",
        "train.packing=true needs",
    ):
        assert part in refused.err
    assert not (tmp_path / "run").exists()


def test_an_error_of_ours_keeps_its_traceback(afa: Afa, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import afa_lora.sft

    def broken(*arguments: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(afa_lora.sft, "run_sft", broken)
    with pytest.raises(ZeroDivisionError):
        afa("sft", recipe)


def test_schedule_draws_and_writes(afa: Afa, tmp_path: Path) -> None:
    out = tmp_path / "beta.png"
    done = afa("schedule", "--kind", "linear", "--kind", "step", "--end", "0.6", "--steps", "50", "--out", out)
    assert done.code == 0
    assert "linear" in done.out
    assert "cosine" not in done.out
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--kind", "liner"), "Did you mean 'linear'?"),
        (("--start", "0.5", "--end", "0.5"), "must come after"),
        (("--end", "30.5"), "out of range"),
        (("--end", "soon"), "'soon' is no number"),
        (("--steps", "0"), "greater than or equal to 1"),
    ],
)
def test_schedule_refuses(afa: Afa, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    refused = afa("schedule", *arguments, "--out", tmp_path / "x.png")
    assert refused.code == 2
    assert message in refused.err
    assert not (tmp_path / "x.png").exists()


def test_demo_compares_both_methods_and_can_be_repeated(
    afa: Afa, chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import afa_lora.sft.demo as demo

    settings: dict[str, Any] = {**demo.SETTINGS, "model": str(chat_model)}
    settings["data"] = {**settings["data"], "train_items": 16, "test_items": 4}
    monkeypatch.setattr(demo, "SETTINGS", settings)
    for _ in range(2):
        done = afa("demo", "--out", tmp_path / "demo")
        assert done.code == 0
        for part in ("before", "LoRA", "AFA-LoRA", "merged = unmerged", "What to type next", "afa inspect"):
            assert part in done.out
    assert (tmp_path / "demo" / "curves.png").is_file()
    for method in ("lora", "afa-lora"):
        numbers = json.loads((tmp_path / "demo" / method / "results.json").read_text())
        assert numbers["merge"]["max_logit_difference"] < 1e-4
    assert afa("inspect", tmp_path / "demo" / "afa-lora" / "adapter").out.startswith("kind        plain LoRA")


def test_demo_and_quickstart_are_the_same_training() -> None:
    from afa_lora.sft.demo import SETTINGS
    from afa_lora.sft.recipe import load_recipe, parse_recipe

    quickstart = load_recipe(Path(__file__).parents[2] / "recipes" / "sft" / "quickstart.yaml")
    demo = parse_recipe({**SETTINGS, "output": "x"})
    for section in ("model", "method", "data", "adapter", "anneal", "evaluate"):
        assert getattr(quickstart, section) == getattr(demo, section)
    saving = {"save_steps", "save_strategy"}
    assert {k: v for k, v in quickstart.train.items() if k not in saving} == {
        k: v for k, v in demo.train.items() if k not in saving
    }


@pytest.mark.parametrize("missing", ["typer", "datasets"])
def test_a_missing_extra_is_named(missing: str) -> None:
    program = (
        f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['afa', 'demo', '--out', '/nowhere/demo']; "
        "from afa_cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'afa-lora[sft]'" in done.stderr
    assert "Traceback" not in done.stderr
