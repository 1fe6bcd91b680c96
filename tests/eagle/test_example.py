"""examples/eagle_speculators.py: adapters on any draft, merged to an ordinary one; with speculators if it is there."""

import copy
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from afa_lora import NotLinearError, set_beta
from afa_lora.eagle.model import ADAPTED_LAYERS
from afa_lora.eagle.target import TargetEnds
from tests.eagle.conftest import SHAPE, make_target
from tests.eagle.test_model import TENSORS

EXAMPLE = Path(__file__).parents[2] / "examples" / "eagle_speculators.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("eagle_speculators", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Trained(nn.Module):
    """A draft as a trainer of another project has it: with a frozen head of its own, and its loss."""

    def __init__(self, ends: TargetEnds) -> None:
        super().__init__()
        self.draft = ends.new_draft()
        self.head = nn.Linear(32, 96, bias=False).requires_grad_(False)

    def forward(
        self, embeddings: Tensor, features: Tensor, scale: float = 1.0
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        predicted = self.draft(embeddings, features)
        return predicted, scale * nn.functional.smooth_l1_loss(self.head(predicted), self.head(features)), {}


def test_a_draft_trains_with_its_adapters_and_is_ordinary_afterwards(example: ModuleType) -> None:
    draft = Trained(TargetEnds.of(make_target("llama"), "tiny"))
    before = copy.deepcopy(draft)
    adapted = example.adapt(draft, r=4, lora_alpha=8, anneal_end=0.5)
    trained = {name for name, parameter in draft.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[-3] for name in trained if "base_layer" in name} == set(ADAPTED_LAYERS)
    assert {name.split(".")[-4] for name in trained if "lora_A" in name} == set(ADAPTED_LAYERS)
    assert not any("head" in name for name in trained)
    inputs = dict(zip(("embeddings", "features"), torch.randn(2, 1, 8, 32), strict=True))
    losses = example.train(draft, adapted, [inputs] * 40, scale=2.0)
    assert losses[-1] < 0.7 * losses[0]
    set_beta(adapted, 0.5)
    with pytest.raises(NotLinearError):
        adapted.merge_and_unload()
    set_beta(adapted, 0.0)
    expected = draft.eval()(**inputs)[0]
    assert adapted.merge_and_unload() is draft
    assert torch.allclose(draft(**inputs)[0], expected, atol=1e-5)
    assert set(draft.draft.state_dict()) == TENSORS
    for (name, new), old in zip(draft.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(new, old) == name.startswith("head")


def test_a_draft_of_speculators(tmp_path: Path, example: ModuleType) -> None:
    speculators = pytest.importorskip("speculators", reason="pip install speculators")
    verifier = LlamaForCausalLM(LlamaConfig(**{**SHAPE, "num_hidden_layers": 4})).eval()
    verifier.save_pretrained(tmp_path / "verifier")
    plain = example.new_draft(verifier, str(tmp_path / "verifier"), [1, 2])
    plain.save_pretrained(tmp_path / "plain")
    example.main(["--verifier", str(tmp_path / "verifier"), "--out", str(tmp_path / "draft"), "--steps", "20"])
    drafts = [speculators.Eagle3DraftModel.from_pretrained(tmp_path / name) for name in ("plain", "draft")]
    untrained, trained = (draft.state_dict() for draft in drafts)
    assert set(untrained) == set(trained)
    assert type(drafts[1].fc) is nn.Linear
    assert torch.equal(untrained["embed_tokens.weight"], trained["embed_tokens.weight"])
    assert not torch.equal(untrained["fc.weight"], trained["fc.weight"])
