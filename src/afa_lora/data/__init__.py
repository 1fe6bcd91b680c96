"""Training and test items: where they come from, and the one form that every workflow reads."""

from afa_lora.data.load import DataSource, FileData, HubData, TaskData, load_data
from afa_lora.data.records import DataError, Items, Sample, fingerprint, to_dataset

__all__ = [
    "DataError",
    "DataSource",
    "FileData",
    "HubData",
    "Items",
    "Sample",
    "TaskData",
    "fingerprint",
    "load_data",
    "to_dataset",
]
