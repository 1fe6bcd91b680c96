"""SIGKILL at ten random points, also in the middle of a save: every resumed run ends as the whole one, to the bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
KILLS = 10


@pytest.mark.slow
@pytest.mark.integration
def test_ten_killed_runs_end_like_the_one_that_nobody_touched(tmp_path: Path) -> None:
    program = PROJECT / "tests" / "integration" / "kill_and_resume.py"
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "runs"), "--kills", str(KILLS)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout)["kills"]
    assert len(kills) == KILLS
    assert [kill for kill in kills if kill["exit_code_of_the_resumed_run"] or kill["different"]] == []
    assert any(kill["sealed_checkpoints"] for kill in kills), "no kill came late enough to test a resume"
    assert any(kill["unsealed_checkpoints"] for kill in kills), "no kill came in the middle of a save"
