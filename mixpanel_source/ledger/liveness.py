"""Which of the processes in a ledger's file are alive: each holds a lock that the operating system frees as it dies."""

from __future__ import annotations

import os
import re
import secrets
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from filelock import BaseFileLock

_NAME: Final = re.compile(r"[0-9a-f]{16}")

_own: dict[tuple[Path, int], tuple[str, BaseFileLock]] = {}
"""By folder and process: a child that was forked is a holder of its own."""
_own_lock: Final = threading.Lock()


class Holders:
    """Processes by name, each with a lock file of this name in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()

    def own(self) -> str:
        """The name of this process. Takes its lock, until the process ends."""
        with _own_lock:
            key = (self._folder, os.getpid())
            if key not in _own:
                for folder in (self._folder.parent, self._folder):  # the mode is not that of parents
                    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                for left in self._folder.iterdir():
                    self.is_alive(left.name)
                name = secrets.token_hex(8)
                _own[key] = name, self._lock(name)
                _own[key][1].acquire()
            return _own[key][0]

    def is_alive(self, name: str) -> bool:
        """Whether the process still runs. Removes the file of one that does not."""
        from filelock import Timeout

        held = _own.get((self._folder, os.getpid()))
        if held is not None and held[0] == name:
            return True
        path = self._folder / name
        if not _NAME.fullmatch(name) or not path.exists():
            return False
        lock = self._lock(name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()  # first: Windows removes no file that is open
        with suppress(OSError):
            path.unlink()  # names are not used again
        return False

    def _lock(self, name: str) -> BaseFileLock:
        from filelock import FileLock

        return FileLock(self._folder / name, mode=0o600, thread_local=False)
