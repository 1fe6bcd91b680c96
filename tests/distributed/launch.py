"""Start a program on two ranks, as a user does with torchrun."""

import os
import subprocess
import sys
from pathlib import Path

RANKS = 2
ROOT = Path(__file__).parents[2]


def torchrun(program: Path, *arguments: object, timeout: float = 300) -> None:
    """Run ``program`` on two CPU processes; fail with its output unless both end well."""
    search = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(search)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    with subprocess.Popen(
        [*command, str(program), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun ends its ranks
            output, _ = process.communicate()
            raise AssertionError(f"{program.name} did not end in {timeout} s:\n{output[-6000:]}") from None
    assert process.returncode == 0, output[-6000:]
