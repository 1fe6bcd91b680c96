"""What a draft shares with its target: the embedding and the output layer, and how the target's features are had."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from afa_lora.eagle.model import DraftError, EagleConfig, EagleDraft, check_architecture, same_target
from afa_lora.models import EMBEDDED, ModelError, embedded_folder, read_parts

NORM, EMBEDDING, HEAD = "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"
SAMPLED_ROWS = 64  # of the embedding and the output layer, for the digest
LAYER = "model.layers.{layer}.{part}.weight"
PARTS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)  # of the first and the last layer, which lie in the same files as the ends


@dataclass(frozen=True)
class TargetEnds:
    """The two ends of the target, frozen.

    Attributes:
        name: where the target comes from.
        config: its configuration.
        embedding: (vocabulary, hidden).
        head: (vocabulary, hidden); the same tensor as ``embedding`` where the target ties them.
        digest: tells this target from others of the same shape, a fine-tuned one too, by some rows of its weights; the
            same in float32 and in bfloat16. To be compared by `afa_lora.eagle.model.same_target`: where the layers are
            quantised or elsewhere, it is of the ends alone.
    """

    name: str
    config: PretrainedConfig
    embedding: Tensor
    head: Tensor
    digest: str

    @classmethod
    def of(cls, model: PreTrainedModel, name: str) -> TargetEnds:
        """Those of a loaded target.

        Raises:
            DraftError: its architecture has no draft here.
        """
        check_architecture(model.config, name)
        parts: Any = model.base_model.norm, model.get_input_embeddings(), model.get_output_embeddings()
        norm, embedding, head = (part.weight.detach() for part in parts)
        layers: Any = model.base_model.layers
        rows = [layers[layer].get_submodule(part).weight[:1] for layer in (0, -1) for part in PARTS]
        return cls(name, model.config, embedding, head, _digest(norm, embedding, head, rows))

    @classmethod
    def load(cls, name: str, *, dtype: torch.dtype = torch.float32, **options: Any) -> TargetEnds:
        """Those of a target that is not loaded: of its weights only these tensors are read.

        Args:
            name: as for `afa_lora.models.load_model`.
            dtype: of the tensors.
            options: ``revision`` and ``trust_remote_code``, as for `read_parts`.

        Raises:
            ModelError: there is no such model, or its weights are not safetensors.
            DraftError: its architecture has no draft here.
        """
        source = str(embedded_folder(name)) if name in EMBEDDED else name
        config = read_parts(source, **options).config
        check_architecture(config, name)
        tied = bool(getattr(config, "tie_word_embeddings", False))
        wanted = dict.fromkeys((NORM, EMBEDDING) if tied else (NORM, EMBEDDING, HEAD), slice(None))
        ends = (0, config.num_hidden_layers - 1)
        rows = [LAYER.format(layer=layer, part=part) for layer in ends for part in PARTS]
        tensors = _read_tensors(source, {**wanted, **dict.fromkeys(rows, slice(1))}, name, options.get("revision"))
        head = tensors.get(HEAD, tensors[EMBEDDING])
        digest = _digest(tensors[NORM], tensors[EMBEDDING], head, [tensors[row] for row in rows])
        embedding = tensors[EMBEDDING].to(dtype)
        return cls(name, config, embedding, tensors[HEAD].to(dtype) if HEAD in tensors else embedding, digest)

    def to(self, device: torch.device | str) -> TargetEnds:
        """The same on another device."""
        embedding = self.embedding.to(device)
        head = embedding if self.head is self.embedding else self.head.to(device)
        return TargetEnds(self.name, self.config, embedding, head, self.digest)

    def embed(self, tokens: Tensor) -> Tensor:
        """(…) token ids to (…, hidden)."""
        return nn.functional.embedding(tokens, self.embedding)

    def logits(self, features: Tensor) -> Tensor:
        """(…, hidden) features to (…, vocabulary)."""
        return nn.functional.linear(features, self.head)

    def new_draft(self, dtype: torch.dtype = torch.float32) -> EagleDraft:
        """An untrained draft for this target, on the CPU."""
        draft: nn.Module = EagleDraft(EagleConfig.of_target(self.config, self.name, self.digest))
        draft.to(dtype)
        assert isinstance(draft, EagleDraft)
        return draft


def check_is_of(draft: EagleDraft, ends: TargetEnds) -> None:
    """Refuse a draft of another target.

    Raises:
        DraftError: it was trained for another one, or has other shapes.
    """
    if not same_target(draft.config.target_digest, ends.digest):
        raise DraftError(
            f"The draft was trained for another target, {draft.config.target_name}, not for {ends.name}. Its features "
            "mean nothing to this one. Give that target, or train a draft for this one."
        )
    for key in ("hidden_size", "vocab_size"):
        if (mine := getattr(draft.config, key)) != (theirs := getattr(ends.config, key)):
            raise DraftError(
                f"{key}: the draft has {mine}, {ends.name} has {theirs}, so it is the draft of another target. Give "
                "that target, or train a draft for this one."
            )


def features_of(target: PreTrainedModel, tokens: Tensor) -> Tensor:
    """The target's features, without a gradient.

    Args:
        target: a causal language model.
        tokens: (batch, length); padding on the right is seen by nothing that stands before it.

    Returns:
        (batch, length, hidden), in the target's dtype.
    """
    with torch.no_grad():
        output = target.base_model(input_ids=tokens, use_cache=False)
    features: Tensor = output.last_hidden_state
    return features


def _digest(norm: Tensor, embedding: Tensor, head: Tensor, layers: Sequence[Tensor]) -> str:
    """That of the ends, a colon, and that of the layers or nothing."""
    rows = torch.linspace(0, len(head) - 1, min(SAMPLED_ROWS, len(head))).long().to(head.device)
    ends = _hashed((norm, embedding[rows.to(embedding.device)], head[rows]), str([*embedding.shape]))
    plain = all(row.is_floating_point() and row.device.type != "meta" for row in layers)
    return f"{ends}:{_hashed(layers) if plain else ''}"


def _hashed(tensors: Iterable[Tensor], before: str = "") -> str:
    digest = hashlib.sha256(before.encode())
    for tensor in tensors:
        digest.update(tensor.detach().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]


def _read_tensors(source: str, wanted: Mapping[str, slice], name: str, revision: str | None) -> dict[str, Tensor]:
    """The tensors, or those of their rows that are wanted."""
    try:
        index = _file(source, "model.safetensors.index.json", revision)
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index else {}
        tensors = {}
        for key, rows in wanted.items():
            file = places.get(key) if places else "model.safetensors"
            path = _file(source, file, revision) if file else None
            if path is None:
                raise ModelError(
                    f"model={name!r} has no {key} in safetensors. Save the model with save_pretrained first."
                )
            with safe_open(path, framework="pt") as opened:
                tensors[key] = opened.get_slice(key)[rows]
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ModelError(f"model={name!r}: its weights cannot be read: {error}") from error
    return tensors


def _file(source: str, file: str, revision: str | None) -> Path | None:
    """A file of a local folder or of the hub, if there is one."""
    found = cached_file(source, file, revision=revision, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None
