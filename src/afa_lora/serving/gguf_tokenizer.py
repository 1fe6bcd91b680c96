"""A byte-level BPE tokenizer in the terms of llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from afa_lora.serving.check import ExportError

REMEDY = "Write the merged model (--to merged) and give that folder to llama.cpp's convert_hf_to_gguf.py."

# How the text is split before the merges, as tokenizer.json says it, and llama.cpp's name for it. Llama 3 and Qwen 2
# differ in how many digits make a piece.
_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITTERS: dict[tuple[object, ...], str] = {
    ("ByteLevel+regex",): "gpt-2",
    ("Digits", "ByteLevel+regex"): "smollm",
    (_SPLIT % r"\p{N}{1,3}", "ByteLevel"): "llama-bpe",
    (_SPLIT % r"\p{N}", "ByteLevel"): "qwen2",
}

# What splitters differ in: digits, contractions, runs of spaces, line ends, letters of other scripts, signs.
TEXTS = (
    "It's 12345678 + 9 = 12345687, I'LL bet; they'd say 3.14!",
    "def f(x):\n    return x  # two  spaces\t\ttabs\n\n\nend \n ",
    "Größe, naïve, Ελληνικά, русский, 日本語, 한국어, العربية 🦙🚀",
    "a_b-c/d\\e {json: [1, 2]} <tag> ''' ``` ...... ?!",
)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Add vocabulary, merges, special tokens and chat template.

    Raises:
        ExportError: no byte-level BPE tokenizer, or one with a splitter that has no known name in llama.cpp.
    """
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        config.save_pretrained(folder)
        file = Path(folder) / "tokenizer.json"
        if not file.is_file():
            raise ExportError(f"{type(tokenizer).__name__} has no tokenizer.json to be written as GGUF. {REMEDY}")
        settings = json.loads(file.read_text(encoding="utf-8"))
        special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=config.vocab_size)
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name for every byte-level BPE
    writer.add_tokenizer_pre(_splitter(settings))
    tokens, types = zip(*_vocabulary(tokenizer, config.vocab_size), strict=True)
    writer.add_token_list(list(tokens))
    writer.add_token_types(list(types))
    start = tokenizer("").input_ids
    special.add_special_token |= {"bos": start[:1] == [tokenizer.bos_token_id], "eos": False}
    special.add_to_gguf(writer, quiet=True)


def _splitter(settings: dict[str, Any]) -> str:
    """llama.cpp's name for the way in which tokenizer.json splits a text."""
    model, normalizer = settings["model"], settings.get("normalizer") or {}
    if model["type"] != "BPE" or model.get("byte_fallback") or normalizer.get("type", "NFC") != "NFC":
        raise ExportError(f"the tokenizer is no byte-level BPE, the only kind that afa writes as GGUF. {REMEDY}")
    pre = settings.get("pre_tokenizer") or {}
    steps = tuple(_step(step) for step in pre.get("pretokenizers", [pre]))
    if steps not in SPLITTERS:
        raise ExportError(f"the tokenizer splits text by {steps}, for which afa knows no name in llama.cpp. {REMEDY}")
    return SPLITTERS[steps]


def _step(step: dict[str, Any]) -> object:
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}:
            return "ByteLevel+regex" if use_regex else "ByteLevel"
        case {"type": "Digits", "individual_digits": True}:
            return "Digits"
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return pattern
    return json.dumps(step)


def _vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> Iterator[tuple[str, gguf.TokenType]]:
    """Each token and its type; ids that the tokenizer leaves out, up to the model's ``size``, are filled up."""
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    for index in range(size):
        if index not in by_id:
            yield f"[PAD{index}]", gguf.TokenType.UNUSED
        elif index in added:
            yield by_id[index], gguf.TokenType.CONTROL if added[index].special else gguf.TokenType.USER_DEFINED
        else:
            yield by_id[index], gguf.TokenType.NORMAL
