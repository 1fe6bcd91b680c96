"""Kill a supervised fine-tuning with SIGKILL at random points, start it again each time, compare the ends.

    python tests/integration/kill_and_resume.py FOLDER [--kills 10] [--seed 0]

Every run is ``afa sft`` in a process of its own, forked from this one after the imports, which take longer than the
training. Prints one JSON object: for each kill when it came, what it left behind, and how far the end differs from that
of the run that nobody touched.
"""

import argparse
import itertools
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import yaml

import afa_lora.sft.summary  # noqa: F401 - imported here once for all runs
from afa_cli import main
from tests.tiny_chat import save_tiny_chat_model

STEPS = 24


def prepare(folder: Path) -> Path:
    """Write model, data and recipe. Dropout and shuffling draw random numbers; saving takes much of the time."""
    data = folder / "train.jsonl"
    records = [{"prompt": f"What is {i} + {i}?", "completion": str(2 * i)} for i in range(64)]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    recipe = folder / "recipe.yaml"
    settings = {
        "model": str(save_tiny_chat_model(folder / "model")),
        "output": str(folder / "whole"),
        "data": {"source": "file", "train": str(data), "test_items": 8},
        "adapter": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1},
        "anneal": {"anneal_end": 0.8},
        "train": {
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "learning_rate": 0.01,
            "logging_steps": 3,
            "save_steps": 1,
            "save_total_limit": 2,
            "seed": 0,
        },
        "evaluate": {"max_new_tokens": 4},
    }
    recipe.write_text(yaml.safe_dump(settings))
    return recipe


def start(recipe: Path, output: Path) -> int:
    """Fork a process that runs ``afa sft``; returns its number."""
    child = os.fork()
    if child:
        return child
    log = os.open(output.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["afa", "sft", str(recipe), f"output={output}"]
    code = 1
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception:  # noqa: BLE001 - printed as an interpreter that ends would print it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def finish(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_and_resume(recipe: Path, whole: Path, output: Path, after: float, saving: bool) -> dict[str, Any] | None:
    """One kill ``after`` so many seconds, or in the next save from then on; ``None`` if the run was faster."""
    child = start(recipe, output)
    time.sleep(after)
    while saving and not unsealed(output):
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            return None
    os.kill(child, signal.SIGKILL)
    if finish(child) != -signal.SIGKILL:
        return None
    unfinished, checkpoints = len(unsealed(output)), len(list((output / "checkpoints").glob("checkpoint-*")))
    resumed = finish(start(recipe, output))
    return {
        "after_seconds": round(after, 3),
        "sealed_checkpoints": checkpoints - unfinished,
        "unsealed_checkpoints": unfinished,
        "exit_code_of_the_resumed_run": resumed,
        "different": [] if resumed else differences(whole, output),
    }


def unsealed(output: Path) -> list[Path]:
    """Checkpoints that are being written, or whose writing was cut off."""
    checkpoints = (output / "checkpoints").glob("checkpoint-*")
    return [path for path in checkpoints if not (path / "sealed.json").is_file()]


def differences(whole: Path, other: Path) -> list[str]:
    """What the two runs' ends do not have in common to the last bit."""
    files = ("adapter/adapter_model.safetensors", "model/model.safetensors", "answers.jsonl", "answers_before.jsonl")
    found = [name for name in files if (whole / name).read_bytes() != (other / name).read_bytes()]
    if logged(whole) != logged(other):
        found.append("metrics.jsonl")
    results = [json.loads((run / "results.json").read_text()) for run in (whole, other)]
    return found + [
        key for key in ("loss", "beta", "test_loss", "accuracy_after") if results[0][key] != results[1][key]
    ]


def logged(run: Path) -> list[dict[str, Any]]:
    """The metrics without the times."""
    times = ("seconds", "runtime", "per_second")
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if not key.endswith(times)} for entry in entries]


def run_all(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    recipe, whole = prepare(folder), folder / "whole"
    started = time.perf_counter()
    code = finish(start(recipe, whole))
    seconds = time.perf_counter() - started
    if code:
        raise SystemExit((folder / "whole.log").read_text())
    draw, done = random.Random(seed), []
    for attempt in itertools.count():
        if len(done) == kills:
            break
        kill = kill_and_resume(recipe, whole, folder / f"killed-{attempt}", draw.uniform(0, seconds), attempt % 2 == 1)
        if kill is not None:
            done.append(kill)
    return {"seconds_of_the_whole_run": round(seconds, 3), "steps": len(logged(whole)) - 1, "kills": done}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print(json.dumps(run_all(arguments.folder, arguments.kills, arguments.seed), indent=2))
