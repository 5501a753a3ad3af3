"""The server that a ledger of several machines lies on: the connection of this process, and how its errors are told."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Self
from urllib.parse import urlsplit

from mixpanel_source.credentials import Secret
from mixpanel_source.errors import WarehouseError


class Server:
    """One of each address and process, used by one thread at a time: a child that was forked has its own."""

    def __init__(self, url: Secret) -> None:
        self.lock = threading.Lock()
        self.holder = ""
        """The name of this process there."""
        self._url = url

    @classmethod
    def at(cls, url: Secret) -> Self:
        with _servers_lock:
            key = (cls, url, os.getpid())
            if key not in _servers:
                _servers[key] = cls(url)
                atexit.register(_servers[key].close)
            found: Self = _servers[key]
            return found

    @property
    def shown(self) -> str:
        """The address without user, password and options."""
        parts = urlsplit(self._url.reveal())
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def close(self) -> None:
        raise NotImplementedError

    @contextmanager
    def told(self, kind: type[Exception]) -> Iterator[None]:
        """Errors of the server, which are of `kind`, as `WarehouseError`."""
        try:
            yield
        except kind as error:
            text = " ".join(str(error).split())[:300] or type(error).__name__
            raise WarehouseError(
                f"the request ledger in {self.shown} cannot be used: {text}",
                hint="look at its server, and at ledger_url or MP_LEDGER_URL",
            ) from error


_servers: dict[tuple[type[Server], Secret, int], Any] = {}
_servers_lock: Final = threading.Lock()
