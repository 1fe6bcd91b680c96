"""The target of an evaluation: its two ends at once, the whole model only when something needs it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from afa_lora.data.records import Message, counted
from afa_lora.eagle.target import TargetEnds
from afa_lora.eagle.templates import DATE
from afa_lora.models import ModelError, hardware_dtype, load_model, read_parts


class EvaluatedTarget:
    """A target by name, on the accelerator where there is one.

    Args:
        name: hub id, local folder or embedded model.
        dtype: ``float32``, ``bfloat16``, ``float16``; ``auto`` is what the hardware computes in.
        say: takes one line of text when something takes long.

    Attributes:
        ends: what drafts share with it.
        tokenizer: with a chat template.

    Raises:
        ModelError: there is no such model, or it has no chat template.
        DraftError: its architecture has no draft here.
    """

    def __init__(self, name: str, dtype: str = "auto", say: Callable[[str], None] = print) -> None:
        accelerator = torch.accelerator.current_accelerator()
        self.device = torch.device("cpu") if accelerator is None else accelerator
        self.dtype: torch.dtype = hardware_dtype(self.device.type)[0] if dtype == "auto" else getattr(torch, dtype)
        self.name, self._say = name, say
        self.ends = TargetEnds.load(name, dtype=self.dtype).to(self.device)
        self.tokenizer = _with_template(name, read_parts(name).tokenizer)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model, loaded when it is first asked for."""
        model, _ = load_model(self.name, report=self._say, dtype=self.dtype)
        loaded: PreTrainedModel = model.to(self.device).eval()  # type: ignore[arg-type]
        return loaded

    @property
    def hardware(self) -> str:
        """What it computes on, for the record of times."""
        if self.device.type == "cpu":
            return counted(torch.get_num_threads(), "CPU thread(s)")
        return torch.cuda.get_device_name() if self.device.type == "cuda" else str(self.device)

    @property
    def template(self) -> str:
        """A fingerprint of the chat template."""
        return hashlib.sha256(self.tokenizer.get_chat_template().encode()).hexdigest()[:16]


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Tensor:
    """A conversation that the model is to go on with, by its chat template: (length,) int64. Today is always `DATE`."""
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True, date_string=DATE)
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])


def clock(device: torch.device) -> float:
    """Seconds by the wall clock, when the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _with_template(name: str, tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    if tokenizer is None or tokenizer.chat_template is None:
        raise ModelError(
            f"model={name!r} has no {'tokenizer' if tokenizer is None else 'chat template'}, so the questions have no "
            "form. Give the instruction-tuned target that the drafts were trained for."
        )
    return tokenizer
