"""Sealed checkpoints: what counts as whole, what is passed over, what is kept."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from afa_lora.running.checkpoints import CheckpointSealer, NonFiniteError, damage, is_sealed, last_good, newest, seal


def make(folder: Path, step: int, *, sealed: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "shards").mkdir(parents=True)
    (checkpoint / "weights").write_bytes(bytes(range(256)) * step)
    (checkpoint / "shards" / "0").write_text(f"shard of {step}")
    if sealed:
        seal(checkpoint)
    return checkpoint


def test_an_intact_checkpoint_has_no_damage(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, 1)
    assert is_sealed(checkpoint)
    assert damage(checkpoint) is None


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("weights", None, "weights is missing"),
        ("weights", b"other", "weights is damaged"),
        ("shards/0", b"shard of 2", "shards/0 is damaged"),
        ("sealed.json", b"{", "sealed.json is damaged"),
    ],
)
def test_every_change_to_a_file_is_seen(tmp_path: Path, name: str, content: bytes | None, fault: str) -> None:
    checkpoint = make(tmp_path, 1)
    if content is None:
        (checkpoint / name).unlink()
    else:
        (checkpoint / name).write_bytes(content)
    assert damage(checkpoint) == fault


def test_the_newest_intact_one_is_found_by_step_and_what_is_newer_is_removed(tmp_path: Path) -> None:
    good, later = make(tmp_path, 9), make(tmp_path, 10)
    unfinished = make(tmp_path, 11, sealed=False)
    (later / "weights").write_bytes(b"")
    said: list[str] = []
    assert newest(tmp_path) == later
    assert last_good(tmp_path, said.append) == good
    assert not unfinished.exists()
    assert not later.exists()
    assert ["was not written to its end" in line for line in said] == [True, False]
    assert "weights is damaged" in said[1]


def test_without_any_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert last_good(tmp_path / "nowhere", pytest.fail) is None
    assert newest(tmp_path) is None


def save(sealer: CheckpointSealer, folder: Path, step: int, model: nn.Module, best: Path | None = None) -> None:
    make(folder, step, sealed=False)
    arguments = TrainingArguments(output_dir=str(folder), report_to="none", use_cpu=True)
    state = TrainerState(global_step=step, best_model_checkpoint=str(best) if best else None)
    sealer.on_save(arguments, state, TrainerControl(), model=model)


def test_the_limit_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    sealer, model = CheckpointSealer(limit=2), nn.Linear(2, 2)
    best = tmp_path / "checkpoint-1"
    for step in range(1, 6):
        save(sealer, tmp_path, step, model, best)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-4", "checkpoint-5"]
    assert all(is_sealed(path) for path in tmp_path.iterdir())


def test_weights_that_are_not_finite_are_never_sealed(tmp_path: Path) -> None:
    model = nn.ModuleDict({"frozen": nn.Linear(2, 2), "trained": nn.Linear(2, 2)})
    for parameter in model["frozen"].parameters():
        parameter.requires_grad_(False).fill_(torch.nan)  # not ours: a base model may do with infinities what it likes
    save(CheckpointSealer(None), tmp_path, 1, model)
    with torch.no_grad():
        model["trained"].weight[0, 1] = torch.inf
    with pytest.raises(NonFiniteError, match=r"after step 2 the weight trained\.weight is no longer finite"):
        save(CheckpointSealer(None), tmp_path, 2, model)
    assert newest(tmp_path) == tmp_path / "checkpoint-1"
