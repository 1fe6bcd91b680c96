"""Every mistake and mishap of a run: one message, exit code 2, and nothing that was saved before is lost."""

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from afa_lora.running.checkpoints import CheckpointSealer
from afa_lora.sft import run
from afa_lora.sft.trainer import ExactSFTTrainer
from tests.cli.conftest import Afa, Outcome
from tests.tiny_chat import without_chat_template

STEPS = 6


@pytest.fixture
def settings(chat_model: Path, tmp_path: Path) -> dict[str, Any]:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Say yes to {i}.", "completion": "yes"}) + "\n" for i in range(30)))
    return {
        "model": str(chat_model),
        "output": str(tmp_path / "run"),
        "data": {"source": "file", "train": str(data), "test_items": 4},
        "train": {
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "save_steps": 1,
            "seed": 0,
        },
        "evaluate": {"max_new_tokens": 4},
    }


Sft = Callable[..., Outcome]


@pytest.fixture
def sft(afa: Afa, settings: dict[str, Any], tmp_path: Path) -> Sft:
    """``sft("adapter.r=4")`` runs the recipe with overrides."""

    def call(*overrides: str) -> Outcome:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(settings))
        return afa("sft", recipe, *overrides)

    return call


def assert_refused(outcome: Outcome, *parts: str) -> None:
    assert outcome.code == 2
    assert outcome.err.count("Error: ") == 1
    assert "Traceback" not in outcome.err
    for part in parts:
        assert part in outcome.err


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["metod=lora"], ["metod: no such key", "Did you mean 'method'?"]),
        (["train.learning_rate=fast"], ["train.learning_rate = 'fast': it must be a number"]),
        (["train.max_steps=ten", "adapter.rank=8"], ["2 mistakes", "train.max_steps = 'ten'", "adapter.rank"]),
        (["data.train=nowhere.jsonl"], ["nowhere.jsonl: there is no such file", "looked for it in"]),
        (["train.max_length=8"], ["train.max_length=8 is too small"]),
        (["model=smollm2-135"], ["Did you mean 'smollm2-135m'?"]),
        (["model=./nowhere"], ["model='./nowhere': there is no such folder"]),
        (["model=someone/some-model"], ["loading it from the hub failed", "give its folder, as model=PATH"]),
        (["data={source: hub, name: someone/some-data}"], ["someone/some-data", "data.source=file data.train=PATH"]),
        (["adapter.target_modules=[w_q]"], ["the model has no layer 'w_q'", "q_proj ×2", "down_proj ×2"]),
        (["adapter.target_modules=.*nothing"], [".*nothing", "q_proj ×2"]),
        (["data.test_items=30"], ["data.test_items=30"]),
        (["train.learning_rate=-1"], ["train.learning_rate = -1: it must be greater than 0"]),
        (["train.report_to=wandb"], ["train.report_to='wandb'", "wandb"]),
        (["train.lr_scheduler_type=cosine_with_min_lr"], ["train: ", "min_lr"]),
        (["train.eval_strategy=steps", "data.test_items=0"], ["train.eval_strategy='steps' needs test items"]),
        (["load.quantization=4bit", "method=full"], ["load.quantization=4bit with method=full"]),
    ],
)
def test_a_mistake_in_the_recipe(sft: Sft, settings: dict[str, Any], overrides: list[str], parts: list[str]) -> None:
    assert_refused(sft(*overrides), *parts)
    assert not (Path(settings["output"]) / "checkpoints").exists()


def test_a_recipe_that_is_not_there(afa: Afa) -> None:
    assert_refused(afa("sft", "quickstrt"), "There is no recipe quickstrt", "Did you mean 'quickstart'?")


def test_a_malformed_line(sft: Sft, settings: dict[str, Any]) -> None:
    data = Path(settings["data"]["train"])
    lines = data.read_text().splitlines()
    data.write_text("\n".join([*lines[:16], '{"prompt": "unfinished', *lines[17:]]))
    assert_refused(sft(), f"{data}, line 17: this is not valid JSON")


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_data_set(sft: Sft, settings: dict[str, Any], content: str) -> None:
    data = Path(settings["data"]["train"])
    data.write_text(content)
    assert_refused(sft(), f"{data} holds no records")


