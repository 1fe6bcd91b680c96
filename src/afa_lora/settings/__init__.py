"""What every recipe is read with: YAML, typed sections, and one message that names every mistake in a file."""

from afa_lora.settings.arguments import Arguments
from afa_lora.settings.comparison import differences
from afa_lora.settings.faults import RecipeError, in_our_words, validate
from afa_lora.settings.section import Section
from afa_lora.settings.yaml import dump_yaml, parse_yaml, read_settings

__all__ = [
    "Arguments",
    "RecipeError",
    "Section",
    "differences",
    "dump_yaml",
    "in_our_words",
    "parse_yaml",
    "read_settings",
    "validate",
]
