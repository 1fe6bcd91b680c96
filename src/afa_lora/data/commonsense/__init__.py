"""Eight commonsense tasks in the form of LLM-Adapters: ARC, BoolQ, HellaSwag, OpenBookQA, PIQA, Social IQA, WinoGrande.

``items`` is one question, ``tasks`` the wording and the original records, ``answers`` what may be answered, ``files``
and ``hub`` where the items come from, ``sets`` the test sets and the training mix.
"""

from afa_lora.data.commonsense.answers import find_answer
from afa_lora.data.commonsense.items import ANSWER_PREFIX, CommonsenseItem
from afa_lora.data.commonsense.sets import items_fingerprint, read_mix, read_mix_file, read_tests
from afa_lora.data.commonsense.tasks import TASKS, Task

__all__ = [
    "ANSWER_PREFIX",
    "TASKS",
    "CommonsenseItem",
    "Task",
    "find_answer",
    "items_fingerprint",
    "read_mix",
    "read_mix_file",
    "read_tests",
]
