"""A training with Alpaca's prompt instead of the model's own."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from afa_lora.data.alpaca import PREAMBLE
from afa_lora.sft import parse_recipe
from afa_lora.sft.run import run_sft
from tests.tiny_chat import without_chat_template


@pytest.mark.parametrize("whole_sequence", [False, True])
def test_model_is_trained_and_saved_with_the_alpaca_prompt(
    settings: dict[str, Any], learnt: set[str], whole_sequence: bool
) -> None:
    settings["train"] |= {"chat_template_path": "alpaca", "completion_only_loss": not whole_sequence}
    result = run_sft(parse_recipe(settings))
    if whole_sequence:
        assert all(text.startswith(PREAMBLE) and text.endswith("### Response:\nyes<|im_end|>") for text in learnt)
    else:
        assert learnt == {"yes<|im_end|>"}
    saved = AutoTokenizer.from_pretrained(result.folder.model)
    assert PREAMBLE in saved.chat_template


def test_model_needs_no_template_of_its_own(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["model"] = str(without_chat_template(Path(settings["model"]), tmp_path / "plain"))
    settings["train"]["chat_template_path"] = "alpaca"
    assert run_sft(parse_recipe(settings)).after is not None
