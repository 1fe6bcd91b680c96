"""Chat templates that mark what the assistant says, ``{% generation %} … {% endgeneration %}``.

Few models' own templates have the marks. They are put in here where the statement that writes a message is known, or
taken from TRL; either way what is rendered stays the same, and every conversation is checked for that.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from afa_lora.data.records import DataError, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATE = "26 Jul 2024"
"""What templates that write today's date get for it, Llama 3.1's own default: features are the same on every day."""

PROBE: list[Message] = [
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Red."},
    {"role": "user", "content": "And another?"},
    {"role": "assistant", "content": "Blue."},
]
HELP = (
    "Give a Jinja file with the marks as data.chat_template: the model's template with {% generation %} before what "
    "the assistant says and {% endgeneration %} after its end-of-turn token."
)

_TEXT = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""  # a string of Jinja's
_ROLE, _CONTENT = (rf"""message(?:\.{key}|\[['"]{key}['"]\])""" for key in ("role", "content"))
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
# {{ 'start' + role + 'text' + content + 'end' + 'more' }}: SmolLM2, Qwen2.5, Llama 3.1 to 3.3, ChatML
_SUM = re.compile(
    rf"\{{\{{(?P<left>-?)\s*(?P<head>{_TEXT}\s*\+\s*{_ROLE}\s*\+\s*{_TEXT})\s*\+\s*"
    rf"(?P<said>{_CONTENT}(?:\s*\|\s*trim)?\s*\+\s*{_TEXT})(?P<more>(?:\s*\+\s*{_TEXT})*)\s*(?P<right>-?)\}}\}}",
    re.DOTALL,
)
# start{{ role }}text{{ content }}<end>: ChatML, as some write it
_PLAIN = re.compile(
    rf"(?P<head>\{{\{{-?\s*{_ROLE}\s*-?\}}\}}[^{{}}]*)(?P<said>\{{\{{-?\s*{_CONTENT}(?:\s*\|\s*trim)?\s*-?\}}\}}"
    r"<[^<>{}\s]+>)"
)
_CHOICE = (
    "{{% if message['role'] == 'assistant' %}}{{% generation %}}{said}{{% endgeneration %}}{{% else %}}{said}"
    "{{% endif %}}"
)


@dataclass(frozen=True)
class MarkedTemplate:
    """A chat template with marks.

    Attributes:
        text: its Jinja source.
        original: the template that must render the same; ``None`` if that is the template itself, or the user's choice.
    """

    text: str
    original: str | None = None

    @property
    def digest(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of its source."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def encode(
        self, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[list[Message]]
    ) -> list[tuple[list[int], list[int]]]:
        """The tokens of each conversation, and for each token 1 if it is the assistant's, else 0.

        Raises:
            TemplateError: the template refuses one of them.
        """
        found: Any = tokenizer.apply_chat_template(
            [*conversations],
            chat_template=self.text,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"verbose": False},  # no warning about those that are cut later
            date_string=DATE,
        )
        return list(zip(found["input_ids"], found["assistant_masks"], strict=True))

    def keeps_text(self, tokenizer: PreTrainedTokenizerBase, conversation: list[Message]) -> bool:
        """Whether the marks leave the conversation's text as it is."""
        if self.original is None:
            return True
        marked, plain = (
            tokenizer.apply_chat_template(conversation, chat_template=text, tokenize=False, date_string=DATE)
            for text in (self.text, self.original)
        )
        return marked == plain


def marked_template(tokenizer: PreTrainedTokenizerBase, file: Path | None = None) -> MarkedTemplate:
    """The chat template to take conversations' tokens with.

    Args:
        tokenizer: the target's.
        file: the user's own template; without it, the tokenizer's, marked.

    Raises:
        DataError: no such file; the tokenizer has no template, cannot tell where in the text its tokens stand, or its
            template's marks cannot be put in; the marks cover nothing, or leave out the end-of-turn token.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"The tokenizer {type(tokenizer).__name__} cannot tell which tokens the assistant says. "
            "Give the model's folder a tokenizer.json."
        )
    if file is not None:
        return _own(tokenizer, file)
    if tokenizer.chat_template is None:
        raise DataError(f"The model has no chat template, so conversations have no form. {HELP}")
    template = tokenizer.get_chat_template()
    if _MARKS.search(template):
        marked = MarkedTemplate(template)
        if fault := _fault(tokenizer, marked):
            raise DataError(f"The model's chat template {fault}. {HELP}")
        return marked
    for text in _candidates(tokenizer, template):
        marked = MarkedTemplate(text, template)
        if _fault(tokenizer, marked) is None and marked.keeps_text(tokenizer, PROBE):
            return marked
    raise DataError(f"The model's chat template does not mark what the assistant says. {HELP}")


def _own(tokenizer: PreTrainedTokenizerBase, file: Path) -> MarkedTemplate:
    if not file.is_file():
        raise DataError(f"data.chat_template={str(file)!r}: there is no such file (looked for it in {Path.cwd()}).")
    marked = MarkedTemplate(file.read_text(encoding="utf-8"))
    if fault := _fault(tokenizer, marked):
        raise DataError(
            f"data.chat_template={str(file)!r} {fault}. Put {{% generation %}} before what the assistant says, and "
            "{% endgeneration %} after its end-of-turn token."
        )
    return marked


def _candidates(tokenizer: PreTrainedTokenizerBase, template: str) -> Iterator[str]:
    """The template with marks put in: by its known statements, then TRL's version of it."""

    def summed(match: re.Match[str]) -> str:
        part = match.groupdict()
        choice = _CHOICE.format(said=f"{{{{ {part['said']} }}}}")
        # The statement ends as it did: Jinja takes a line's end after a block, but not after an expression.
        return f"{{{{{part['left']} {part['head']} }}}}{choice}{{{{ ''{part['more']} {part['right']}}}}}"

    yield _SUM.sub(summed, template)
    yield _PLAIN.sub(lambda match: f"{match['head']}{_CHOICE.format(said=match['said'])}{{{{ '' }}}}", template)
    from trl.chat_template_utils import get_training_chat_template

    try:
        patched = get_training_chat_template(tokenizer)
    except ValueError:  # TRL does not know it
        return
    if patched is not None:
        yield patched


def _fault(tokenizer: PreTrainedTokenizerBase, template: MarkedTemplate) -> str | None:
    """What is wrong with the marks, as the end of a sentence about the template."""
    if not _MARKS.search(template.text):
        return "has no {% generation %} in it"
    try:
        ((tokens, mask),) = template.encode(tokenizer, [PROBE])
    except TemplateError as error:
        return f"cannot be rendered: {error}"
    except OverflowError:  # transformers looks for the last character of an empty span that the text begins with
        mask = []
    if not any(mask):
        return "has marks that cover nothing the assistant says"
    first = mask.index(1)
    length = next((i for i, said in enumerate(mask[first:]) if not said), len(mask) - first)
    span = tokens[first : first + length]  # of the first answer, which another turn follows
    while span and not str(tokenizer.decode(span[-1:])).strip():
        span = span[:-1]
    if not span or span[-1] not in tokenizer.get_added_vocab().values():
        return "does not mark the token that ends the assistant's turn, so that the draft would not learn to stop"
    return None
