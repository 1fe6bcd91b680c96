"""``afa reproduce``: the plan, a whole study, several processes, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from afa_lora.settings import dump_yaml
from tests import tiny_study
from tests.cli.conftest import Afa

suite, tasks = tiny_study.suite, tiny_study.tasks
ROOT = Path(__file__).parents[2]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_the_plan_of_a_shipped_table_needs_nothing(afa: Afa, elsewhere: Path) -> None:
    shown = afa("reproduce", "table1", "--scale", "paper", "--dry-run", "--arms", "LoRA")
    assert shown.code == 0
    for part in ("meta-llama/Meta-Llama-3-8B", "0.0003", "31,956", "GiB", "assumed, not measured"):
        assert part in shown.out
    assert list(elsewhere.iterdir()) == []


def test_a_study_is_run_and_reported(afa: Afa, suite: Path, tasks: Path, elsewhere: Path) -> None:
    arguments = ("reproduce", suite, "--data", tasks, "--arms", "LoRA", "--seeds", "1", "train.max_steps=2")
    assert afa(*arguments, "--dry-run").code == 0
    assert list(elsewhere.iterdir()) == []
    done = afa(*arguments)
    assert done.code == 0
    out = Path("runs", "table0-tiny")
    assert str(out / "report.html") in done.out
    assert (out / "report.html").is_file()
    assert (out / "lora" / "seed-1" / "evaluation" / "results.json").is_file()
    assert "done already" in afa(*arguments).out
    other = afa(*arguments, "train.max_steps=3")
    assert other.code == 2
    assert "settings.train.max_steps: 2 → 3" in other.err


def test_the_paper_scale_of_table_2_is_printed_for_verl(afa: Afa, elsewhere: Path) -> None:
    shown = afa(
        "reproduce", "table2", "--scale", "paper", "--dry-run", "--arms", "full,lora,afa-lora-a-s-b", "verl=[3b]"
    )
    assert shown.code == 0
    assert shown.out.count("python3 -m verl.trainer.main_ppo") == 3
    assert "# 3b, AFA-LoRA A-σ-B: recipes/verl/qwen2.5-3b.sh A-s-B" in shown.out
    assert list(elsewhere.iterdir()) == []


def test_a_study_of_rewards_is_planned_run_and_reported(
    afa: Afa, chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_study.save_tiny_prompts(tmp_path))
    path = tmp_path / "table0.yaml"
    path.write_text(dump_yaml(tiny_study.tiny_grpo_suite(chat_model, tmp_path)))
    arguments = ("reproduce", path, "--out", "out", "--arms", "full,lora,afa-lora-a-s-b", "train.max_steps=2")
    planned = afa(*arguments, "--dry-run")
    assert planned.code == 0
    assert "tiny_rewards:vowels × 1" in planned.out
    assert not Path("out").exists()
    done = afa(*arguments)
    assert done.code == 0
    assert "gap closed" in " ".join(done.out.split())
    assert (tmp_path / "out" / "report.html").is_file()
    again = afa("report", "out", "--out", "page.html", "--markdown", "table.md", "--json", "numbers.json")
    assert again.code == 0
    assert (tmp_path / "numbers.json").read_bytes() == (tmp_path / "out" / "results.json").read_bytes()


def test_an_arm_that_fails_makes_the_exit_code_1(afa: Afa, suite: Path, tasks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    failed = afa("reproduce", suite, "--data", tasks, "--out", out, "--arms", "LoRA", "train.learning_rate=1e30")
    assert failed.code == 1
    assert "Failed: LoRA, seed 0: Training has diverged" in failed.err
    assert (out / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["tabel1"],
            "Choose one of 'figure2', 'figure3', 'table1', 'table2', 'table3', 'table4'. Did you mean 'table1'?",
        ),
        (["table1", "--scale", "papre"], "Did you mean 'paper'?"),
        (["table1", "--arms", "LoRa,DoRRA"], "--arms='DoRRA' is not known."),
        (["table1", "--seeds", "0;1"], "give whole numbers from 0"),
        (["table1", "--seeds", "-1"], "give whole numbers from 0"),
        (["table1", "--data", "nowhere"], "there is no such folder"),
        (["table1", "train.learning_rte=1"], "Did you mean 'learning_rate'?"),
        (["figure2", "train.seed=1"], "it draws a formula"),
        (["table2", "--scale", "paper"], "is run by verl, not from here: --dry-run prints the command of each arm"),
        (["table2", "--scale", "paper", "--dry-run", "--seeds", "1"], "each arm is run once"),
        (["table2", "--data", "."], "this scale does not read a folder"),
    ],
)
def test_what_is_refused(afa: Afa, elsewhere: Path, arguments: list[str], message: str) -> None:
    refused = afa("reproduce", *arguments)
    assert refused.code == 2
    assert message in " ".join(refused.err.replace("│", " ").split())
    assert list(elsewhere.iterdir()) == []


def test_figure_2_is_drawn_without_a_training(afa: Afa, elsewhere: Path) -> None:
    assert afa("reproduce", "figure2", "--dry-run").code == 0
    assert list(elsewhere.iterdir()) == []
    assert afa("reproduce", "figure2", "--out", "here").code == 0
    assert (elsewhere / "here" / "figure2.png").read_bytes().startswith(b"\x89PNG")


def test_a_launched_process_gets_a_gpu_of_its_own(afa: Afa, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "29500", "ACCELERATE_USE_FSDP": "1"}
    for name, value in {**launched, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "4,7"}.items():
        monkeypatch.setenv(name, value)
    assert afa("reproduce", "figure2", "--dry-run").code == 0
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
    assert os.environ["ACCELERATE_USE_CPU"] == "true"
    assert not launched.keys() & os.environ.keys()

    monkeypatch.setenv("LOCAL_RANK", "1")  # of processes that share one GPU
    refused = afa("reproduce", "figure2", "--dry-run")
    assert refused.code == 2
    assert "CUDA_VISIBLE_DEVICES=7 has no GPU for process 2. Start 1 or fewer." in " ".join(refused.err.split())


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_launched_process_leaves_gpus_hidden(
    afa: Afa, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert afa("reproduce", "figure2", "--dry-run").code == 0
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.slow
@pytest.mark.integration
def test_processes_of_accelerate_launch_share_the_arms_out(suite: Path, tasks: Path, tmp_path: Path) -> None:
    configuration = ROOT / "recipes" / "accelerate" / "cpu_2.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(configuration), "-m", "afa_cli"]
    out = tmp_path / "out"
    command = [*launch, "reproduce", str(suite), "--data", str(tasks), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    runs = sorted(out.glob("*/seed-0/run"))
    assert len(runs) == 5
    for run in runs:
        [start] = json.loads((run / "provenance.json").read_text())
        assert start["environment"]["processes"] == 1
        assert (run.parent / "evaluation" / "results.json").is_file()
    assert (
        done.stdout.count("another process is at it") + done.stdout.count("done already") >= 4
    )  # of the one, the other's
