"""Greedy answers in batches: left padding, prompts of like length together, shared out over the processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from afa_lora.data.records import Message


@torch.no_grad()  # not inference_mode: what FSDP2 gathers in it can never be trained with
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
    longest_first = sorted(range(len(prompts)), key=lambda i: -len(token_ids[i]))  # the largest batch fails first
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if _in_group() else (0, 1)
    options = {"max_new_tokens": max_new_tokens, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    if _is_sharded(model):
        options["synced_gpus"] = True  # every forward gathers weights: all ranks must take equally many steps
    answers: dict[int, str] = {}
    was_training = model.training
    model.eval()
    for start in range(0, len(prompts), batch_size * ranks):
        together = longest_first[start : start + batch_size * ranks]
        chosen = together[rank::ranks] or together[:1]  # a rank without a prompt keeps step with the others
        batch = tokenizer.pad({"input_ids": [token_ids[i] for i in chosen]}, padding_side="left", return_tensors="pt")
        batch = batch.to(model.device)  # (batch, longest prompt)
        generated = model.generate(**batch, **options)  # type: ignore[operator]
        new_tokens = generated[:, batch["input_ids"].shape[1] :]  # (batch, ≤ max_new_tokens)
        decoded = tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
        answers |= {i: answer.strip() for i, answer in zip(chosen, decoded, strict=True)}
        advance(len(together))
    model.train(was_training)
    answers = _gathered(answers)
    return [answers[i] for i in range(len(prompts))]


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
