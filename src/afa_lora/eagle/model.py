"""The draft of EAGLE-1 (Li et al., arXiv 2401.15077): one decoder layer that continues the target's features.

A feature f_i is the target's last hidden state, after its final norm, at position i; the target's output layer makes of
it the distribution of token i + 1. The draft reads f_i and the embedding of token i + 1, and predicts f_{i+1}:

    hidden = fc([embedding of t_{i+1}, f_i]),   f̂_{i+1} = layer(hidden) at position i

The layer is a Llama decoder layer without its input norm, and no norm follows it. Embedding and output layer are the
target's (`afa_lora.eagle.target.TargetEnds`): the draft neither holds nor saves them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import Cache, LlamaConfig, PretrainedConfig
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaPreTrainedModel, LlamaRotaryEmbedding

from afa_lora.core.errors import AfaLoraError

TARGETS = ("llama", "qwen2", "qwen3", "mistral")
"""``model_type`` of the targets: a final norm, an output layer without scale, an embedding without one."""

ADAPTED_LAYERS = ("fc", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Every linear layer of the draft."""


SHARED = {"embed_tokens.weight", "lm_head.weight"}
"""Tensors of the target that lie in some drafts' files too."""


class DraftError(AfaLoraError):
    """A draft, or the target it is to be used with, is not what it must be."""


class EagleConfig(LlamaConfig):
    """The shape of a draft: a `LlamaConfig` with one layer, and what it was made for.

    Attributes:
        target_name: the target's hub id or folder, as it was given.
        target_digest: `afa_lora.eagle.target.TargetEnds.digest` of the target.
    """

    model_type = "eagle_draft"
    target_name: str | None = None
    target_digest: str | None = None

    @classmethod
    def of_target(cls, config: PretrainedConfig, name: str, digest: str) -> EagleConfig:
        """The shape of a draft for a target.

        Args:
            config: the target's.
            name: where the target comes from.
            digest: what tells it from others.

        Raises:
            DraftError: a target of an architecture that has no draft here.
        """
        check_architecture(config, name)
        rope = {"rope_theta": 10_000.0, "rope_type": "default", **(config.rope_parameters or {})}
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=1,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=head_dim,
            hidden_act=config.hidden_act,
            max_position_embeddings=config.max_position_embeddings,
            initializer_range=config.initializer_range,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters=rope,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
            tie_word_embeddings=False,
            attention_bias=False,
            mlp_bias=False,
            target_name=name,
            target_digest=digest,
        )


