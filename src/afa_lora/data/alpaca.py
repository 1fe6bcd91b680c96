"""The prompt of Stanford Alpaca, as a chat template: so everything that reads chat templates can use it."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

NAME = "alpaca"
PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
# A system message stands in place of the preamble. The text up to an answer begins the text with the answer.
TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% else %}{{ '" + PREAMBLE + "' }}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '\\n\\n### Instruction:\\n' + message['content'] + '\\n\\n### Response:\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)


def use_alpaca_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make Alpaca's prompt the tokenizer's chat template; it works for models that have none of their own.

    A user's message becomes the preamble, ``### Instruction:``, the message and ``### Response:``; an answer follows,
    with the end-of-sequence token. The beginning-of-sequence token comes first where the tokenizer puts one by itself.

    Source: the form of https://github.com/tatsu-lab/stanford_alpaca, with a line break before the answer.
    """
    first = tokenizer(PREAMBLE)["input_ids"][0]
    begin = "{{ bos_token }}" if first == tokenizer.bos_token_id else ""
    tokenizer.chat_template = begin + TEMPLATE
