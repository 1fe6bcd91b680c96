"""The protocol ``likelihood`` of `afa eval commonsense` beside lm-evaluation-harness: same model, items and answers.

    python benchmarks/likelihood.py --data ../shared/data/commonsense
    python benchmarks/likelihood.py --data data/commonsense --device cuda --dtype bfloat16 --model models/llama-3-8b

Both get the same strings: Alpaca's prompt, and "the correct answer is …" for each allowed answer. A round runs the one
and then the other, the next round the other way about. Each runs with the batch size that was fastest for it in a round
of its own; tokenizing counts, loading does not. Both choices are compared with those of a plain reference: one sequence
at a time, no cache, every logit.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from measure import Elapsed, provenance, spread, timed
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from afa_lora.data.commonsense import ANSWER_PREFIX, CommonsenseItem, read_tests
from afa_lora.evaluation.commonsense import EvaluationSettings
from afa_lora.evaluation.commonsense.protocols import Scored, render_prompts
from afa_lora.models import load_model

TASKS = ("ARC-Easy", "boolq")
OURS, THEIRS = "afa-lora likelihood", "lm-evaluation-harness HFLM"

Scores = list[list[float]]
Score = Callable[[int | None], Scores]
"""Scores all answers to all items in batches of a size; ``None`` leaves the choice of it to the program."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the eight tasks")
    parser.add_argument("--model", default="smollm2-135m", help="hub id, local folder or smollm2-135m")
    parser.add_argument("--items", type=int, default=100, help="of each task")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[2, 4, 8, 16], help="tried for each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, help="threads of PyTorch on the CPU")
    parser.add_argument("--out", type=Path, help="JSON file (default: benchmarks/results/likelihood_DEVICE.json)")
    settings = parser.parse_args()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    device = torch.device(settings.device)
    model, tokenizer = load_model(settings.model, dtype=getattr(torch, settings.dtype))
    model.to(device).eval()  # type: ignore[arg-type]
    items = read_tests(settings.data, TASKS, settings.items)
    prompts = render_prompts(tokenizer, items, EvaluationSettings())
    arms = {OURS: _ours(model, tokenizer, items, prompts), THEIRS: _theirs(model, tokenizer, items, prompts)}

    sizes: dict[str, list[int | None]] = {OURS: [None, *settings.batch_sizes], THEIRS: [*settings.batch_sizes]}
    tried = {name: {size: _run(arms[name], size, device)[0].wall for size in sizes[name]} for name in arms}
    best = {name: min(seconds, key=seconds.__getitem__) for name, seconds in tried.items()}
    elapsed: dict[str, list[Elapsed]] = {name: [] for name in arms}
    scores: dict[str, Scores] = {}
    for turn in range(settings.rounds):
        for name in sorted(arms, reverse=bool(turn % 2)):
            seconds, scores[name] = _run(arms[name], best[name], device)
            elapsed[name].append(seconds)
            print(f"round {turn + 1}: {name}, batch size {best[name]}: {len(items) / seconds.wall:.2f} items/s")
    document = {
        "provenance": {**provenance(device), "lm_eval": version("lm_eval")},
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(settings).items()},
        "items": len(items),
        "seconds_by_batch_size": {name: {str(size): s for size, s in of.items()} for name, of in tried.items()},
        "arms": {name: _numbers(elapsed[name], best[name], len(items)) for name in arms},
        "times_faster": {
            "wall": _median(elapsed[THEIRS], "wall") / _median(elapsed[OURS], "wall"),
            "cpu": _median(elapsed[THEIRS], "cpu") / _median(elapsed[OURS], "cpu"),
        },
        "agreement": _agreement(scores, _plain(model, tokenizer, items, prompts)),
    }
    out = settings.out or Path(__file__).parent / "results" / f"likelihood_{device.type}.json"
    out.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps({key: document[key] for key in ("arms", "times_faster", "agreement")}, indent=2))
    print(f"written to {out}")


def _ours(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Sequence[CommonsenseItem], prompts: Sequence[str]
) -> Score:
    def score(batch_size: int | None) -> Scores:
        found: Scores = []
        for task in TASKS:
            chosen = [i for i, item in enumerate(items) if item.task == task]
            settings = EvaluationSettings(protocol="likelihood", batch_size=batch_size)
            asked = Scored(model, tokenizer, [items[i] for i in chosen], [prompts[i] for i in chosen], settings)
            replies = {i: r for batch in asked.batches for i, r in zip(batch, asked.answer(batch), strict=True)}
            found += [[*replies[i].record["log_probs"].values()] for i in range(len(chosen))]
        return found

    return score


def _theirs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Sequence[CommonsenseItem], prompts: Sequence[str]
) -> Score:
    pairs = [
        (prompt, ANSWER_PREFIX + choice) for item, prompt in zip(items, prompts, strict=True) for choice in item.choices
    ]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]

    def score(batch_size: int | None) -> Scores:
        found = iter(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size).loglikelihood(requests, True))
        return [[next(found)[0] for _ in item.choices] for item in items]

    return score


@torch.no_grad()
def _plain(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Sequence[CommonsenseItem], prompts: Sequence[str]
) -> Scores:
    """The reference: one sequence at a time, no cache, every logit."""
    found: Scores = []
    for item, prompt in zip(items, prompts, strict=True):
        start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        found.append([])
        for choice in item.choices:
            whole = tokenizer(prompt + ANSWER_PREFIX + choice, add_special_tokens=False, return_tensors="pt")[
                "input_ids"
            ]
            log_probs = model(whole.to(model.device)).logits[0, start - 1 : -1].double().log_softmax(-1)
            found[-1].append(float(log_probs.gather(1, whole[0, start:, None].to(model.device)).sum()))
    return found


def _run(score: Score, batch_size: int | None, device: torch.device) -> tuple[Elapsed, Scores]:
    found: list[Scores] = []
    return timed(lambda: found.append(score(batch_size)), device), found[0]


def _numbers(elapsed: Sequence[Elapsed], batch_size: int | None, items: int) -> dict[str, Any]:
    return {
        "batch_size": batch_size or "chosen by the program",
        "items_per_second": items / _median(elapsed, "wall"),
        "median_seconds": _median(elapsed, "wall"),
        "spread": spread([one.wall for one in elapsed]),
        "seconds": [one.wall for one in elapsed],
        "cpu_seconds": [one.cpu for one in elapsed],
    }


def _median(elapsed: Sequence[Elapsed], clock: str) -> float:
    return statistics.median(getattr(one, clock) for one in elapsed)


def _agreement(scores: dict[str, Scores], plain: Scores) -> dict[str, Any]:
    """How often each chooses as the reference does. Their sums are over other tokens, so only differences compare."""
    margins = [sorted(row)[-1] - sorted(row)[-2] for row in plain]
    found: dict[str, Any] = {"items": len(plain), "smallest_margin": min(margins)}
    for name, rows in scores.items():
        same = sum(a.index(max(a)) == b.index(max(b)) for a, b in zip(rows, plain, strict=True))
        off = max(
            abs((x - a[0]) - (y - b[0])) for a, b in zip(rows, plain, strict=True) for x, y in zip(a, b, strict=True)
        )
        found[name] = {"same_choice_as_plain": same, "largest_error_of_a_difference": off}
    return found


if __name__ == "__main__":
    main()
