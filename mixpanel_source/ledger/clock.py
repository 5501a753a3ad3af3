"""The clocks that requests are dated by.

Linux counts the seconds since it was started, sleep included, whatever becomes of the wall clock. Elsewhere, and to
tell how long ago something was in an earlier run of the machine, there is the wall clock alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Reading(NamedTuple):
    """A moment by both clocks. Moments of one `boot` can be compared by `now`."""

    boot: str
    """Which run of the machine `now` counts the seconds of; "" where it is `wall`."""
    now: float
    wall: float
    """Epoch seconds."""


Clock = Callable[[], Reading]


def system_clock() -> Reading:
    wall = time.time()
    if boot := _boot_id():
        return Reading(boot, time.clock_gettime(time.CLOCK_BOOTTIME), wall)
    return Reading("", wall, wall)


def wall_clock(epoch_s: Callable[[], float]) -> Clock:
    """A clock that has nothing else to go by."""

    def read() -> Reading:
        now = epoch_s()
        return Reading("", now, now)

    return read


def carried(at: float, written: Reading, present: Reading) -> float:
    """The moment `at` of a record that was written at `written`, by the clock of `present`."""
    if written.boot == present.boot:
        return at
    return at + (written.wall - written.now) - (present.wall - present.now)


@cache
def _boot_id() -> str:
    """ "" where the platform does not tell."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return ""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
