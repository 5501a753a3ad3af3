"""Numbers and times as a user reads them."""

from __future__ import annotations


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
