"""From a trained draft to what other programs serve: vLLM, SGLang and SafeAILab's EAGLE."""

from afa_lora.eagle.export.formats import FORMATS, Format
from afa_lora.eagle.export.write import export_draft

__all__ = ["FORMATS", "Format", "export_draft"]
