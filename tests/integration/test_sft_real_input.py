"""A real model on real data through the command line: the loss falls, and the merged model answers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[2]


def afa(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "afa_cli", *map(str, arguments)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.integration
@pytest.mark.slow
def test_arc_easy_from_the_recipe_to_the_merged_model(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "commonsense" / "ARC-Easy"
    run = tmp_path / "run"
    shown = afa(
        "sft",
        "recipes/sft/arc_easy.yaml",
        f"output={run}",
        f"data.train={folder / 'train.json'}",
        f"data.test={folder / 'test.json'}",
        "data.train_items=64",
        "data.test_items=4",
        "train.max_steps=8",
        "train.per_device_train_batch_size=4",
        "train.learning_rate=1e-3",
        "train.warmup_steps=0",
        "train.logging_steps=1",
        "train.save_strategy=no",
        "evaluate.before=false",
    )
    assert "merged = unmerged" in shown

    numbers = json.loads((run / "results.json").read_text())
    losses = [loss for _, loss in numbers["loss"]]
    assert sum(losses[-3:]) / 3 < 0.5 * losses[0]
    assert numbers["beta"][0][1] > 0 == numbers["beta"][-1][1]
    assert numbers["merge"]["max_logit_difference"] < 1e-3
    answers = [json.loads(line)["given"] for line in (run / "answers.jsonl").read_text().splitlines()]
    assert numbers["accuracy_after"]["items"] == len(answers) == 4
    assert sum(answer.startswith("the correct answer is answer") for answer in answers) >= 3

    model = AutoModelForCausalLM.from_pretrained(run / "model")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert afa("inspect", run / "adapter").startswith("kind        plain LoRA")
