"""Tiny models with real byte-level BPE tokenizers, and adapters for them that are visible in the logits."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from afa_lora import AfaLoraConfig, set_beta

VOCABULARY = 320  # more than the tokenizer has: the rest are the rows with which models are padded
SPECIAL = ["<|pad|>", "<|start|>", "<|end|>"]
CORPUS = ["It's 12 and 345; they'd say: we're 6789 of 99 here.", "the theme of the other then is that there"] * 4
CHAT = "{% for message in messages %}<|start|>{{ message['content'] }}<|end|>{% endfor %}"

_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SCALED = {"rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**_SHAPE, tie_word_embeddings=False),
    "llama tied": LlamaConfig(**_SHAPE, tie_word_embeddings=True),
    "llama with biases": LlamaConfig(**_SHAPE, attention_bias=True, mlp_bias=True),
    "llama with wide heads": LlamaConfig(**_SHAPE, head_dim=32),
    "llama, scaled as Llama 3": LlamaConfig(
        **_SHAPE, rope_parameters={"rope_type": "llama3", "original_max_position_embeddings": 32, **_SCALED}
    ),
    "llama, scaled linearly": LlamaConfig(
        **_SHAPE, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    ),
    "qwen2": Qwen2Config(**_SHAPE, tie_word_embeddings=False),
    "qwen3 tied": Qwen3Config(**_SHAPE, head_dim=16, tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2),
}


def byte_level(use_regex: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), behavior="isolated"), byte_level(use_regex=False)]
    )


SPLITTERS = {
    "gpt-2": byte_level(use_regex=True),
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(use_regex=True)]),
    "llama-bpe": split(PRETOKENIZE_REGEX.replace(r"|\p{N}|", r"|\p{N}{1,3}|")),
    "qwen2": split(PRETOKENIZE_REGEX),
}


def save_model(folder: Path, kind: str = "llama", splitter: str = "gpt-2", dtype: torch.dtype = torch.float32) -> Path:
    """Write a model with random weights, biases too, and a trained tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind])
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    model.to(dtype).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = SPLITTERS[splitter]
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2]
    )
    fast.chat_template = CHAT
    fast.save_pretrained(folder)
    return folder


def save_adapter(folder: Path, base: Path, beta: float | None = 0.0, std: float = 0.1, **settings: Any) -> Path:
    """Write an adapter with B ≠ 0: AFA at ``beta``, or PEFT's own if that is ``None``."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base)
    arguments = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    adapted = get_peft_model(model, LoraConfig(**arguments) if beta is None else AfaLoraConfig(**arguments))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "lora_embedding_B" in name:
            torch.nn.init.normal_(parameter, std=std)
    if beta is not None:
        set_beta(adapted, beta)
    adapted.save_pretrained(folder)
    return folder
