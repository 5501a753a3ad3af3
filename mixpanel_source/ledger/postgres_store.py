"""The ledger of several machines: a table of a Postgres database, whose clock counts.

Every process keeps a connection, with an advisory lock that ends with it: by these it is known who is alive. So it
takes a connection of its own, not one of a pooler that shares them between transactions.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, TypeVar

from mixpanel_source.credentials import Secret
from mixpanel_source.errors import ConfigError
from mixpanel_source.ledger.clock import Reading
from mixpanel_source.ledger.record import Record, loaded
from mixpanel_source.ledger.server import Server
from mixpanel_source.ledger.store import Key, Opened

if TYPE_CHECKING:
    import psycopg

T = TypeVar("T")

LOCK_TIMEOUT_S: Final = 30
ANSWER_TIMEOUT_S: Final = 60
CONNECT_TIMEOUT_S: Final = 10
TABLE: Final = "mpload_ledger"

_URL: Final = re.compile(r"postgres(ql)?://([^\s/?#@:]*(:[^\s/?#@:]*)?@)?[^\s/?#@]*(/[^\s@#]*)?")
_LOCKS: Final = 0x6D706C64
"""The class of the advisory locks of holders; the next two are those of records and of making the table."""
_CREATE: Final = (
    f"create table if not exists {TABLE}"
    " (origin text, project_id text, family text, record text not null, primary key (origin, project_id, family))"
)
_READ: Final = (
    "select extract(epoch from clock_timestamp())::float8,"
    f" (select record from {TABLE} where origin = %s and project_id = %s and family = %s)"
)
_WRITE: Final = (
    f"insert into {TABLE} values (%s, %s, %s, %s)"
    " on conflict (origin, project_id, family) do update set record = excluded.record"
)
_ALIVE: Final = (
    "select objid::text from pg_locks where locktype = 'advisory' and granted and classid = %s and objsubid = 2"
    " and database = (select oid from pg_database where datname = current_database())"
)


class PostgresStore:
    """A `Store` in the database at `url`. Raises `ConfigError` where that is none of Postgres."""

    def __init__(self, url: Secret) -> None:
        _check(url)
        self._server = _Server.at(url)

    @contextmanager
    def changing(self, key: Key) -> Iterator[Opened]:
        import psycopg

        with self._server.lock, self._server.told(psycopg.Error):
            connection, reading, text = self._begin(key)
            with _rolled_back_on_error(connection):
                alive = {holder for (holder,) in connection.execute(_ALIVE, (_LOCKS,))}
                record = loaded(text, reading)
                yield Opened(record, reading.now, self._server.holder, alive.__contains__)
                connection.execute(_WRITE, (*key, record.dumped(reading)))
                connection.execute("commit")

    def read(self, key: Key) -> tuple[Record, float]:
        import psycopg

        with self._server.lock, self._server.told(psycopg.Error):
            try:
                reading, text = self._server.retried(lambda connection: _read(connection, key))
            except psycopg.errors.UndefinedTable:
                return Record(), 0.0
            return loaded(text, reading), reading.now

    def _begin(self, key: Key) -> tuple[psycopg.Connection, Reading, str | None]:
        import psycopg

        def begin(connection: psycopg.Connection) -> tuple[psycopg.Connection, Reading, str | None]:
            with _rolled_back_on_error(connection):
                connection.execute("begin")
                connection.execute("select pg_advisory_xact_lock(%s, hashtext(%s))", (_LOCKS + 1, "\n".join(key)))
                return connection, *_read(connection, key)

        def create(connection: psycopg.Connection) -> None:
            with connection.transaction():
                connection.execute("select pg_advisory_xact_lock(%s, 0)", (_LOCKS + 2,))
                connection.execute(_CREATE)

        try:
            return self._server.retried(begin)
        except psycopg.errors.UndefinedTable:
            self._server.retried(create)
            return self._server.retried(begin)


def _read(connection: psycopg.Connection, key: Key) -> tuple[Reading, str | None]:
    row = connection.execute(_READ, key).fetchone()
    assert row is not None
    return Reading("", row[0], row[0]), row[1]


@contextmanager
def _rolled_back_on_error(connection: psycopg.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(Exception):
            connection.execute("rollback")
        raise


class _Server(Server):
    """A database; the name is that of an advisory lock."""

    def __init__(self, url: Secret) -> None:
        super().__init__(url)
        self._connection: psycopg.Connection | None = None

    def retried(self, ask: Callable[[psycopg.Connection], T]) -> T:
        """What `ask` answers, once more on a new connection where the old one has ended."""
        import psycopg

        if self._connection is not None:
            with suppress(psycopg.OperationalError, psycopg.InterfaceError):
                return ask(self._connection)
            self.close()
        return ask(self._connect())

    def _connect(self) -> psycopg.Connection:
        import psycopg

        connection = psycopg.connect(
            self._url.reveal(),
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            # So that neither side takes long to see that the other has gone.
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=3,
            tcp_user_timeout=LOCK_TIMEOUT_S * 1000,
        )
        try:
            connection.execute(f"set lock_timeout = '{LOCK_TIMEOUT_S}s'; set statement_timeout = '{ANSWER_TIMEOUT_S}s'")
            connection.execute("set tcp_keepalives_idle = 30")
            # Where the server ends idle sessions (since Postgres 14), not this one.
            connection.execute(
                "select set_config(name, '0', false) from pg_settings where name = 'idle_session_timeout'"
            )
            holder = secrets.randbelow(2**31)
            connection.execute("select pg_advisory_lock(%s, %s)", (_LOCKS, holder))
        except BaseException:
            connection.close()
            raise
        self.holder, self._connection = str(holder), connection
        return connection

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _check(url: Secret) -> None:
    """Of an address that it cannot read, libpq tells parts, which may be those of a password."""
    try:
        import psycopg
        import psycopg.conninfo
    except ImportError:
        raise ConfigError(
            "a request ledger in Postgres needs psycopg", hint="pip install 'mixpanel-source[ledger]'"
        ) from None
    good = _URL.fullmatch(url.reveal()) is not None
    if good:
        try:
            psycopg.conninfo.conninfo_to_dict(url.reveal())
        except psycopg.Error:
            good = False
    if not good:
        raise ConfigError(
            "the address of the request ledger is none of a Postgres or Redis database",
            hint="such as postgresql://user:password@host/database, with @, / and : in a password as %40, %2F and %3A",
        )
