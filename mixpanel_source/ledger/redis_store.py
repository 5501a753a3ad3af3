"""The ledger of several machines: keys of a Redis database, whose clock counts.

A record is changed by whoever holds its lock, a key beside it. Every process keeps a connection with a name of its own,
and Redis tells which of these there are: so it is known who is alive, and whose lock is left over.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from mixpanel_source.credentials import Secret
from mixpanel_source.errors import ConfigError, WarehouseError
from mixpanel_source.ledger.clock import Reading
from mixpanel_source.ledger.record import Record, loaded
from mixpanel_source.ledger.server import Server
from mixpanel_source.ledger.store import Key, Opened

if TYPE_CHECKING:
    import redis

LOCK_TIMEOUT_S: Final = 30.0
"""So long one process waits for the others, and holds its lock at the most."""
ANSWER_TIMEOUT_S: Final = 60.0
CONNECT_TIMEOUT_S: Final = 10.0
_LOOK_EVERY_S: Final = 0.005
_LOOK_FOR_DEAD_S: Final = 0.2

_URL: Final = re.compile(r"rediss?://([^\s/?#@:]*(:[^\s/?#@:]*)?@)?[^\s/?#@]+(/[0-9]*)?")
_NAME: Final = "mpload-"

# In each: KEYS are the record and its lock, and the first argument who asks.
_BEGIN: Final = """
if not redis.call('set', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then
    return {0, redis.call('get', KEYS[2])}
end
local time = redis.call('time')
return {1, redis.call('get', KEYS[1]), time[1], time[2]}
"""
_END: Final = """
if redis.call('get', KEYS[2]) ~= ARGV[1] then
    return 0
end
if ARGV[2] then
    redis.call('set', KEYS[1], ARGV[2])
end
redis.call('del', KEYS[2])
return 1
"""
_READ: Final = """
local time = redis.call('time')
return {redis.call('get', KEYS[1]), time[1], time[2]}
"""


class RedisStore:
    """A `Store` in the database at `url`. Raises `ConfigError` where that is none of Redis."""

    def __init__(self, url: Secret) -> None:
        _check(url)
        self._server = _Server.at(url)

    @contextmanager
    def changing(self, key: Key) -> Iterator[Opened]:
        import redis

        server = self._server
        with server.lock, server.told(redis.RedisError):
            token = f"{server.holder}/{secrets.token_hex(6)}"
            names = _names(key)
            reading, text = self._begin(names, token)
            try:
                alive = server.alive()
                record = loaded(text, reading)
                yield Opened(record, reading.now, server.holder, alive.__contains__)
            except BaseException:
                with suppress(Exception):
                    server.run(_END, names, token)
                raise
            if not server.run(_END, names, token, record.dumped(reading)):
                raise WarehouseError(
                    f"the request ledger in {server.shown} was held for longer than {LOCK_TIMEOUT_S:.0f} s",
                    hint="nothing was entered: run it again",
                )

    def read(self, key: Key) -> tuple[Record, float]:
        import redis

        with self._server.lock, self._server.told(redis.RedisError):
            text, *moment = self._server.run(_READ, _names(key))
            reading = _reading(moment)
            return loaded(text, reading), reading.now

    def _begin(self, names: list[str], token: str) -> tuple[Reading, str | None]:
        until = time.monotonic() + LOCK_TIMEOUT_S
        look_at = time.monotonic() + _LOOK_FOR_DEAD_S
        while True:
            is_ours, found, *moment = self._server.run(_BEGIN, names, token, int(LOCK_TIMEOUT_S * 1000))
            if is_ours:
                return _reading(moment), found
            now = time.monotonic()
            if now > until:
                raise WarehouseError(
                    f"the request ledger in {self._server.shown} is held by another process", hint="try again"
                )
            if now > look_at:
                look_at = now + _LOOK_FOR_DEAD_S
                if found and found.partition("/")[0] not in self._server.alive():
                    self._server.run(_END, names, found)
            time.sleep(_LOOK_EVERY_S)


def _names(key: Key) -> list[str]:
    """Of the record and its lock, which a cluster keeps together for what stands in braces."""
    name = "mpload_ledger:{" + " ".join(key) + "}"
    return [name, f"{name}:lock"]


def _reading(moment: list[str]) -> Reading:
    seconds, microseconds = moment
    now = int(seconds) + int(microseconds) / 1e6
    return Reading("", now, now)


class _Server(Server):
    """A database; the name is that of the connection."""

    def __init__(self, url: Secret) -> None:
        super().__init__(url)
        self.holder = secrets.token_hex(8)
        self._client: redis.Redis | None = None

    def _connected(self) -> redis.Redis:
        if self._client is None:
            self._client = self._connect()
        return self._client

    def _connect(self) -> redis.Redis:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        return redis.Redis.from_url(
            self._url.reveal(),
            single_connection_client=True,
            client_name=_NAME + self.holder,
            decode_responses=True,
            socket_timeout=ANSWER_TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_keepalive=True,
            # A connection that has ended is noticed by the first command on it, which is sent once more on a new one.
            retry=Retry(NoBackoff(), 1),
        )

    def run(self, script: str, names: list[str], *arguments: str | int) -> Any:
        return self._connected().eval(script, len(names), *names, *arguments)

    def alive(self) -> set[str]:
        """The holders that are connected."""
        clients: Any = self._connected().client_list()
        return {one["name"].removeprefix(_NAME) for one in clients if one["name"].startswith(_NAME)}

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


def _check(url: Secret) -> None:
    """Of an address that it cannot read, the client tells parts, which may be those of a password."""
    if _URL.fullmatch(url.reveal()) is None:
        raise ConfigError(
            "the address of the request ledger is none of a Redis database",
            hint="such as redis://user:password@host:6379/0, with @, / and : in a password as %40, %2F and %3A",
        )
    try:
        import redis  # noqa: F401
    except ImportError:
        raise ConfigError(
            "a request ledger in Redis needs its client", hint="pip install 'mixpanel-source[redis]'"
        ) from None
