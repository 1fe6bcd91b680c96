"""How an exported draft is served, and the card that lies beside it and says so."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from afa_lora.eagle.export.formats import Format
from afa_lora.eagle.model import EagleConfig
from afa_lora.models import EMBEDDED

TOKENS = 3  # drafted in a cycle unless the user asks for others; what vLLM's own examples have
HERE = "path/to/this/folder"
THERE = "path/to/the/target"  # where the target has no name that other programs know
NOTES = {
    "vllm": "vLLM drafts a chain. Embedding and output layer come from the target, tied or not.",
    "sglang": "SGLang drafts a tree. `fc.bias` is zero: SGLang's `fc` has a bias, the draft none.",
    "safeailab": (
        "For EAGLE-1 and EAGLE-2 decoding, hence `use_eagle3=False`. Versions of the repository that know "
        "`pytorch_model.bin` alone cannot read this folder. The target's embedding is found by its "
        "`model.safetensors.index.json`; a target in one file has none, so save such a one anew in several: "
        '`save_pretrained(folder, max_shard_size="200MB")`.'
    ),
}
CARD = """\
---
{metadata}
---

# EAGLE-1 draft for {title}, for {program}

One decoder layer that continues the features of `{title}` for speculative decoding
([EAGLE](https://arxiv.org/abs/2401.15077)). Embedding and output layer are the target's and not in here. It continues
this target alone: another fine-tuning has other features.

```{language}
{usage}
```

{note}

| | |
|---|---|
| hidden size, heads, key-value heads, head size | {shape} |
| vocabulary, positions | {sizes} |
| digest of the target | `{digest}` |

Made with afa-lora.
"""


def usage(form: Format, target: str, folder: str) -> str:
    """The command, or the lines of Python, that serve the draft in ``folder`` with its target."""
    target = THERE if target in EMBEDDED else target
    if form.name == "vllm":
        options = json.dumps({"method": "eagle", "model": folder, "num_speculative_tokens": TOKENS})
        return shlex.join(["vllm", "serve", target, "--speculative-config", options])
    if form.name == "sglang":
        tree = ["--speculative-num-steps", "5", "--speculative-eagle-topk", "8", "--speculative-num-draft-tokens", "32"]
        server = ["python", "-m", "sglang.launch_server", "--model-path", target]
        return shlex.join(
            [*server, "--speculative-algorithm", "EAGLE", "--speculative-draft-model-path", folder, *tree]
        )
    return "\n".join(
        [
            "from eagle.model.ea_model import EaModel",
            "model = EaModel.from_pretrained(",
            f"    use_eagle3=False, base_model_path={target!r},",
            f'    ea_model_path={folder!r}, total_token=60, depth=5, top_k=10, torch_dtype="auto",',
            ")",
        ]
    )


def card(form: Format, target: str, config: EagleConfig) -> str:
    """The README.md of an exported draft."""
    base = EMBEDDED[target].hub if target in EMBEDDED else target
    metadata = ["library_name: " + json.dumps(form.name), 'tags: ["eagle", "speculative-decoding"]']
    if not Path(base).expanduser().is_dir():
        metadata.insert(0, f"base_model: {json.dumps(base)}")
    return CARD.format(
        metadata="\n".join(metadata),
        title=target,
        program=form.program,
        language="python" if form.name == "safeailab" else "sh",
        usage=usage(form, target, HERE),
        note=NOTES[form.name],
        shape=f"{config.hidden_size}, {config.num_attention_heads}, {config.num_key_value_heads}, {config.head_dim}",
        sizes=f"{config.vocab_size}, {config.max_position_embeddings}",
        digest=config.target_digest,
    )
