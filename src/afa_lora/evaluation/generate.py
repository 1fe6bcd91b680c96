"""Answers in batches: left padding, prompts of like length together, shared out over the processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from afa_lora.core.errors import AfaLoraError
from afa_lora.data.records import Message


class NoNumbersError(AfaLoraError):
    """A model computes NaN."""


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    batch_size: int = 32,
    advance: Callable[[int], object] = lambda count: None,
) -> list[str]:
    """Answer each prompt with the most likely tokens.

    In a process group every rank must call this with the same arguments; each answers its share, and all return all
    the answers.

    Args:
        model: put into evaluation mode meanwhile. Replicated on the ranks, or sharded by FSDP2 with ``model`` as root.
        tokenizer: with a chat template.
        prompts: conversations that the model is to continue.
        max_new_tokens: longest answer, in tokens.
        batch_size: how many prompts at a time, per rank.
        advance: called with the number of prompts answered, on all ranks together, since the last call.

    Returns:
        the answers in the order of the prompts, without special tokens and surrounding white space.
    """
    texts = [tokenizer.apply_chat_template(list(p), tokenize=False, add_generation_prompt=True) for p in prompts]
    token_ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    ranks = dist.get_world_size() if _in_group() else 1
    answers: dict[int, str] = {}
    with evaluating(model):
        for batch in longest_first([len(ids) for ids in token_ids], batch_size * ranks):
            given = generate_batch(model, tokenizer, [token_ids[i] for i in batch], max_new_tokens=max_new_tokens)
            answers |= zip(batch, given, strict=True)
            advance(len(batch))
    return [answers[i] for i in range(len(prompts))]


@torch.no_grad()  # not inference_mode: what FSDP2 gathers in it can never be trained with
def generate_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    token_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    beams: int = 1,
    done: Callable[[str], bool] | None = None,
) -> list[str]:
    """Answer prompts together; the arguments are those of `generate_answers`, and prompts are given in tokens.

    Args:
        model: inside `evaluating`.
        tokenizer: for the special tokens, and to decode.
        token_ids: the prompts.
        max_new_tokens: longest answer, in tokens.
        beams: 1 takes the most likely token each time; more search with so many beams.
        done: says of an unfinished answer that nothing which may follow matters; it is not generated then. Without
            beams only.

    Raises:
        NoNumbersError: a logit is NaN.
    """
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if _in_group() else (0, 1)
    numbers = range(len(token_ids))
    chosen = numbers[rank::ranks] or numbers[:1]  # a rank without a prompt keeps step with the others
    batch = _left_padded([token_ids[i] for i in chosen], _pad_token(tokenizer), model.device)
    start = batch["input_ids"].shape[1]
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False, "num_beams": beams}
    options["logits_processor"] = LogitsProcessorList([_Numbers()])
    if done is not None:
        options["stopping_criteria"] = StoppingCriteriaList([_Done(tokenizer, start, done)])
    if _is_sharded(model):
        options["synced_gpus"] = True  # every forward gathers weights: all ranks must take equally many steps
    generated = model.generate(**batch, **options, pad_token_id=_pad_token(tokenizer))  # type: ignore[operator]
    texts = _decoded(tokenizer, generated[:, start:])  # (batch, ≤ max_new_tokens)
    answers = _gathered({i: text.strip() for i, text in zip(chosen, texts, strict=True)})
    return [answers[i] for i in numbers]


def longest_first(lengths: Sequence[int], items: int | None, tokens: int | None = None) -> list[list[int]]:
    """Put items of like length together, the longest first: what does not fit into memory fails at once.

    Args:
        lengths: of the items, in tokens.
        items: of a batch; ``None`` takes as many as have ``tokens`` together, padding included, but at least one.
        tokens: of a batch, where ``items`` is ``None``.

    Returns:
        batches of positions in ``lengths``.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        room = items or max(1, (tokens or 0) // lengths[batches[-1][0]]) if batches else 0
        if not batches or len(batches[-1]) >= room:
            batches.append([])
        batches[-1].append(i)
    return batches


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Have ``model`` in evaluation mode inside the block, and without what it brings for its conversations.

    Some models come with a repetition penalty or tokens that are never generated: `generate` would apply them.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    was_training, own = model.training, base.generation_config
    tokens = {name: getattr(own, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.eval()
    base.generation_config = GenerationConfig(**tokens)
    try:
        yield
    finally:
        base.generation_config = own
        model.train(was_training)


class _Numbers(LogitsProcessor):
    """Changes nothing, and refuses logits that are not numbers: their answers would pass for wrong ones."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if torch.isnan(scores).any():
            raise NoNumbersError("The model's logits are not numbers (NaN): it cannot answer. Look at its weights.")
        return scores


class _Done(StoppingCriteria):
    """Ends an answer when ``done`` says so of its text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start: int, done: Callable[[str], bool]) -> None:
        self._tokenizer, self._start, self._done = tokenizer, start, done

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        texts = _decoded(self._tokenizer, input_ids[:, self._start :])
        return torch.tensor([self._done(text) for text in texts], device=input_ids.device)


def _decoded(tokenizer: PreTrainedTokenizerBase, token_ids: Tensor) -> list[str]:
    return tokenizer.batch_decode(token_ids, skip_special_tokens=True)


def _pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any token pads what is masked; after the end of an answer one that is not shown does."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in known if token is not None)


def _left_padded(token_ids: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    longest = max(map(len, token_ids))
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in token_ids])
    lengths = torch.tensor([len(row) for row in token_ids])
    mask = torch.arange(longest) >= longest - lengths[:, None]
    return {"input_ids": ids.to(device), "attention_mask": mask.long().to(device)}  # (batch, longest prompt)


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _is_sharded(model: PreTrainedModel) -> bool:
    """Is ``model`` sharded by FSDP2? Then `generate` is made a method before which the root's weights are gathered."""
    if not _in_group():
        return False
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    if isinstance(model, FSDPModule) and "generate" not in vars(model):
        register_fsdp_forward_method(model, "generate")
    return any(isinstance(module, FSDPModule) for module in model.modules())


def _gathered(answers: dict[int, str]) -> dict[int, str]:
    """The answers of all ranks, on each of them."""
    if not _in_group():
        return answers
    shares: list[dict[int, str]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(shares, answers)
    return {i: answer for share in reversed(shares) for i, answer in share.items()}
