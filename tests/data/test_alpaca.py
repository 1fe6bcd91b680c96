"""Alpaca's prompt as a chat template."""

from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from afa_lora.data.alpaca import use_alpaca_template
from tests.tiny_chat import save_tiny_chat_model

PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    '\n\n### Instruction:\nName a colour: {red} or "blue"?\n\n### Response:\n'
)
QUESTION = {"role": "user", "content": 'Name a colour: {red} or "blue"?'}
ANSWER = {"role": "assistant", "content": "the correct answer is red"}


@pytest.fixture
def tokenizer(tmp_path: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(save_tiny_chat_model(tmp_path / "model"))


def render(tokenizer: PreTrainedTokenizerBase, *messages: dict[str, str], add_generation_prompt: bool = False) -> str:
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt)
    assert isinstance(text, str)
    return text


def test_prompt_and_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    use_alpaca_template(tokenizer)
    assert render(tokenizer, QUESTION, add_generation_prompt=True) == PROMPT
    assert render(tokenizer, QUESTION, ANSWER) == f"{PROMPT}{ANSWER['content']}<|im_end|>"


def test_a_system_message_stands_in_place_of_the_preamble(tokenizer: PreTrainedTokenizerBase) -> None:
    use_alpaca_template(tokenizer)
    text = render(tokenizer, {"role": "system", "content": "Answer in one word."}, QUESTION)
    assert text == PROMPT.replace(PROMPT.split("\n")[0], "Answer in one word.")


def test_the_beginning_of_sequence_stands_where_the_tokenizer_puts_it(tokenizer: PreTrainedTokenizerBase) -> None:
    use_alpaca_template(tokenizer)
    assert not render(tokenizer, QUESTION).startswith("<|im_start|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
    )
    use_alpaca_template(tokenizer)
    assert render(tokenizer, QUESTION) == f"<|im_start|>{PROMPT}"
    assert (
        tokenizer(render(tokenizer, QUESTION), add_special_tokens=False)["input_ids"] == tokenizer(PROMPT)["input_ids"]
    )
