"""The inputs of a training step, kept so that slopes can be measured on real activations. Needs no verl."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from afa_lora.files import write_atomic

KEPT = ("input_ids", "attention_mask", "position_ids")


class Probe:
    """The model inputs of this rank's latest training forward, cut to ``limit`` tokens.

    verl gives the model either one packed row (1, tokens), where a prefix is as good a text as the whole, or padded
    rows (batch, time), of which the first ones are kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.inputs: dict[str, Tensor] = {}

    def keep(self, inputs: Mapping[str, Any]) -> None:
        tensors = {key: inputs[key].detach() for key in KEPT if isinstance(inputs.get(key), Tensor)}
        rows, length = tensors["input_ids"].shape
        packed = "attention_mask" not in tensors
        rows, length = (rows, min(length, self.limit)) if packed else (max(1, self.limit // length), length)
        # position_ids (rows, time), or (axes, rows, time) for models with several axes
        self.inputs = {key: tensor[..., :rows, :length].clone() for key, tensor in tensors.items()}

    def batch(self, device: torch.device) -> dict[str, Any]:
        """Keyword arguments of the model's forward; ``labels`` is there so that no loss is computed."""
        inputs = {key: tensor.to(device) for key, tensor in self.inputs.items()}
        return {"attention_mask": None, **inputs, "labels": None, "use_cache": False}

    def save(self, path: Path) -> None:
        write_atomic(path, save({key: tensor.cpu().contiguous() for key, tensor in self.inputs.items()}))

    def load(self, path: Path) -> None:
        self.inputs = load_file(path)
