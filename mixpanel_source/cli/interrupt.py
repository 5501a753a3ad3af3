"""Ctrl-C while requests are under way."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mixpanel_source.cli.exit_codes import INTERRUPTED
from mixpanel_source.cli.messages import report

_GRACE_S = 2.0
"""So long everything may close what it has open. A request that waits for Mixpanel can take an hour to notice."""


@contextmanager
def ended_by_interrupt(as_json: bool) -> Iterator[None]:
    """Within it Ctrl-C ends the process after `_GRACE_S` at the latest. A load can be stopped anywhere: see `load`."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, as in a shell's background jobs
        yield
        return

    def end() -> None:
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K\x1b[?25h")  # the progress display had hidden the cursor
        report("Interrupted", "interrupted", None, INTERRUPTED, as_json=as_json)
        sys.stderr.flush()
        os._exit(INTERRUPTED)

    def interrupt(number: int, frame: FrameType | None) -> None:
        timer = threading.Timer(_GRACE_S, end)
        timer.daemon = True
        timer.start()
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
