"""Supervised fine-tuning: a recipe in, an adapter and a merged model out."""

from afa_lora.settings import RecipeError
from afa_lora.sft.recipe import Recipe, load_recipe, parse_recipe
from afa_lora.sft.run import SftResult, run_sft

__all__ = ["Recipe", "RecipeError", "SftResult", "load_recipe", "parse_recipe", "run_sft"]
