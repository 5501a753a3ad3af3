"""The ledger of one machine: a small SQLite file.

`begin immediate` lets one process in at a time, and the operating system frees the file if that process dies.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from mixpanel_source.errors import WarehouseError
from mixpanel_source.ledger.clock import Clock
from mixpanel_source.ledger.liveness import Holders
from mixpanel_source.ledger.record import Record, loaded
from mixpanel_source.ledger.store import Key, Opened

LOCK_TIMEOUT_S: Final = 30.0


class FileStore:
    """A `Store` in the file `path`, with a folder beside it for the locks of `Holders`."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._holders = Holders(path.with_name(f"{path.name}.holders"))

    @contextmanager
    def changing(self, key: Key) -> Iterator[Opened]:
        with _alone(self._path), _database_errors(self._path):
            holder = self._holders.own()
            with closing(_connect(self._path)) as connection:
                connection.execute("begin immediate")
                reading = self._clock()
                record = loaded(_text(connection, key), reading)
                yield Opened(record, reading.now, holder, self._holders.is_alive)
                connection.execute("insert or replace into ledger values (?, ?, ?, ?)", (*key, record.dumped(reading)))
                connection.execute("commit")

    def read(self, key: Key) -> tuple[Record, float]:
        """Makes no file, and works where nothing may be written, too."""
        text = None
        if self._path.exists():
            with _database_errors(self._path):
                try:
                    with closing(_connect_read_only(self._path)) as connection:
                        text = _text(connection, key)
                except sqlite3.OperationalError:  # what a killed process left half written is to be undone first
                    with _alone(self._path), closing(_connect(self._path)) as connection:
                        text = _text(connection, key)
        reading = self._clock()
        return loaded(text, reading), reading.now


_locks: dict[tuple[Path, int], threading.Lock] = {}
"""By file and process."""
_locks_lock: Final = threading.Lock()


def _alone(path: Path) -> threading.Lock:
    """What a thread of this process holds while it writes, whichever ledger it uses. They wait better here than for
    SQLite, and the file is made by one of them."""
    with _locks_lock:
        return _locks.setdefault((path.absolute(), os.getpid()), threading.Lock())


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():  # closing it ends the locks that others in this process have on it, as POSIX wants it
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite itself would make it readable by all
    # One connection for each use: they are short, and none is shared by threads or inherited by a fork.
    connection = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
    try:
        connection.execute("pragma synchronous = normal")  # it only counts, and is written several times a request
        connection.execute(
            "create table if not exists ledger"
            " (origin text, project_id text, family text, record text, primary key (origin, project_id, family))"
        )
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=LOCK_TIMEOUT_S)


def _text(connection: sqlite3.Connection, key: Key) -> str | None:
    row = connection.execute(
        "select record from ledger where origin = ? and project_id = ? and family = ?", key
    ).fetchone()
    return None if row is None else str(row[0])


@contextmanager
def _database_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        hints = {"locked": "another process holds it: try again", "full": "free some space, or move MP_DATA_DIR"}
        hint = next((hint for sign, hint in hints.items() if sign in str(error)), f"remove {path}: it only counts")
        raise WarehouseError(f"the request ledger {path} cannot be used: {error}", hint=hint) from error
    except OSError as error:
        raise WarehouseError(
            f"the request ledger {path} cannot be used: {error.strerror}", hint="MP_DATA_DIR moves the data folder"
        ) from error
