"""What the target says by plain greedy decoding, recorded once with its features, so that drafts need no target.

``FOLDER/record.json`` says whose record it is; ``FOLDER/SET/ID.safetensors`` holds one question: of each turn the
tokens and the features, in the file's header the length of the prompts and the seconds that the answers took. A file is
whole or not there: after a kill, recording goes on with the next question.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from afa_lora.core.errors import AfaLoraError
from afa_lora.data.records import Message
from afa_lora.eagle.evaluation.questions import Question
from afa_lora.eagle.evaluation.target import EvaluatedTarget, clock, prompt_tokens
from afa_lora.evaluation.commonsense.settings import weights_fingerprint
from afa_lora.evaluation.generate import evaluating
from afa_lora.files import write_atomic
from afa_lora.settings import differences

ABOUT = "record.json"
NAMES = {"model", "weights"}  # a target may lie elsewhere; its weights are compared once they are loaded


class RecordError(AfaLoraError, ValueError):
    """A record is of something else, or cannot be read or made."""


@dataclass(frozen=True)
class Turn:
    """One answer of the target.

    Attributes:
        tokens: (n,) int64, the prompt and the answer; the answer ends with an end token or at the length limit.
        prompt: how many of the tokens are the prompt.
        features: (n - 1, hidden), those of all tokens but the last, which the target never read.
        seconds: that the plain decoding took.
    """

    tokens: Tensor
    prompt: int
    features: Tensor
    seconds: float

    @property
    def answer(self) -> Tensor:
        """(n - prompt,) the answer's tokens."""
        return self.tokens[self.prompt :]


@dataclass(frozen=True)
class Record:
    """The record in ``folder``."""

    folder: Path

    @property
    def about(self) -> Path:
        """Whose record it is."""
        return self.folder / ABOUT

    def has(self, question: Question) -> bool:
        """Whether a question is recorded.

        Raises:
            RecordError: another question of the same set and number is.
        """
        if not self._path(question).is_file():
            return False
        if self._header(question)["question"] != question.fingerprint:
            raise RecordError(
                f"{self._path(question)} is of other texts than question {question.id} of {question.set} has now. "
                "Restore the questions, or choose another folder (--out)."
            )
        return True

    def digest(self, question: Question) -> str:
        """Tells the recorded tokens from others."""
        return str(self._header(question)["digest"])

    def read(self, question: Question, device: torch.device | str = "cpu") -> tuple[Turn, ...]:
        """The turns of a recorded question.

        Raises:
            RecordError: its file is damaged.
        """
        header = self._header(question)
        try:
            with safe_open(self._path(question), framework="pt", device=str(device)) as opened:
                return tuple(
                    Turn(
                        opened.get_tensor(f"tokens.{i}"),
                        turn["prompt"],
                        opened.get_tensor(f"features.{i}"),
                        turn["seconds"],
                    )
                    for i, turn in enumerate(header["turns"])
                )
        except (OSError, SafetensorError) as error:
            raise self._damaged(question, error) from error

    def write(self, question: Question, turns: Sequence[Turn]) -> None:
        """Keep a question; it is on disk when this returns."""
        tensors = {f"tokens.{i}": turn.tokens for i, turn in enumerate(turns)}
        tensors |= {f"features.{i}": turn.features for i, turn in enumerate(turns)}
        header = {
            "question": question.fingerprint,
            "digest": hashlib.sha256(json.dumps([turn.tokens.tolist() for turn in turns]).encode()).hexdigest()[:16],
            "turns": [{"prompt": turn.prompt, "seconds": round(turn.seconds, 6)} for turn in turns],
        }
        contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        write_atomic(self._path(question), save(contiguous, metadata={"record": json.dumps(header)}))

    def _path(self, question: Question) -> Path:
        return self.folder / quote(question.set, safe="") / f"{quote(question.id, safe='')}.safetensors"

    def _header(self, question: Question) -> dict[str, Any]:
        try:
            with safe_open(self._path(question), framework="pt") as opened:
                header: dict[str, Any] = json.loads(opened.metadata()["record"])
        except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
            raise self._damaged(question, error) from error
        return header

    def _damaged(self, question: Question, error: Exception) -> RecordError:
        return RecordError(f"{self._path(question)} is damaged: {error}. Remove it, and the question is asked again.")


