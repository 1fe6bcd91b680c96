"""verl's own worker and FSDP2 engine with an annealed adapter, on two CPU ranks; engine.py is what they run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.verl, pytest.mark.slow]

HERE = Path(__file__).parent
TIMEOUT = 420  # seconds; some 100 on two idle cores


def test_verl_trains_anneals_synchronises_and_resumes(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(HERE)}
    make = "import verl_cpu, sys; from verl_tiny import base_model; base_model().save_pretrained(sys.argv[1])"
    subprocess.run([sys.executable, "-c", make, str(tmp_path / "model")], check=True, env=environment, timeout=120)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run = subprocess.run(
        [*launch, str(HERE / "engine.py"), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert run.returncode == 0, f"{run.stdout[-1500:]}\n{run.stderr[-6000:]}"
    assert run.stdout.count("case: ") == 14  # seven on each rank
