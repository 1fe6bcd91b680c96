"""The model card beside a trained draft: what it is, how it was made, how to decode with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import LoraConfig

from afa_lora.eagle.merging import DraftMergeReport
from afa_lora.eagle.recipe import Recipe
from afa_lora.eagle.trainer import DEFAULTS
from afa_lora.files import write_atomic
from afa_lora.tuning.card import METHODS, facts_of_any, load_code, render_card
from afa_lora.tuning.folder import RunFolder

WHAT = """\
An EAGLE-1 draft for `{model}`: one decoder layer that continues its features, for speculative decoding \
([EAGLE](https://arxiv.org/abs/2401.15077)). Embedding and output layer are the target's and not in here. It continues \
this target alone: another fine-tuning has other features. `afa eagle export` writes it for vLLM, SGLang and \
SafeAILab's EAGLE."""
CODE = """\
{load_target}

from afa_lora.eagle.decode import SpeculativeDecoding
from afa_lora.eagle.model import load_draft

decoding = SpeculativeDecoding(load_draft("path/to/this/folder"))
output = model.generate(**inputs, custom_generate=decoding)  # the tokens of `model` alone"""
TESTED = {"accuracy": "{:.1%}", "loss": "{:.4f}", "feature_loss": "{:.4f}", "token_loss": "{:.4f}"}


def write_draft_card(
    recipe: Recipe,
    facts: Mapping[str, Any],
    folder: RunFolder,
    steps: int,
    adapter: LoraConfig | None,
    test: Mapping[str, float] | None,
    merge: DraftMergeReport | None,
) -> None:
    """Write README.md into the folder of the run's draft.

    Args:
        recipe: what was done.
        facts: `afa_lora.eagle.sources.Sources.facts`.
        folder: the run's, with a draft.
        steps: optimizer steps of the training.
        adapter: what was trained beside the draft's own weights.
        test: the measures on held-out conversations.
        merge: how far merging has changed the draft.
    """
    held_out = facts["test_items"]
    card = {
        **facts_of_any(recipe, adapter, steps),
        "what": WHAT.format(model=recipe.model),
        "library": "afa_lora",
        "code": CODE.format(load_target=load_code(recipe.model)),
        "tags": ["eagle", "speculative-decoding", *(["afa-lora"] if recipe.anneals else [])],
        "datasets": [],
        "method": method_in_words(recipe.method),
        "targets": recipe.adapter.get("target_modules", "every linear layer of the draft"),
        "data": f"{', '.join(recipe.data.conversations)}: {facts['train_items']:,} conversations to train on, "
        f"{held_out:,} to test on",
        "learning_rate": recipe.train.get("learning_rate", DEFAULTS["learning_rate"]),
        "columns": [f"on {held_out:,} held-out conversations"],
        "rows": [[name.replace("_", " "), form.format(test[name])] for name, form in TESTED.items()] if test else [],
        "merge": merge,
    }
    write_atomic(folder.draft / "README.md", render_card(card))


def method_in_words(method: str) -> str:
    """``the draft's own weights``, and what was trained beside them."""
    _, _, adapter = method.partition("+")
    return (
        f"the draft's own weights and, merged into them, {METHODS[adapter]}" if adapter else "the draft's own weights"
    )