def record_answers(
    target: EvaluatedTarget,
    questions: Sequence[Question],
    max_new_tokens: int,
    folder: Path,
    *,
    check_weights: bool = False,
    start: Callable[[int], object] = lambda missing: None,
    advance: Callable[[], object] = lambda: None,
) -> Record:
    """Record the target's answers to the questions that are not recorded yet.

    The target is not loaded where there are none, it has the name that the record names, and ``check_weights`` is not
    set: then its two ends alone are compared with the record's.

    Args:
        target: answers; by its chat template.
        questions: a later turn's prompt holds the target's own answers to those before it.
        max_new_tokens: the longest answer, in tokens.
        folder: of the record.
        check_weights: load the target, and compare all of it, in any case.
        start: called with the number of questions that are to be asked.
        advance: called after each.

    Raises:
        RecordError: the folder holds a record of another target, template, dtype or length, or of other questions; a
            prompt is too long for the target; the target computes no finite numbers.
    """
    record = Record(folder)
    _check(record, target, max_new_tokens)
    missing = [question for question in questions if not record.has(question)]
    start(len(missing))
    known = json.loads(record.about.read_bytes()) if record.about.is_file() else None
    if not missing and known and known["model"] == target.name and not check_weights:
        return record
    weights = weights_fingerprint(target.model)
    if known is None:
        write_atomic(record.about, json.dumps({**_about(target, max_new_tokens), "weights": weights}, indent=2) + "\n")
    elif known["weights"] != weights:
        raise RecordError(
            f"{folder} holds the answers of {known['model']} with the weights {known['weights']}; {target.name} has "
            f"{weights}. Choose another folder (--out), or remove that one."
        )
    with evaluating(target.model):
        if missing:  # what the first call of all takes longer is no decoding
            answer(target.model, prompt_tokens(target.tokenizer, _conversation(missing[0].turns, [])), 2)
        for question in missing:
            record.write(question, ask(target, question, max_new_tokens))
            advance()
    return record


def ask(target: EvaluatedTarget, question: Question, max_new_tokens: int) -> list[Turn]:
    """Put a question to the target, turn by turn; the arguments are those of `record_answers`."""
    turns: list[Turn] = []
    replies: list[str] = []
    longest = getattr(target.model.config, "max_position_embeddings", None)
    for number in range(len(question.turns)):
        prompt = prompt_tokens(target.tokenizer, _conversation(question.turns[: number + 1], replies))
        if longest is not None and len(prompt) + max_new_tokens > longest:
            raise RecordError(
                f"Question {question.id} of {question.set} has {len(prompt)} tokens in turn {number + 1}; with "
                f"max_new_tokens={max_new_tokens} that is more than the {longest} that {target.name} can read. Give "
                "fewer new tokens, or leave the question out."
            )
        turns.append(answer(target.model, prompt, max_new_tokens))
        if not turns[-1].features.isfinite().all():
            raise RecordError(
                f"{target.name} computes features that are no finite numbers, at question {question.id} of "
                f"{question.set}: its answers mean nothing. Look at its weights, or give another --dtype."
            )
        replies.append(str(target.tokenizer.decode(turns[-1].answer, skip_special_tokens=True)).strip())
    return turns


def answer(model: PreTrainedModel, prompt: Tensor, max_new_tokens: int) -> Turn:
    """Decode greedily, and keep the features that the model computes anyway.

    Args:
        model: a causal language model, inside `evaluating`.
        prompt: (length,).
        max_new_tokens: the longest answer, in tokens.
    """
    features: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: BaseModelOutputWithPast) -> None:
        assert output.last_hidden_state is not None
        features.append(output.last_hidden_state[0])  # (length of the prompt, hidden), then (1, hidden) a token

    with_hook = model.base_model.register_forward_hook(keep)
    try:
        tokens, seconds = generate(model, prompt, max_new_tokens)
    finally:
        with_hook.remove()
    return Turn(tokens.cpu(), len(prompt), torch.cat(features)[: len(tokens) - 1].cpu(), seconds)


def generate(model: PreTrainedModel, prompt: Tensor, max_new_tokens: int, **options: Any) -> tuple[Tensor, float]:
    """Greedy decoding with transformers' ``generate``.

    Args:
        model: a causal language model, inside `evaluating`.
        prompt: (length,).
        max_new_tokens: the longest answer, in tokens.
        options: passed on; ``custom_generate``, for example.

    Returns:
        (n,) prompt and answer, and the seconds by the wall clock.
    """
    inputs = prompt[None].to(model.device)
    given = {"max_new_tokens": max_new_tokens, "do_sample": False, "pad_token_id": 0, **options}  # nothing is padded
    begin = clock(model.device)
    tokens = model.generate(inputs, attention_mask=torch.ones_like(inputs), **given)  # type: ignore[operator]
    return tokens[0], clock(model.device) - begin


def _conversation(turns: Sequence[str], replies: Sequence[str]) -> list[Message]:
    messages = []
    for number, turn in enumerate(turns):
        messages.append({"role": "user", "content": turn})
        if number < len(replies):
            messages.append({"role": "assistant", "content": replies[number]})
    return messages


def _about(target: EvaluatedTarget, max_new_tokens: int) -> dict[str, Any]:
    return {
        "model": target.name,
        "target": target.ends.digest,
        "template": target.template,
        "max_new_tokens": max_new_tokens,
        "dtype": str(target.dtype).removeprefix("torch."),
    }


def _check(record: Record, target: EvaluatedTarget, max_new_tokens: int) -> None:
    if not record.about.is_file():
        if any(record.folder.glob("*/*.safetensors")):
            raise RecordError(f"{record.folder} holds answers and no {ABOUT}: whose they are is not known. Remove it.")
        return
    try:
        known = json.loads(record.about.read_bytes())
    except ValueError as error:
        raise RecordError(f"{record.about} is damaged: {error}. Restore it, or remove {record.folder}.") from error
    if changes := list(differences(known, _about(target, max_new_tokens), NAMES)):
        raise RecordError(
            "\n  ".join([f"{record.folder} holds another record. There it is, here it is:", *changes])
            + "\nChoose another folder (--out), or remove that one. Nothing in it was changed."
        )
