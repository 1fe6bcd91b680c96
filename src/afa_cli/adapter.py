"""What an adapter folder holds, read from its config and the header of its weights alone: no torch, no tensors."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afa_cli.errors import AdapterFileError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
AFA_LORA = "AFA_LORA"
KEYS = frozenset({"peft_type", "r", "lora_alpha"})
AFA_KEYS = frozenset({"activation", "placement", "schedule", "anneal_start", "anneal_end", "beta"})
LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format


@dataclass(frozen=True)
class Tensor:
    """One entry of a safetensors header."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Adapter:
    """A LoRA or DoRA adapter on disk."""

    folder: Path
    config: dict[str, Any]
    tensors: tuple[Tensor, ...]
    bytes: int

    @property
    def beta(self) -> float:
        """The activation's present weight; 0 for a plain adapter."""
        return float(self.config["beta"]) if self.config["peft_type"] == AFA_LORA else 0.0

    @property
    def is_dora(self) -> bool:
        """Whether it has a magnitude per row."""
        return bool(self.config.get("use_dora"))

    @property
    def kind(self) -> str:
        """Plain or annealing, LoRA or DoRA."""
        name = "DoRA" if self.is_dora else "LoRA"
        return f"AFA-{name}, annealing" if self.beta > 0 else f"plain {name}"

    @property
    def parameters(self) -> int:
        """How many numbers the weights are."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def modules(self) -> Counter[str]:
        """How often each kind of layer is adapted, by the last part of its name."""
        paths = {t.name.split(".lora_A")[0] for t in self.tensors if ".lora_A" in t.name}
        return Counter(path.rsplit(".", 1)[-1] for path in sorted(paths))

    @property
    def ranks(self) -> list[int]:
        """The ranks that occur, ascending."""
        return sorted({t.shape[0] for t in self.tensors if ".lora_A" in t.name})

    @property
    def scale(self) -> float:
        """s = α/r of Eq. 2 (α/√r for rank-stabilised LoRA), where no pattern says otherwise."""
        rank = self.config["r"]
        return float(self.config["lora_alpha"] / (math.sqrt(rank) if self.config.get("use_rslora") else rank))

    @property
    def loads_in(self) -> str:
        """The programs that take the folder as it is, and how the others get it."""
        if self.beta > 0:
            return "afa_lora only, until β = 0: finish the training, or linearize it (afa_lora.linearize)"
        if self.is_dora or self.config.get("modules_to_save") or self.config.get("lora_bias"):
            return "stock PEFT; vLLM after afa export --to merged, llama.cpp after --to gguf"
        return "stock PEFT, vLLM (afa export --to vllm says how); llama.cpp after afa export --to gguf"


def adapter_in(path: Path) -> Path | None:
    """The adapter's folder: ``path`` itself, or that of the run in ``path``; ``None`` if it holds neither.

    Raises:
        AdapterFileError: there is no such folder.
    """
    if not path.is_dir():
        fault = "is a file" if path.exists() else f"does not exist (looked for it in {Path.cwd()})"
        raise AdapterFileError(f"{path} {fault}. Give an adapter's folder, or that of a run of afa sft.")
    return next((folder for folder in (path, path / "adapter") if (folder / CONFIG).is_file()), None)


def read_adapter(folder: Path) -> Adapter:
    """Read config and header, and check that the file is as long as its header says.

    Raises:
        AdapterFileError: no adapter, no LoRA adapter, or a damaged one; the message names the file.
    """
    config = _read_config(folder / CONFIG)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise AdapterFileError(f"{weights} is missing. Weights in other formats are not read: pickle can run code.")
    return Adapter(folder, config, _read_header(weights), weights.stat().st_size)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise AdapterFileError(
            f"{path} does not exist, so {path.parent} is no adapter folder, nor that of a finished run."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterFileError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(config, dict):
        raise AdapterFileError(f"{path} holds no JSON object: it is damaged.")
    kind = config.get("peft_type", "LORA")
    if kind not in ("LORA", AFA_LORA):
        raise AdapterFileError(f"{path}: peft_type={kind!r} is no LoRA adapter.")
    missing = (KEYS | AFA_KEYS if kind == AFA_LORA else KEYS) - set(config)
    if missing:
        raise AdapterFileError(f"{path} lacks {', '.join(sorted(missing))}: it is damaged.")
    return config


def _read_header(path: Path) -> tuple[Tensor, ...]:
    """Parse a safetensors header: 8 bytes with its length (little-endian), then JSON, then the data it describes."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise _damaged(path, "its header is cut off")
        raw = stream.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = tuple(Tensor(name, entry["dtype"], tuple(entry["shape"])) for name, entry in header.items())
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, "its header is not readable") from error
    if size != 8 + length + end:
        raise _damaged(path, f"it has {size:,} bytes, but its header describes {8 + length + end:,}")
    if not tensors:
        raise _damaged(path, "it holds no tensors")
    return tensors


def _damaged(path: Path, fault: str) -> AdapterFileError:
    return AdapterFileError(f"{path} is damaged: {fault}. Copy it again, or take it from the last checkpoint.")
