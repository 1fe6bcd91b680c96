"""The draft: its shape, what it shares with its target, what is saved of it."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from afa_lora.eagle.model import DraftError, EagleConfig, EagleDraft, find_draft, load_draft, same_target
from afa_lora.eagle.target import TargetEnds, check_is_of, features_of
from tests.eagle.conftest import make_target

TENSORS = {"fc.weight"} | {
    f"layers.0.{name}.weight"
    for name in (
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
        "post_attention_layernorm",
    )
}


def test_features_give_the_targets_logits(target: PreTrainedModel, ends: TargetEnds) -> None:
    tokens = torch.randint(3, 96, (2, 7))
    assert torch.equal(ends.logits(features_of(target, tokens)), target(tokens).logits)


def test_only_its_own_tensors_are_saved_and_it_loads_equal(tmp_path: Path, draft: EagleDraft) -> None:
    draft.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as saved:
        assert set(saved.keys()) == TENSORS
    again = load_draft(tmp_path)
    assert again.config.target_digest == draft.config.target_digest
    assert again.config.target_name == "tiny"
    assert again.config.rope_parameters == draft.config.rope_parameters
    embeddings, features = torch.randn(2, 1, 5, 32)
    assert torch.equal(again(embeddings, features), draft(embeddings, features))


def test_equals_its_formula(draft: EagleDraft) -> None:
    draft = draft.double()
    embeddings, features = torch.randn(2, 1, 6, 32, dtype=torch.float64)
    layer, config = draft.layers[0], draft.config
    hidden = torch.cat((embeddings, features), -1) @ draft.fc.weight.T  # no norm before the attention
    heads = {
        name: (hidden @ getattr(layer.self_attn, f"{name}_proj").weight.T).unflatten(-1, (-1, config.head_dim))
        for name in "qkv"
    }
    q, k, v = (heads[name].transpose(1, 2) for name in "qkv")
    q, k = apply_rotary_pos_emb(q, k, *draft.rotary_emb(hidden, torch.arange(6)[None]))
    k, v = (part.repeat_interleave(2, dim=1) for part in (k, v))
    scores = (q @ k.transpose(-1, -2)) / config.head_dim**0.5
    scores = scores.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), -torch.inf)
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)
    hidden = hidden + mixed @ layer.self_attn.o_proj.weight.T
    expected = hidden + layer.mlp(layer.post_attention_layernorm(hidden))  # and none after the layer
    assert torch.allclose(draft(embeddings, features), expected, atol=1e-12)


def test_a_cache_changes_nothing(draft: EagleDraft) -> None:
    embeddings, features = torch.randn(2, 1, 6, 32)
    cache = DynamicCache()
    parts = [
        draft(embeddings[:, part], features[:, part], past_key_values=cache) for part in (slice(0, 4), slice(4, 6))
    ]
    assert torch.allclose(torch.cat(parts, 1), draft(embeddings, features), atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_ends_are_read_without_the_model(tmp_path: Path, kind: str) -> None:
    model = make_target(kind)
    model.save_pretrained(tmp_path / "float32", max_shard_size="20KB")  # several files
    read, whole = TargetEnds.load(str(tmp_path / "float32")), TargetEnds.of(model, "tiny")
    assert torch.equal(read.embedding, whole.embedding)
    assert torch.equal(read.head, whole.head)
    assert (read.head is read.embedding) == (kind == "qwen2")
    assert read.digest == whole.digest
    model.to(torch.bfloat16).save_pretrained(tmp_path / "bfloat16")
    assert TargetEnds.load(str(tmp_path / "bfloat16")).digest == whole.digest


def test_a_draft_for_another_target_is_refused(tmp_path: Path, draft: EagleDraft) -> None:
    draft.save_pretrained(tmp_path)
    other = make_target("llama")
    torch.nn.init.normal_(other.model.norm.weight)
    with pytest.raises(DraftError, match="another target, tiny"):
        check_is_of(load_draft(tmp_path), TargetEnds.of(other, "other"))


def test_an_architecture_without_draft_is_refused() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=20))
    with pytest.raises(DraftError, match=r"'gpt2'.*llama, qwen2"):
        TargetEnds.of(gpt2, "gpt2")
    with pytest.raises(DraftError, match="gpt2"):
        EagleConfig.of_target(gpt2.config, "gpt2", "")


@pytest.mark.parametrize("place", ["layers.0.self_attn.v_proj", "layers.1.mlp.down_proj"])
def test_a_fine_tuned_target_is_another_one(tmp_path: Path, draft: EagleDraft, place: str) -> None:
    """As merging a LoRA adapter leaves it: norm, embedding and output layer are as they were."""
    draft.save_pretrained(tmp_path / "draft")
    for kind in ("llama", "qwen2"):
        model = make_target(kind)
        before = TargetEnds.of(model, "tiny").digest
        torch.nn.init.normal_(model.base_model.get_submodule(place).weight, std=0.2)
        model.save_pretrained(tmp_path / kind)
        tuned = TargetEnds.load(str(tmp_path / kind))
        assert tuned.digest == TargetEnds.of(model, "tiny").digest
        assert not same_target(before, tuned.digest)
        with pytest.raises(DraftError, match="another target"):
            check_is_of(load_draft(tmp_path / "draft"), tuned)


def test_layers_that_cannot_be_read_are_no_difference(ends: TargetEnds) -> None:
    of_ends = ends.digest.partition(":")[0] + ":"
    assert same_target(of_ends, ends.digest)
    assert same_target(None, ends.digest)
    assert not same_target("0" * 32 + ":", ends.digest)


ONES = torch.ones(32)
FOREIGN = [
    ({"fc.bias": ONES}, "holds fc.bias"),
    ({"layers.1.mlp.up_proj.weight": torch.zeros(64, 32)}, "holds layers.1.mlp.up_proj.weight"),
    ({"fc.bias": 0 * ONES, "embed_tokens.weight": torch.ones(96, 32), "lm_head.weight": torch.ones(96, 32)}, None),
]


@pytest.mark.parametrize(("tensors", "message"), FOREIGN, ids=["bias", "second layer", "harmless"])
def test_tensors_that_would_be_left_out_are_refused(
    tmp_path: Path, draft: EagleDraft, tensors: dict[str, torch.Tensor], message: str | None
) -> None:
    draft.save_pretrained(tmp_path)
    save_file(
        {**load_file(tmp_path / "model.safetensors"), **tensors}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    if message is None:
        assert torch.equal(load_draft(str(tmp_path)).fc.weight, draft.fc.weight)
    else:
        with pytest.raises(DraftError, match=message):
            load_draft(str(tmp_path))


def test_a_runs_draft_comes_before_another_beside_it(tmp_path: Path, draft: EagleDraft) -> None:
    draft.save_pretrained(tmp_path)
    assert find_draft(tmp_path) == tmp_path
    draft.save_pretrained(tmp_path / "draft")
    assert find_draft(tmp_path) == tmp_path / "draft"
    (tmp_path / "draft" / "config.json").write_text("{")
    with pytest.raises(DraftError, match="damaged"):
        find_draft(tmp_path)
