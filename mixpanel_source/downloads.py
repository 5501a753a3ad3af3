"""Exports on their way: several at once, as far as the request limit and the disk allow, and taken as they come."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mixpanel_source.bodies import ExportBody
from mixpanel_source.client import MixpanelClient
from mixpanel_source.closing import Closing
from mixpanel_source.errors import IncompleteExportError, ServerError
from mixpanel_source.rate_limit import SHORT_WAIT_S
from mixpanel_source.windows import Window

if TYPE_CHECKING:
    from mixpanel_source.exports import EventFilter

LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Asked:
    """An export to ask for."""

    window: Window
    filter: EventFilter
    events: float = 0.0
    """Expected in it."""
    requests: int = 0
    """Spent on it before."""
    again: bool = False
    """Whether the answer was doubted once."""


@dataclass(frozen=True)
class Fetched:
    """What came of it: a whole body, or the error after all retries where asking for less may help."""

    asked: Asked
    requests: int
    exported_at: datetime
    body: ExportBody | IncompleteExportError | ServerError
    is_kept: bool = False
    """Whether an earlier load asked for it."""


class Downloads(Closing):
    """Exports of `client`, at most `at_once` that are under way or wait to be taken.

    `max_bytes` bounds what they need on the disk. `on_arrival` is told of each that came whole, within a call of
    `may_begin` or `take`; `on_bytes` how many bytes came so far, compressed, from several threads. `keep` is called
    with each in the thread it came in, and `kept_bytes` says how large those are that it has kept. `check_room` raises
    WarehouseError where the disk is too full to begin another one.
    """

    def __init__(
        self,
        client: MixpanelClient,
        at_once: int,
        max_bytes: int,
        *,
        on_arrival: Callable[[Fetched, ExportBody], None],
        on_bytes: Callable[[int], None] | None = None,
        keep: Callable[[Fetched, ExportBody], None] | None = None,
        kept_bytes: Callable[[], int] = lambda: 0,
        check_room: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._at_once = at_once
        self._max_bytes = max_bytes
        self._on_arrival = on_arrival
        self._on_bytes = on_bytes
        self._keep = keep
        self._kept_bytes = kept_bytes
        self._check_room = check_room
        self._all: deque[_Download] = deque()
        """In the order asked for, until they are taken."""
        self._events = self._compressed_bytes = 0
        """Of all that came."""
        self._has_one_come = False
        self._received_bytes = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="mixpanel-export")

    def __bool__(self) -> bool:
        return bool(self._all)

    @property
    def coming(self) -> Sequence[Asked]:
        """What is not here yet."""
        return [download.asked for download in self._all if not download.is_here]

    @property
    def waiting(self) -> Sequence[Asked]:
        """What is here, and not taken."""
        return [download.asked for download in self._all if download.is_here]

    def may_begin(self) -> bool:
        """Whether to ask for another one now. One may always be under way.

        Not while those that are, as large as they are expected to be, fill `max_bytes`; nor while one of them waits
        long for the request limit, nor where one never came whole and waits to be taken.
        """
        self._look()
        if not self._all:
            return True
        if len(self._all) >= self._at_once or any(one.is_here and one.body is None for one in self._all):
            return False
        if not self._has_one_come:  # nobody knows how large they are
            return False
        if self._kept_bytes() + sum(map(self._bytes_of, self._all)) >= self._max_bytes:
            return False
        silent = sum(not download.is_here and not download.received_bytes for download in self._all)
        spent = self._client.ledger.spent("export")
        return not silent or (spent.used + silent < spent.allowed and spent.next_free_s <= SHORT_WAIT_S)

    def begin(self, asked: Asked) -> None:
        download = _Download(asked)
        self._all.append(download)
        download.future = self._pool.submit(self._fetch, download)

    def put(self, fetched: Fetched, body: ExportBody) -> None:
        """One that is here from before, and that `on_arrival` need not be told of."""
        download = _Download(fetched.asked, Future(), is_here=True)
        download.future.set_result(fetched)
        self._all.append(download)
        self._note_size(body)

    def take(self) -> Fetched:
        """The first in the order asked for of those that are here; waits until one is.

        Raises what `MixpanelClient.export` did, once nothing else is here, or will be without a long wait.
        """
        while True:
            self._look()
            for download in self._all:
                if download.is_here and not download.has_failed:
                    self._all.remove(download)
                    return download.future.result()
            coming = [download for download in self._all if not download.is_here]
            failed = [download for download in self._all if download.has_failed]
            if failed and (not coming or self._waits_long()):
                return failed[0].future.result()
            _wait(coming, LOOK_EVERY_S if failed else None)

    def is_held_up(self, for_s: float) -> bool:
        """Whether the next one will not be here within `for_s`, or not before a long wait for the request limit."""
        until = time.monotonic() + for_s
        while self._all and not any(download.future.done() for download in self._all):
            left_s = until - time.monotonic()
            if left_s <= 0 or self._waits_long():
                return True
            _wait(self._all, min(left_s, LOOK_EVERY_S))
        return False

    def close(self) -> None:
        self._client.close()  # so that what is under way ends soon
        self._pool.shutdown(wait=True, cancel_futures=True)
        for download in self._all:
            if download.body is not None:
                download.body.close()
        self._all.clear()

    def _look(self) -> None:
        """See what is here now."""
        for download in self._all:
            if download.is_here or not download.future.done():
                continue
            download.is_here = True
            if download.body is not None:
                self._note_size(download.body)
                self._on_arrival(download.future.result(), download.body)

    def _note_size(self, body: ExportBody) -> None:
        self._has_one_come = True
        self._events += body.lines
        self._compressed_bytes += body.compressed_bytes

    def _waits_long(self) -> bool:
        """All that is not here yet."""
        return self._client.ledger.waits_s("export") > SHORT_WAIT_S

    def _bytes_of(self, download: _Download) -> float:
        if download.body is not None:
            return 0 if download.body.is_kept else download.body.compressed_bytes
        expected = download.asked.events * self._compressed_bytes / self._events if self._events else 0.0
        return max(expected, download.received_bytes)

    def _fetch(self, download: _Download) -> Fetched:
        asked = download.asked

        def received(compressed_bytes: int) -> None:
            with self._lock:
                # Less than before where it is begun again.
                self._received_bytes += max(compressed_bytes - download.received_bytes, 0)
                download.received_bytes = compressed_bytes
                so_far = self._received_bytes
            if self._on_bytes is not None:
                self._on_bytes(so_far)

        exported_at = datetime.now(UTC)
        body: ExportBody | IncompleteExportError | ServerError
        self._check_room()
        try:
            body = self._client.export(
                asked.window, events=asked.filter.events or None, where=asked.filter.where, on_bytes=received
            )
        except IncompleteExportError as error:
            body = error
        except ServerError as error:
            if not error.is_slow:
                raise
            body = error
        fetched = Fetched(asked, asked.requests + body.attempts, exported_at, body)
        if self._keep is not None and isinstance(body, ExportBody):
            self._keep(fetched, body)
        return fetched


@dataclass(eq=False)
class _Download:
    asked: Asked
    future: Future[Fetched] = None  # type: ignore[assignment]
    received_bytes: int = 0
    """In the attempt under way, compressed."""
    is_here: bool = False
    """Whether its end was seen, whatever it was."""

    @property
    def has_failed(self) -> bool:
        return self.future.done() and self.future.exception() is not None

    @property
    def body(self) -> ExportBody | None:
        """Once it is here, and whole."""
        if not self.future.done() or self.future.cancelled() or self.has_failed:
            return None
        body = self.future.result().body
        return body if isinstance(body, ExportBody) else None


def _wait(downloads: Iterable[_Download], timeout_s: float | None) -> None:
    """Until one of them ends."""
    wait([download.future for download in downloads], timeout=timeout_s, return_when=FIRST_COMPLETED)
