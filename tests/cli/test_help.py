"""Help is instant, complete, and imports nothing heavy."""

import json
import subprocess
import sys

import pytest

from tests.cli.conftest import Afa

VERBS = ("sft", "recipes", "chat", "export", "merge", "inspect", "schedule", "reproduce", "report", "eval", "demo")
HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "matplotlib", "numpy", "pydantic", "afa_lora")

PROGRAM = """
import json, sys
sys.argv = ["afa", "--help"]
from afa_cli import main
try:
    main()
except SystemExit:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stderr))
    assert not loaded.intersection(HEAVY)
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize(
    "verb", [*(verb for verb in VERBS if verb != "eval"), "eval commonsense", "eval compare", "eval harness"]
)
def test_every_verb_shows_an_example(afa: Afa, verb: str) -> None:
    shown = afa(*verb.split(), "--help")
    assert shown.code == 0
    assert f"afa {verb}" in shown.out.split("Example")[1]


def test_an_unknown_verb_is_refused(afa: Afa) -> None:
    refused = afa("inspekt")
    assert refused.code == 2
    assert "inspekt" in refused.err
