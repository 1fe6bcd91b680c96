"""The target's features on disk: written once by ``afa eagle features``, read by every training after it."""

from afa_lora.eagle.features.index import FeatureError
from afa_lora.eagle.features.store import FeatureStore
from afa_lora.eagle.features.write import FeatureSummary, write_features

__all__ = ["FeatureError", "FeatureStore", "FeatureSummary", "write_features"]
