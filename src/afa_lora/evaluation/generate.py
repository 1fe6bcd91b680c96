"""Greedy answers in batches: left padding, prompts of like length together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from afa_lora.data.records import Message


@torch.inference_mode()
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

    Args:
        model: put into evaluation mode meanwhile.
        tokenizer: with a chat template.
        prompts: conversations that the model is to continue.
        max_new_tokens: longest answer, in tokens.
        batch_size: how many prompts at a time.
        advance: called with the number of prompts answered since the last call.

    Returns:
        the answers in the order of the prompts, without special tokens and surrounding white space.
    """
    texts = [tokenizer.apply_chat_template(list(p), tokenize=False, add_generation_prompt=True) for p in prompts]
    token_ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    longest_first = sorted(range(len(prompts)), key=lambda i: -len(token_ids[i]))  # the largest batch fails first
    answers = [""] * len(prompts)
    was_training = model.training
    model.eval()
    for start in range(0, len(prompts), batch_size):
        chosen = longest_first[start : start + batch_size]
        batch = tokenizer.pad({"input_ids": [token_ids[i] for i in chosen]}, padding_side="left", return_tensors="pt")
        batch = batch.to(model.device)  # (batch, longest prompt)
        generated = model.generate(  # type: ignore[operator]
            **batch, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        new_tokens = generated[:, batch["input_ids"].shape[1] :]  # (batch, ≤ max_new_tokens)
        for i, answer in zip(chosen, tokenizer.batch_decode(new_tokens, skip_special_tokens=True), strict=True):
            answers[i] = answer.strip()
        advance(len(chosen))
    model.train(was_training)
    return answers
