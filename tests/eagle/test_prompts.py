"""Prompts of an evaluation, as the features' conversations are written."""

from pathlib import Path

from trl.chat_template_utils import llama3_2_chat_template

from afa_lora.eagle.evaluation.target import prompt_tokens
from afa_lora.eagle.templates import DATE
from afa_lora.models import read_parts
from tests.tiny_chat import save_tiny_chat_model


def test_todays_date_is_that_of_the_features(tmp_path: Path) -> None:
    tokenizer = read_parts(str(save_tiny_chat_model(tmp_path / "model"))).tokenizer
    assert tokenizer is not None
    tokenizer.chat_template = llama3_2_chat_template
    text = tokenizer.decode(prompt_tokens(tokenizer, [{"role": "user", "content": "What day is it?"}]))
    assert f"Today Date: {DATE}" in text
