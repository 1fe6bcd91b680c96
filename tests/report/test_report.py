"""Curves, schedules and progress show what was logged."""

import io
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from rich.console import Console

from afa_lora.core.schedule import SCHEDULES, Schedule
from afa_lora.report.curves import Curve, plot_curves, read_curve
from afa_lora.report.memory import PeakMemory
from afa_lora.report.progress import TrainingProgress
from afa_lora.report.schedules import betas, draw_schedules, plot_schedules
from afa_lora.report.terminal import draw_lines

LOG = [
    {"step": 1, "loss": 3.0, "afa/beta": 0.5},
    {"step": 2, "loss": 2.0, "afa/beta": 0.0},
    {"step": 3, "loss": 1.0, "afa/beta": 0.0},
    {"step": 3, "eval_loss": 9.0, "afa/beta": 0.0},
    {"step": 3, "train_runtime": 1.0, "afa/beta": 0.0},
]


def test_curve_holds_training_losses_and_betas_alone() -> None:
    curve = read_curve("afa-lora", LOG)
    assert curve.loss == ((1, 3.0), (2, 2.0), (3, 1.0))
    assert curve.beta == ((1, 0.5), (2, 0.0), (3, 0.0))
    assert curve.window == (1, 2)
    assert curve.final_loss == 1.0


@pytest.mark.parametrize(
    ("betas", "window"),
    [((), None), (((1, 0.0), (2, 0.0)), None), (((1, 1.0), (2, 0.5)), (1, 2))],
)
def test_window(betas: tuple[tuple[int, float], ...], window: tuple[int, int] | None) -> None:
    assert Curve("x", (), betas).window == window


def test_final_loss_is_the_mean_of_the_last_tenth() -> None:
    assert Curve("x", tuple((step, float(step)) for step in range(1, 31)), ()).final_loss == 29.0
    assert Curve("x", (), ()).final_loss is None


@pytest.mark.parametrize("names", [("lora",), ("afa-lora",), ("lora", "afa-lora")])
def test_figure_is_a_picture_with_something_in_it(tmp_path: Path, names: tuple[str, ...]) -> None:
    logs = {"lora": [{"step": s, "loss": 1 / s} for s in (1, 2, 3)], "afa-lora": LOG}
    path = tmp_path / "new" / "curves.png"
    plot_curves([read_curve(name, logs[name]) for name in names], path)
    picture = imread(path)
    assert min(picture.shape[:2]) > 400
    assert np.std(picture[..., :3]) > 0.02
    assert [file.name for file in path.parent.iterdir()] == ["curves.png"]


def test_betas_of_a_schedule() -> None:
    assert betas(Schedule("linear", 0.0, 0.5), 4) == [1.0, 0.5, 0.0, 0.0, 0.0]


def test_all_schedules_as_figure_and_in_the_terminal(tmp_path: Path) -> None:
    schedules = {name: Schedule(name, 0.1, 0.6) for name in SCHEDULES}
    plot_schedules(schedules, 100, tmp_path / "beta.png")
    assert np.std(imread(tmp_path / "beta.png")[..., :3]) > 0.02
    drawing = draw_schedules(schedules, 100, 60)
    assert all(name in drawing.plain for name in SCHEDULES)
    assert "100 optimizer steps" in drawing.plain


def test_a_falling_line_goes_from_the_upper_left_to_the_lower_right() -> None:
    drawing = draw_lines({"fall": [1.0, 0.0]}, width=45, x_label="x", y_label="y", height=10)
    rows = [line[5:] for line in drawing.plain.split("\n")[1:11]]
    dots = [[column for column, character in enumerate(row) if character != " "] for row in rows]
    assert dots[0][0] == 0
    assert dots[-1][-1] == 39
    assert all(upper[-1] <= lower[0] + 1 for upper, lower in pairwise(dots))


def test_lines_fit_their_width() -> None:
    drawing = draw_lines({"a": [0.5] * 7, "b": [1.0, 0.0, 1.0]}, width=40, x_label="", y_label="β")
    assert max(map(len, drawing.plain.split("\n")[:-1])) == 40


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA, the peak is that of the device")
def test_peak_memory_sees_what_is_freed_again() -> None:
    with PeakMemory() as idle:
        time.sleep(0.05)
    with PeakMemory() as memory:
        block = np.ones(200 * 2**20, dtype=np.uint8)
        time.sleep(0.1)
        del block
    assert 150 * 2**20 < memory.bytes - idle.bytes < 400 * 2**20


def test_training_progress_shows_steps_loss_and_beta() -> None:
    text = io.StringIO()
    state = SimpleNamespace(max_steps=4, global_step=3, is_world_process_zero=True)
    with TrainingProgress(Console(file=text, force_terminal=True, width=120), "train afa-lora") as progress:
        progress.on_train_begin(None, state, None)
        progress.on_step_end(None, state, None)
        progress.on_log(None, state, None, logs={"loss": 1.25, "afa/beta": 0.5})
        progress.on_log(None, state, None, logs={"eval_loss": 7.0})
    for part in ("train afa-lora", "3/4", "loss 1.250", "β 0.50"):
        assert part in text.getvalue()
