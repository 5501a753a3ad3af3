"""Answers kept for a while in small files, one for each question, that all processes of the machine share.

It only saves requests: what cannot be read, or written, is as if it was never asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

CLOCK_STEP_S: Final = 5.0
"""An answer further than this in the future was kept before the wall clock was set back, and is not used."""
KEPT_S: Final = 7 * 86_400.0
"""Files older than this are removed when another is written."""


class Kept(NamedTuple):
    answer: Any
    age_s: float


class AnswerCache:
    """Keeps answers, which are JSON, in `folder`. `clock` gives epoch seconds."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock

    def get(self, question: list[str], max_age_s: float) -> Kept | None:
        try:
            stored = json.loads(self._path(question).read_bytes())
            answer, age_s = stored["answer"], self._clock() - stored["asked_at"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        if stored.get("question") != question or not -CLOCK_STEP_S <= age_s < max_age_s:
            return None
        return Kept(answer, max(age_s, 0.0))

    def put(self, question: list[str], answer: Any) -> None:
        """Replaces the file whole or not at all: a reader, or a crash, never meets half of it."""
        text = json.dumps({"question": question, "asked_at": self._clock(), "answer": answer})
        temporary: Path | None = None
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._remove_old()
            handle, name = tempfile.mkstemp(dir=self._folder)  # mkstemp's mode is 0600
            temporary = Path(name)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            temporary.replace(self._path(question))
            temporary = None
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def _remove_old(self) -> None:
        for path in self._folder.iterdir():
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - KEPT_S:
                    path.unlink()

    def _path(self, question: list[str]) -> Path:
        return self._folder / f"{hashlib.sha256(json.dumps(question).encode()).hexdigest()}.json"
