"""Mixpanel's rate limits for one project, as a rolling window.

Mixpanel docs: Rate Limits (60 requests an hour and 3 a second for raw export, 100 at once; 60 an hour for the Query
API, 5 at once; 5 a minute for Lexicon schemas). Whether the hour rolls or follows the clock is not documented; here it
rolls.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """Why a request is over the limit, in the terms of the 429 body."""

    running: int
    at_once: int
    in_window: int
    per_window: int
    wait_s: float

    @property
    def retry_after(self) -> str:
        """Whole seconds until the next request is free: what `Retry-After` carries."""
        return str(max(1, math.ceil(self.wait_s)))


class RateLimit:
    """One family's limits. A refused request does not count."""

    def __init__(
        self, per_window: int, window_s: float, at_once: int, per_second: int | None, clock: Callable[[], float]
    ) -> None:
        self.per_window = per_window
        self.at_once = at_once
        self.running = 0
        self._clock = clock
        self._windows = [(per_window, window_s)]
        if per_second is not None:
            self._windows.append((per_second, 1.0))
        self._longest_s = max(seconds for _, seconds in self._windows)
        self._starts: deque[float] = deque()

    def admit(self, counts: bool = True) -> Refusal | None:
        """Take a place (give it back with `done`), or say why not. One that does not count is held to `at_once`."""
        now = self._clock()
        while self._starts and self._starts[0] <= now - self._longest_s:
            self._starts.popleft()
        if self.running >= self.at_once:
            # Nobody can know when a running request ends; a second is the least that Retry-After can say.
            return self._refusal(wait_s=1.0)
        if counts:
            waits = [
                self._starts[-count] + seconds - now
                for count, seconds in self._windows
                if len(self._starts) >= count and self._starts[-count] > now - seconds
            ]
            if waits:
                return self._refusal(wait_s=max(waits))
            self._starts.append(now)
        self.running += 1
        return None

    def done(self) -> None:
        """The response has been sent, or has failed."""
        self.running -= 1

    def forget(self) -> None:
        """Start a new window."""
        self._starts.clear()

    def _refusal(self, wait_s: float) -> Refusal:
        return Refusal(self.running, self.at_once, len(self._starts), self.per_window, wait_s)
