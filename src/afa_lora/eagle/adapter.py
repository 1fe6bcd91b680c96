"""The draft that is trained: its own weights and, beside them, the recipe's adapter."""

from __future__ import annotations

from peft import LoraConfig

from afa_lora.eagle.model import ADAPTED_LAYERS, EagleDraft
from afa_lora.eagle.recipe import Recipe
from afa_lora.peft.model import AfaLoraModel
from afa_lora.settings import RecipeError
from afa_lora.tuning.adapter import adapter_config, check_targets

ADAPTER = "default"


def draft_adapter_config(recipe: Recipe) -> LoraConfig:
    """The adapter's configuration; every linear layer of the draft unless the recipe names others.

    Raises:
        RecipeError: a setting is refused.
    """
    if recipe.adapter.get("modules_to_save"):
        raise RecipeError("adapter.modules_to_save: the draft is trained and saved whole. Leave it out.")
    config = adapter_config(recipe)
    if config.target_modules == "all-linear":
        config.target_modules = set(ADAPTED_LAYERS)
    return config


def train_jointly(draft: EagleDraft, recipe: Recipe) -> AfaLoraModel | None:
    """Put the recipe's adapter beside the draft's own weights and train both: y = W x + s·B φ_β(A x), # Eq. 6.

    DoRA's norm is that of the present W + s·BA, and no gradient flows through it, to W as little as to A and B.

    Args:
        draft: it is changed.
        recipe: names the method and its settings.

    Returns:
        what merges the adapter; ``None`` for the method ``eagle``, which has none.

    Raises:
        RecipeError: a setting is refused, or a target module is not in the draft.
    """
    tuner = None
    if recipe.method != "eagle":
        config = draft_adapter_config(recipe)
        check_targets(draft, config.target_modules)
        try:
            tuner = AfaLoraModel(draft, config, ADAPTER)  # gives the layers back merged, which injecting alone does not
        except (TypeError, ValueError) as error:
            raise RecipeError(f"adapter: {error}") from error
    draft.requires_grad_(True)  # PEFT has frozen all but the adapter
    return tuner