class EagleDraft(LlamaPreTrainedModel):
    """The draft.

    Saved by ``save_pretrained`` and loaded by ``from_pretrained``; its tensors have the names of SafeAILab's EAGLE:
    ``fc.weight``, ``layers.0.self_attn.q_proj.weight``, …
    """

    config_class = EagleConfig
    config: EagleConfig
    base_model_prefix = ""

    def __init__(self, config: EagleConfig) -> None:
        super().__init__(config)
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)  # vLLM's has no bias
        layer = LlamaDecoderLayer(config, layer_idx=0)
        layer.input_layernorm = nn.Identity()  # type: ignore[assignment]
        self.layers = nn.ModuleList([layer])
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        embeddings: Tensor,
        features: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Predict the next features.

        Args:
            embeddings: (batch, length, hidden), of the tokens that follow the features: t_{i+1}.
            features: (batch, length, hidden), true or predicted ones: f_i.
            attention_mask: as a transformers decoder takes it: (batch, past + length) with 0 for padding, or
                (batch, 1, length, past + length), added to the scores; causal unless given.
            position_ids: (batch, length), those of the features: i; counted on from the cache unless given.
            past_key_values: keys and values of what came before; they are added to.
            kwargs: passed to the attention.

        Returns:
            (batch, length, hidden): f̂_{i+1}.
        """
        hidden = self.fc(torch.cat((embeddings, features), dim=-1))
        if position_ids is None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(past, past + hidden.shape[1], device=hidden.device)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        rotation = self.rotary_emb(hidden, position_ids=position_ids)
        for layer in self.layers:
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_embeddings=rotation,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=past_key_values is not None,
                **kwargs,
            )
        return hidden


def check_architecture(config: PretrainedConfig, name: str) -> None:
    """Refuse a target that the draft could not continue.

    Raises:
        DraftError: its architecture is not one of `TARGETS`.
    """
    if config.model_type not in TARGETS:
        raise DraftError(
            f"model={name!r} is of the architecture {config.model_type!r}. Drafts can be made for {', '.join(TARGETS)}."
        )


def same_target(one: str | None, other: str | None) -> bool:
    """Whether two digests of `afa_lora.eagle.target.TargetEnds` can be of one target; a part that is missing may be."""
    pairs = zip((one or ":").split(":"), (other or ":").split(":"), strict=True)
    return all(not mine or not theirs or mine == theirs for mine, theirs in pairs)


def find_draft(path: Path) -> Path:
    """The folder of the draft in ``path``: ``draft/`` of a run, or itself.

    Raises:
        DraftError: there is none.
    """
    if not path.is_dir():
        raise DraftError(f"There is no folder {path} (looked for it in {Path.cwd()}).")
    for folder in (path / "draft", path):
        if not (folder / "config.json").is_file():
            continue
        if (kind := _model_type(folder / "config.json")) != EagleConfig.model_type:
            raise DraftError(
                f"{folder} holds no draft: its config.json has model_type={kind!r}, that of a draft has "
                f"{EagleConfig.model_type!r}. Give a run of afa eagle train, or its folder draft/; what afa eagle "
                "export wrote is for other programs."
            )
        return folder
    if (path / "recipe.yaml").is_file():
        raise DraftError(
            f"{path} is a run without a draft: an unfinished one, or of another workflow. Finish it: afa eagle train "
            f"{path / 'recipe.yaml'}"
        )
    raise DraftError(f"{path} holds no draft, nor a folder draft/ with one. Give that of a run of afa eagle train.")


def _model_type(path: Path) -> Any:
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise DraftError(f"{path} is damaged: {error}. Restore it.") from error
    return config.get("model_type") if isinstance(config, dict) else None


def load_draft(folder: str | Path, **options: Any) -> EagleDraft:
    """Load a trained, merged draft.

    Args:
        folder: what ``save_pretrained`` wrote.
        options: passed to ``from_pretrained``; ``dtype`` is float32 unless given.

    Raises:
        DraftError: there is no draft, or its file holds more than a draft has.
    """
    given: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True, **options}
    try:
        loaded: Any = EagleDraft.from_pretrained(folder, output_loading_info=True, **given)
    except (OSError, ValueError, RuntimeError) as error:
        raise DraftError(f"draft={str(folder)!r}: no draft can be loaded from there: {error}") from error
    draft: EagleDraft = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        raise DraftError(
            f"draft={str(folder)!r} lacks {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}: it is no merged "
            "draft. Give the folder draft/ of a run of afa eagle train."
        )
    if foreign := sorted(_foreign(folder, loaded[1]["unexpected_keys"])):
        raise DraftError(
            f"draft={str(folder)!r} holds {', '.join(foreign[:3])}{' …' if len(foreign) > 3 else ''}, which this "
            "draft does not compute with: it would be another function. Give the folder draft/ of a run of afa eagle "
            "train."
        )
    return draft.eval()


def _foreign(folder: str | Path, unexpected: Iterable[str]) -> set[str]:
    """Those of the tensors without a place in the draft that change what it computes; a bias of zeros does not."""
    foreign = set(unexpected) - SHARED
    for path in Path(folder).glob("*.safetensors") if "fc.bias" in foreign else ():
        with safe_open(path, framework="pt") as file:
            if "fc.bias" in file.keys() and not file.get_tensor("fc.bias").any():  # noqa: SIM118 - no mapping
                foreign.discard("fc.bias")
    return foreign