def test_two_column_styles_at_once(sft: Sft, settings: dict[str, Any]) -> None:
    data = Path(settings["data"]["train"])
    both = {"prompt": "a", "completion": "b", "instruction": "c", "output": "d"}
    data.write_text("".join(json.dumps(both) + "\n" for _ in range(30)))
    assert_refused(sft(), "prompt-completion", "instruction", "data.form")
    assert sft("data.form=instruction", "data.test_items=0").code == 0


def test_a_model_without_chat_template(sft: Sft, settings: dict[str, Any], tmp_path: Path) -> None:
    plain = without_chat_template(settings["model"], tmp_path / "plain")
    assert_refused(sft(f"model={plain}"), "has no chat template", "train.chat_template_path")
    assert_refused(
        sft(f"model={plain}", "train.chat_template_path=none.jinja"),
        "'none.jinja' is neither 'alpaca' nor a .jinja file",
    )
    template = Path(settings["model"]) / "chat_template.jinja"
    assert sft(f"model={plain}", f"train.chat_template_path={template}").code == 0


def test_an_output_folder_of_another_recipe(sft: Sft, settings: dict[str, Any], tmp_path: Path) -> None:
    run = Path(settings["output"])
    assert sft().code == 0
    (run / "results.json").unlink()
    kept = sorted(run.rglob("*"))
    assert_refused(sft("train.learning_rate=0.5"), "train.learning_rate: (not set) → 0.5")
    assert sorted(run.rglob("*")) == kept

    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter.txt").write_text("Dear …")
    assert_refused(sft(f"output={tmp_path / 'letters'}"), "holds files that are not of a run (letter.txt)")


def test_data_that_have_changed_since_the_run_was_interrupted(sft: Sft, settings: dict[str, Any]) -> None:
    assert sft().code == 0
    (Path(settings["output"]) / "results.json").unlink()
    data = Path(settings["data"]["train"])
    data.write_text(data.read_text().replace("yes to 7", "no to 7"))
    assert_refused(sft(), "its data have changed since", "train_fingerprint")


