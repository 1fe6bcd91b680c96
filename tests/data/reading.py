"""Small data files, and how the tests read them."""

import json
from pathlib import Path
from typing import Any

from afa_lora.data import FileData, Sample
from afa_lora.data.files import read_files

ASK = {"role": "user", "content": "2 + 2?"}
SAY = {"role": "assistant", "content": "4"}
SYSTEM = {"role": "system", "content": "Be brief."}


def write(folder: Path, content: Any, name: str = "data.jsonl") -> Path:
    """Write a text as it is, or records as JSON lines."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else "\n".join(json.dumps(item) for item in content))
    return path


def read(path: Path, said: list[str] | None = None, **settings: Any) -> list[Sample]:
    """Every sample of a file or folder; what is said about it goes to ``said``."""
    source = FileData(source="file", train=path, **settings)
    records = read_files(path, source, [].append if said is None else said.append)
    return [sample for record in records for sample in record]


def numbered(count: int) -> list[dict[str, str]]:
    """Different records of the form prompt-completion."""
    return [{"prompt": f"item {i}", "completion": "x"} for i in range(count)]


def questions(samples: list[Sample]) -> list[str]:
    """What each sample asks."""
    return [sample.prompt[-1]["content"] for sample in samples]
