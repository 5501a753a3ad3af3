"""Numbers and times as a user reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixpanel_source.load_metrics import LoadMetrics


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def length(seconds: float) -> str:
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def requests_in_words(requests: int, at_most: int) -> str:
    return counted(requests, "request") if requests == at_most else f"{requests:,} to {at_most:,} requests"


def time_in_words(seconds: float, at_most: float) -> str:
    if at_most < 1:
        return "no waiting"
    return f"about {length(at_most)}" if seconds == at_most else f"{length(seconds)} to {length(at_most)}"


def metrics_in_words(metrics: LoadMetrics, seconds: float) -> str:
    """What a load did and spent, and where its `seconds` went."""
    from rich.filesize import decimal

    stages = ("download", "convert", "write", "typed")
    spent = ", ".join(f"{stage} {getattr(metrics, f'{stage}_s'):.1f}" for stage in stages)
    words = [
        f"{counted(metrics.rows, 'row')}, {counted(metrics.requests, 'request')}, {decimal(metrics.received_bytes)}"
        f" received, {seconds:.1f} s ({spent})"
    ]
    if metrics.retries:
        words.append("1 retry" if metrics.retries == 1 else f"{metrics.retries:,} retries")
    if metrics.waited_s >= 1:
        words.append(f"waited {length(metrics.waited_s)}")
    return ", ".join(words)
