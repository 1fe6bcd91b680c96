"""How the numbers of a report are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MINUS = "−"
NOTHING = "–"
AVERAGE = "average"
POINTS, TOKENS = "points", "tokens"  # what a difference is counted in


def share(value: float, decimals: int = 1) -> str:
    """A share as percent, without the sign: 0.412 is ``41.2``."""
    return f"{100 * value:.{decimals}f}".replace("-", MINUS)


def unit_of(comparison: Mapping[str, Any]) -> str:
    """What the difference is counted in; the numbers say so since there is more than one unit."""
    return str(comparison.get("unit", POINTS))


def points(value: float, unit: str = POINTS) -> str:
    """A difference with its sign: of shares in percentage points ``+1.20``, of accepted tokens ``+0.120``."""
    return (f"{value:+.3f}" if unit == TOKENS else f"{100 * value:+.2f}").replace("-", MINUS)


def points_interval(interval: Sequence[float], unit: str = POINTS) -> str:
    """``−0.40 to +2.80``."""
    return " to ".join(points(bound, unit) for bound in interval)


def p_value(value: float) -> str:
    """``= 0.043``, or ``< 0.001``."""
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def accuracy(value: Mapping[str, Any], decimals: int = 1) -> str:
    """The mean in percent."""
    return share(value["mean"], decimals)


def accuracy_interval(value: Mapping[str, Any], decimals: int = 1) -> str:
    """``± 1.2`` for seeds, whose interval is symmetric; ``38.9 to 43.6`` for items; nothing where there is none."""
    interval = value["interval_95"]
    if interval is None:
        return ""
    if value["over"] == "seeds":
        return f"± {share((interval[1] - interval[0]) / 2, decimals)}"
    return " to ".join(share(bound, decimals) for bound in interval)


def paper_value(arm: Mapping[str, Any], key: str) -> str:
    """The paper's accuracy in percent, as printed there."""
    return f"{arm['paper'][key]:.2f}" if key in arm["paper"] else ""


def gap(arm: Mapping[str, Any]) -> str:
    """The gap closed in percent with its interval, or that there is none to close."""
    closed = arm["gap_closed"]
    if closed is None:
        return ""
    if closed["value"] is None:
        return "no clear gap"
    low, high = closed["interval_95"]
    text = f"{share(closed['value'], 0)} % ({share(low, 0)} to {share(high, 0)})"
    return " ".join(filter(None, (text, on_seeds(closed))))


def on_seeds(compared: Mapping[str, Any]) -> str:
    """``on seed 0 alone`` for a comparison that lacks planned seeds, otherwise nothing."""
    seeds = compared["seeds"]
    return f"on seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))} alone" if compared["missing_seeds"] else ""


def mebibytes(size: int) -> str:
    """A number of bytes in MiB, without the unit."""
    return f"{size / 2**20:,.0f}"


def duration(seconds: float) -> str:
    """``45 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def state(arm: Mapping[str, Any], messages: bool = True) -> str:
    """What of an arm is not finished: ``seeds 0, 1: not started``; without seeds where it is so for all of them.

    ``messages`` are those of failures.
    """
    seeds: dict[str, list[str]] = {}
    for entry in arm["unfinished"]:
        status = entry["status"] if messages else entry["status"].partition(":")[0]
        seeds.setdefault(status, []).append(str(entry["seed"]))
    if len(seeds) == 1 and not arm["seeds"]:
        return next(iter(seeds))
    return "; ".join(f"seed{'s' * (len(some) > 1)} {', '.join(some)}: {status}" for status, some in seeds.items())


def against(comparison: Mapping[str, Any]) -> str:
    """The baseline and the difference to it: ``LoRA +1.20``."""
    difference = points(comparison["difference"], unit_of(comparison))
    return f"{comparison['baseline']} {difference} {on_seeds(comparison)}".rstrip()


def paper_gap(arm: Mapping[str, Any]) -> str:
    """The gap closed that follows from the paper's numbers, in percent; for each size of model where it has several."""
    gaps = arm.get("paper_gaps_closed")
    if gaps:
        return ", ".join(f"{size} {share(value, 1)} %" for size, value in gaps.items())
    value = arm["paper_gap_closed"]
    return NOTHING if value is None else f"{share(value, 0)} %"


def escaped(text: str) -> str:
    """A name that cannot break a Markdown table or bring HTML into it."""
    for plain, safe in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "\\`"), ("[", "\\[")):
        text = text.replace(plain, safe)
    return " ".join(text.split())
