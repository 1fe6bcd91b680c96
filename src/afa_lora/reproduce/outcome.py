"""What the numbers of a study say, in sentences made by rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from afa_lora.evaluation.statistics import SIGNIFICANCE
from afa_lora.report.formats import AVERAGE, on_seeds, p_value, points, points_interval, unit_of
from afa_lora.reproduce.drafts import UNTRAINED
from afa_lora.reproduce.families import WITHOUT_ADAPTER, is_baseline

Arm = Mapping[str, Any]
Comparison = Mapping[str, Any]


def outcome(numbers: Mapping[str, Any]) -> list[str]:
    """The findings, the most important one first; the argument is that of `study_numbers`, but for these.

    An arm counts as better or worse than its baseline if the paired test over the items says so at 5 %, adjusted for
    the number of arms, and if Student's interval over the seeds leaves 0 out as well. A study of one seed has no such
    interval; one of several seeds that was compared on the first only does not tell yet.
    """
    arms = numbers["arms"]
    if numbers["artifact"] is None:
        return ["Runs on their own: they are listed, not compared."]
    if not any(arm["accuracy"] for arm in arms):
        return ["Nothing is evaluated yet, so there is nothing to compare.", *_unfinished(arms)]
    sentences: list[str] = []
    for family in ("lora", "dora"):
        group = [arm for arm in arms if arm["family"] == family]
        sentences += _family(group) if any(arm["accuracy"] for arm in group) else []
    sentences += [_full(arm) for arm in arms if arm["family"] in WITHOUT_ADAPTER and arm["comparison"]]
    if numbers.get("workflow") == "eagle":
        sentences += _untrained(arms)
    return sentences + _other_seeds(arms) + _one_seed(numbers) + _unfinished(arms)


def _family(group: Sequence[Arm]) -> list[str]:
    """What AFA does in one family."""
    compared = [arm for arm in group if arm["comparison"]]
    kind = {"lora": "LoRA", "dora": "DoRA"}[group[0]["family"]]
    if not compared:
        missing = "AFA arm" if any(is_baseline(arm["method"]) and arm["accuracy"] for arm in group) else "baseline"
        return [f"{kind}: no {missing} is finished, so there is nothing to compare."]
    than = compared[0]["comparison"]["baseline"]
    clear = [arm for arm in compared if _is_clear(arm["comparison"])]
    better = [arm for arm in clear if arm["comparison"]["difference"] > 0]
    worse = [arm for arm in clear if arm not in better]
    unsure = [arm for arm in compared if _differs_on_items(arm["comparison"]) and arm not in clear]
    sentences = [
        _clear(word, some, compared, kind, than) for word, some in (("better", better), ("worse", worse)) if some
    ]
    if not clear:
        largest = max(compared, key=lambda arm: abs(arm["comparison"]["difference"]))
        if len(compared) == 1:
            sentences.append(f"{largest['name']} does not differ clearly from {than}: {_difference(largest)}.")
        else:
            sentences.append(
                f"None of the {len(compared)} AFA-{kind} arms differs clearly from {than}: the largest difference is "
                f"that of {largest['name']}, {_difference(largest)}."
            )
    if unsure:
        sentences.append(_unsure(unsure, than))
    return sentences


def _clear(word: str, some: Sequence[Arm], compared: Sequence[Arm], kind: str, than: str) -> str:
    if len(some) > 1:
        return f"{len(some)} of {len(compared)} AFA-{kind} arms are {word} than {than}: {_named(some)}."
    if len(compared) > 1:
        return f"1 of {len(compared)} AFA-{kind} arms is {word} than {than}: {some[0]['name']}, {_difference(some[0])}."
    return f"{some[0]['name']} is {word} than {than}: {_difference(some[0])}."


def _unsure(some: Sequence[Arm], kind: str) -> str:
    reasons = {"one seed of several is compared": False, "the interval over the seeds holds 0": True}
    there = [reason for reason, has in reasons.items() if any(_has_interval(arm) == has for arm in some)]
    return (
        f"On these test items {_named(some)} {'does' if len(some) == 1 else 'do'} differ from {kind}, but "
        f"{' or '.join(there)}: other seeds may show otherwise."
    )


def _untrained(arms: Sequence[Arm]) -> list[str]:
    """How the trained drafts stand to one that has learnt nothing."""
    start = next((arm for arm in arms if arm["slug"] == UNTRAINED), None)
    trained = [arm for arm in arms if arm["accuracy"] and arm is not start]
    if start is None or not trained:
        return []
    before, after = start["accuracy"][AVERAGE], [arm["accuracy"][AVERAGE] for arm in trained]
    least = min(after, key=itemgetter("mean"))
    clear = all(value["items_interval_95"][0] > before["items_interval_95"][1] for value in after)
    who = "Every trained draft has" if clear else "Not every trained draft has clearly"
    interval = " to ".join(f"{bound:.3f}" for bound in least["items_interval_95"])
    return [
        f"{who} more tokens accepted than an untrained one ({before['mean']:.3f}): at least {least['mean']:.3f} "
        f"(95 % interval over items {interval})."
    ]


def _full(arm: Arm) -> str:
    comparison = arm["comparison"]
    if _is_clear(comparison):
        word = "better" if comparison["difference"] > 0 else "worse"
        return f"{arm['name']} is {word} than {comparison['baseline']}: {_difference(arm)}."
    if _differs_on_items(comparison):
        return _unsure([arm], comparison["baseline"])
    return f"{arm['name']} does not differ clearly from {comparison['baseline']}: {_difference(arm)}."


def _differs_on_items(comparison: Comparison) -> bool:
    return bool(comparison["p_adjusted"] < SIGNIFICANCE)


def _is_clear(comparison: Comparison) -> bool:
    interval = comparison["seed_interval_95"]
    over_seeds = interval[0] > 0 or interval[1] < 0 if interval else not comparison["missing_seeds"]
    return _differs_on_items(comparison) and over_seeds


def _has_interval(arm: Arm) -> bool:
    return arm["comparison"]["seed_interval_95"] is not None


def _difference(arm: Arm) -> str:
    """``+1.20 points (95 % interval …, p = …)``."""
    comparison = arm["comparison"]
    unit = unit_of(comparison)
    parts = [f"95 % interval over items {points_interval(comparison['interval_95'], unit)}"]
    if comparison["seed_interval_95"]:
        parts.append(f"over {len(comparison['seeds'])} seeds {points_interval(comparison['seed_interval_95'], unit)}")
    adjusted = " adjusted" if comparison["p_adjusted"] != comparison["p_value"] else ""
    parts.append(f"{adjusted.strip()} p {p_value(comparison['p_adjusted'])}".strip())
    return f"{_points(comparison)} ({', '.join(parts)})"


def _named(arms: Iterable[Arm]) -> str:
    """The arms with their differences, the largest first."""
    ordered = sorted(arms, key=lambda arm: -abs(arm["comparison"]["difference"]))
    return ", ".join(f"{arm['name']} ({_points(arm['comparison'])})" for arm in ordered)


def _points(comparison: Comparison) -> str:
    """``+1.20 points``, with the seeds if they are not all."""
    unit = unit_of(comparison)
    return " ".join(filter(None, (f"{points(comparison['difference'], unit)} {unit}", on_seeds(comparison))))


def _other_seeds(arms: Sequence[Arm]) -> list[str]:
    """That a difference is not the one of the tables' averages, where these are over more seeds."""
    seeds = {arm["name"]: arm["seeds"] for arm in arms}
    compared = [(arm, arm["comparison"]) for arm in arms if arm["comparison"]]
    other = [arm["name"] for arm, test in compared if not test["seeds"] == arm["seeds"] == seeds[test["baseline"]]]
    if not other:
        return []
    return [
        "The averages are over all finished seeds of an arm, the differences over those of both arms: for "
        f"{', '.join(other)} the two do not agree."
    ]


def _one_seed(numbers: Mapping[str, Any]) -> list[str]:
    if len(numbers["seeds"]) > 1:
        return []
    return [
        "There is one seed: the intervals are over test items, and say nothing of what another training would give."
    ]


def _unfinished(arms: Sequence[Arm]) -> list[str]:
    missing = [arm for arm in arms if arm["unfinished"]]
    if not missing:
        return []
    names = ", ".join(arm["name"] + _finished_seeds(arm) for arm in missing)
    return [f"Not finished: {len(missing)} of {len(arms)} arms ({names})."]


def _finished_seeds(arm: Arm) -> str:
    done = len(arm["seeds"])
    return f": {done} of {done + len(arm['unfinished'])} seeds done" if done else ""
