"""Training and test items: where they come from, and the one form that every workflow reads."""

from afa_lora.data.lengths import LengthReport, measure_lengths
from afa_lora.data.load import load_data
from afa_lora.data.records import DataError, Items, Sample, fingerprint, to_dataset
from afa_lora.data.sources import CommonsenseData, DataSource, FileData, Gsm8kData, HubData, TaskData

__all__ = [
    "CommonsenseData",
    "DataError",
    "DataSource",
    "FileData",
    "Gsm8kData",
    "HubData",
    "Items",
    "LengthReport",
    "Sample",
    "TaskData",
    "fingerprint",
    "load_data",
    "measure_lengths",
    "to_dataset",
]
