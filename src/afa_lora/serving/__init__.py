"""From a trained adapter to what other programs serve: one file per target, each checked before it is there."""

from afa_lora.serving.adapter import export_adapter
from afa_lora.serving.check import Agreement, ExportError
from afa_lora.serving.gguf import export_gguf
from afa_lora.serving.lookup import Located, NoAdapterError, locate
from afa_lora.serving.merged import export_merged
from afa_lora.serving.source import PROBE, Export, Source, find_source
from afa_lora.serving.vllm import export_vllm

__all__ = [
    "PROBE",
    "Agreement",
    "Export",
    "ExportError",
    "Located",
    "NoAdapterError",
    "Source",
    "export_adapter",
    "export_gguf",
    "export_merged",
    "export_vllm",
    "find_source",
    "locate",
]
