"""The heavy libraries, without the noise of their own."""

from __future__ import annotations

import logging
import os


def load_quietly() -> None:
    """Import the heavy libraries without the progress bars of their short steps; long work has bars of its own."""
    # Threads that wait by spinning slow a training on shared cores down tenfold. OpenMP reads this when torch loads it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name in ("bitsandbytes", "afa_lora.training.callback"):  # the run itself says that an adapter is not linear
        logging.getLogger(name).setLevel(logging.ERROR)
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
