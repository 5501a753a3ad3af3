"""Where the records of a ledger are kept: what the stores have in common, and the one in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, Protocol

from mixpanel_source.ledger.clock import Clock
from mixpanel_source.ledger.record import Record, loaded


class Key(NamedTuple):
    """One API family of one project."""

    origin: str
    project_id: str
    family: str


class Opened(NamedTuple):
    """A record to be changed."""

    record: Record
    now: float
    """By the clock of the record's moments."""
    holder: str
    """This process."""
    is_alive: Callable[[str], bool]
    """Of another holder."""


class Store(Protocol):
    """Raises `WarehouseError` where it cannot be used."""

    def changing(self, key: Key) -> AbstractContextManager[Opened]:
        """The record, which nobody else has meanwhile; written at the end unless there is an error."""

    def read(self, key: Key) -> tuple[Record, float]:
        """The record, and now by its clock. Writes nothing."""


class MemoryStore:
    """For one process, and one ledger."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._records: dict[Key, str] = {}
        self._lock = threading.Lock()

    @contextmanager
    def changing(self, key: Key) -> Iterator[Opened]:
        with self._lock:
            record, present = loaded(self._records.get(key), reading := self._clock()), reading.now
            yield Opened(record, present, "me", lambda holder: True)
            self._records[key] = record.dumped(reading)

    def read(self, key: Key) -> tuple[Record, float]:
        with self._lock:
            return loaded(self._records.get(key), reading := self._clock()), reading.now
