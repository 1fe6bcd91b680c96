"""Lossless decoding with a draft: ``target.generate(inputs, custom_generate=SpeculativeDecoding(draft, shape))``."""

from afa_lora.eagle.decode.checks import DecodingError
from afa_lora.eagle.decode.drafter import Drafter
from afa_lora.eagle.decode.generate import SpeculativeDecoding, room_left
from afa_lora.eagle.decode.shapes import Chain, DynamicTree, Shape, StaticTree, parse_shape
from afa_lora.eagle.decode.stats import DecodingStats
from afa_lora.eagle.decode.tree import DraftTree, accepted_path

__all__ = [
    "Chain",
    "DecodingError",
    "DecodingStats",
    "DraftTree",
    "Drafter",
    "DynamicTree",
    "Shape",
    "SpeculativeDecoding",
    "StaticTree",
    "accepted_path",
    "parse_shape",
    "room_left",
]
