"""The README's Python runs as it stands, and its tables are those of the result files."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.integration
@pytest.mark.slow
def test_the_example_runs(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    checks = 'assert not hasattr(merged, "peft_config")\nassert trainer.state.log_history[-1]["afa/beta"] == 0\n'
    ran = subprocess.run(
        [sys.executable, "-c", example + checks], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


def test_tables_are_those_of_the_result_files():
    ran = subprocess.run(
        [sys.executable, str(ROOT / "tools/update_readme.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