def test_two_processes_in_one_folder(sft: Sft, settings: dict[str, Any]) -> None:
    from filelock import FileLock

    run = Path(settings["output"])
    run.mkdir()
    with FileLock(run / ".lock"):
        assert_refused(sft(), "Another process is training in output=")


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "optimizer.pt", "sealed.json"])
def test_a_corrupted_checkpoint_is_passed_over(sft: Sft, settings: dict[str, Any], file: str) -> None:
    run = Path(settings["output"])
    assert sft().code == 0
    whole = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    (run / "results.json").unlink()
    damaged = run / "checkpoints" / f"checkpoint-{STEPS}" / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)

    again = sft()
    assert again.code == 0
    assert f"{damaged.parent} cannot be used: " in again.out
    assert f"Going on from {run / 'checkpoints' / f'checkpoint-{STEPS - 1}'}." in again.out
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == whole


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """Sets the largest file that this process may write, in bytes: a disk that is full for anything larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def after_saving(step: int, action: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    seal = CheckpointSealer.on_save

    def on_save(self: CheckpointSealer, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        seal(self, args, state, control, **kwargs)
        if state.global_step == step:
            action()

    monkeypatch.setattr(CheckpointSealer, "on_save", on_save)


def in_step(step: int, action: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    training_step = ExactSFTTrainer.training_step

    def act(self: ExactSFTTrainer, *arguments: Any, **kwargs: Any) -> Any:
        if self.state.global_step + 1 == step:
            action()
        return training_step(self, *arguments, **kwargs)

    monkeypatch.setattr(ExactSFTTrainer, "training_step", act)


def checkpoints(settings: dict[str, Any]) -> list[str]:
    return sorted(path.name for path in (Path(settings["output"]) / "checkpoints").glob("checkpoint-*"))


def test_a_full_disk_while_saving(
    sft: Sft,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    file_size_limit: Callable[[int], None],
) -> None:
    settings["adapter"] = {"r": 64}
    settings["train"]["save_total_limit"] = 1
    with monkeypatch.context() as patch:
        after_saving(2, lambda: file_size_limit(100_000), patch)
        assert_refused(sft(), "The disk is full", "The last good checkpoint is", "checkpoint-2", "save_total_limit")
    assert checkpoints(settings) == ["checkpoint-2"]
    file_size_limit(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    again = sft()
    assert again.code == 0
    assert "checkpoint-2." in again.out


def test_a_loss_that_is_not_finite(sft: Sft, settings: dict[str, Any]) -> None:
    refused = sft("train.learning_rate=1e30", "train.save_steps=1")
    assert_refused(refused, "Training has diverged: ", "step ", "train.learning_rate (now 1e+30)")
    kept = checkpoints(settings)
    assert f"The last good checkpoint is {Path(settings['output']) / 'checkpoints' / kept[-1]}" in refused.err
    assert not (Path(settings["output"]) / "adapter").exists()


def test_a_checkpoint_of_another_run_to_start_from(sft: Sft, settings: dict[str, Any], tmp_path: Path) -> None:
    assert_refused(
        sft("train.resume_from_checkpoint=nowhere"), "train.resume_from_checkpoint='nowhere' is no checkpoint"
    )
    assert sft().code == 0
    start = tmp_path / "start"
    (Path(settings["output"]) / "checkpoints" / "checkpoint-4").rename(start)
    other = sft(f"train.resume_from_checkpoint={start}", f"output={tmp_path / 'other'}")
    assert other.code == 0
    assert f"Going on from {start}." in other.out
    steps = [json.loads(line)["step"] for line in (tmp_path / "other" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [5, 6, 6]  # the last one is the test


def test_ctrl_c_saves_and_the_same_command_goes_on(
    sft: Sft, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings["train"]["save_strategy"] = "no"
    with monkeypatch.context() as patch:
        in_step(3, lambda: os.kill(os.getpid(), signal.SIGINT), patch)
        stopped = sft()
    assert_refused(
        stopped,
        f"Stopped at step 3 of {STEPS}. The last good checkpoint is ",
        "checkpoint-3. The same command again goes on",
    )
    assert "Stopping after this step" in stopped.out
    assert checkpoints(settings) == ["checkpoint-3"]
    again = sft()
    assert again.code == 0
    assert "checkpoint-3." in again.out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_acts_at_once(sft: Sft, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def press_twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    in_step(3, press_twice, monkeypatch)
    assert_refused(sft(), "Interrupted.", "The last good checkpoint is", "checkpoint-2", "goes on from there")


def test_a_signal_to_end_while_loading(sft: Sft, monkeypatch: pytest.MonkeyPatch) -> None:
    load_base = run.load_base

    def terminated(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return load_base(*arguments)

    monkeypatch.setattr(run, "load_base", terminated)
    assert_refused(sft(), "Interrupted. There was no checkpoint yet. The same command again starts from the beginning.")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_square_brackets_in_paths_are_no_markup(sft: Sft, tmp_path: Path) -> None:
    output = tmp_path / "[bold]aus [" / "red] ü"
    done = sft(f"output={output}")
    assert done.code == 0
    assert f"adapter  {output / 'adapter'}" in done.out


def test_a_damaged_base_model(sft: Sft, settings: dict[str, Any], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(settings["model"], damaged)
    (damaged / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert_refused(sft(f"model={damaged}"), "no model can be loaded from the files in this folder")


def test_checkpoints_that_could_not_be_resumed_from(sft: Sft) -> None:
    assert_refused(sft("train.save_only_model=true"), "train.save_only_model=true: a run could not be resumed")


def test_out_of_memory_says_what_to_lower(sft: Sft, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    in_step(3, lambda: torch.empty(1 << 50), monkeypatch)
    assert_refused(
        sft(),
        "Out of memory",
        "checkpoint-2",
        "train.per_device_train_batch_size=2 train.gradient_accumulation_steps=2",
        "train.gradient_checkpointing=true",
        "train.max_length=512",
        "load.quantization=4bit",
    )
