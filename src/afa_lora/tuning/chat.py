"""A conversation with a trained model and its base side by side: one model in memory, the adapter on or off."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, TextStreamer

from afa_lora import AfaLoraError, load_adapter
from afa_lora.data.records import Message
from afa_lora.models import check_chat_template
from afa_lora.peft.model import anneal_states
from afa_lora.serving import locate
from afa_lora.tuning.loading import training_precision
from afa_lora.tuning.recipe import read_run


class ConversationTooLongError(AfaLoraError):
    """The conversation leaves no room for an answer in the model's context."""


@dataclass
class Side:
    """One of the two that answer.

    Attributes:
        name: ``base`` or ``adapter``.
        uses_adapter: whether the adapter is on.
        messages: the conversation so far, as this side has it.
    """

    name: str
    uses_adapter: bool
    messages: list[Message] = field(default_factory=list)


class Chat:
    """Puts each question to the base model and to the model with the adapter; each remembers its own answers.

    Args:
        model: with one adapter, in evaluation mode.
        tokenizer: with a chat template.
        system: a system message to put first.
        max_new_tokens: longest answer, in tokens.
    """

    def __init__(
        self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, system: str | None = None, max_new_tokens: int = 256
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_new_tokens = max_new_tokens
        self.sides = (Side("base", False), Side("adapter", True))
        self._start: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self.reset()

    @property
    def beta(self) -> float:
        """β of the adapter; 0 for an ordinary one."""
        return max((state.beta for state in anneal_states(self.model).values()), default=0.0)

    def reset(self) -> None:
        """Forget both conversations."""
        for side in self.sides:
            side.messages = list(self._start)

    def answer(self, side: Side, question: str, show: Callable[[str], None] = lambda text: None) -> str:
        """Answer with the most likely tokens, and remember question and answer.

        Args:
            side: one of `sides`.
            question: what is asked.
            show: takes each piece of the answer as soon as it is there.

        Raises:
            ConversationTooLongError: with the question it fills the model's context; the question is forgotten.
            KeyboardInterrupt: from the user; question and answer are then forgotten.
        """
        messages = [*side.messages, {"role": "user", "content": question}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = self.tokenizer(text, add_special_tokens=False, return_tensors="pt").to(self.model.device)
        room = self._room(inputs["input_ids"].shape[1])
        adapter: AbstractContextManager[Any] = nullcontext() if side.uses_adapter else self.model.disable_adapter()
        with torch.inference_mode(), adapter:
            tokens = self.model.generate(
                **inputs,
                max_new_tokens=int(min(self.max_new_tokens, room)),
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
                streamer=_Streamer(self.tokenizer, show),
            )
        new = tokens[0, inputs["input_ids"].shape[1] :]
        answer = str(self.tokenizer.decode(new, skip_special_tokens=True)).strip()
        side.messages = [*messages, {"role": "assistant", "content": answer}]
        return answer

    def _room(self, tokens: int) -> float:
        """How many tokens the model's context holds beside ``tokens``; infinite if it knows no limit."""
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", math.inf)
        if tokens >= context:
            raise ConversationTooLongError(
                f"the conversation is too long: with this question it has {tokens} tokens, and the model's context "
                f"holds {context}, the answer included. /reset forgets the conversation."
            )
        return float(context - tokens)


class _Streamer(TextStreamer):
    """Hands over the pieces of an answer instead of printing them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, show: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._show = show

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._show(text)


def open_chat(
    path: Path, max_new_tokens: int = 256, base: str | None = None, report: Callable[[str], None] = print
) -> Chat:
    """Load the base model and the adapter of a run, or of an adapter folder alone.

    Args:
        path: the output folder of `afa sft`, a checkpoint of it, or an adapter's folder.
        max_new_tokens: longest answer, in tokens.
        base: the base model, if not the one that the run or the adapter names.
        report: takes one line if something takes long.

    Raises:
        AfaLoraError: there is no adapter, or it or its base model cannot be loaded.
    """
    located = locate(path, base)
    recipe = read_run(located.recipe) if located.recipe else None
    # As it was trained, except that quantised weights are loaded whole.
    dtype = training_precision(recipe).weights if recipe else "auto"
    model, tokenizer = located.load_base(report=report, **{**located.options, "dtype": dtype})
    check_chat_template(located.base, tokenizer)
    device = torch.accelerator.current_accelerator()
    if device is not None and model.device.type == "cpu":
        model.to(device)  # type: ignore[arg-type]
    system = recipe.data.system if recipe else None
    return Chat(load_adapter(model, located.adapter).eval(), tokenizer, system, max_new_tokens)
