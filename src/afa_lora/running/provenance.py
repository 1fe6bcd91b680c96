"""Where a run comes from: command, versions, hardware, the state of the git repository it was started in."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import torch

import afa_lora

PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "tokenizers")


def environment() -> dict[str, Any]:
    """Versions and hardware."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "threads": torch.get_num_threads(),
        "afa-lora": afa_lora.__version__,
        **{package: version(package) for package in PACKAGES},
    }


def git_state() -> dict[str, Any] | None:
    """The commit of the present folder's repository and whether files differ from it; ``None`` outside of one."""
    git = shutil.which("git")
    if git is None:
        return None
    commit = subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if commit.returncode != 0:
        return None
    status = subprocess.run([git, "status", "--porcelain"], capture_output=True, text=True, check=False)
    return {"commit": commit.stdout.strip(), "changed_files": len(status.stdout.splitlines())}


def command() -> list[str]:
    """The command line of this process."""
    return list(sys.orig_argv)
