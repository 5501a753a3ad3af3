"""People who were forgotten and are to stay out: known by keyed hashes of their ids, and by nothing else.

The hashes are in the database, the key is in the data folder: either alone tells nobody who they were.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from mixpanel_source import settings
from mixpanel_source.errors import ConfigError
from mixpanel_source.warehouse import data_folder_error, identifier, literal, table_names

if TYPE_CHECKING:
    from mixpanel_source.parsing.events import RejectedLine

FORGOTTEN: Final = "forgotten"
"""The table that tells that, and when, people were forgotten."""
KEPT_OUT: Final = "kept_out"
"""The table of the hashes."""

ID_COLUMNS: Final = ("distinct_id", "user_id", "device_id")
BEFORE_IDENTITY: Final = "$distinct_id_before_identity"
"""On rows that were re-stamped when identities merged. Mixpanel docs: Identity Management."""
IDENTITY_EVENTS: Final[Mapping[str, str]] = {
    "$identify": "$identified_id",
    "$create_alias": "alias",
    "$merge": "$distinct_ids",
}
"""Events that link ids, in projects with the original merge, each with a property that holds some of them."""
ANONYMOUS_ID: Final = "$anon_id"
"""Another one, of `$identify`."""
_DEVICE: Final = "$device:"
"""Stands before the device's id where it is the `distinct_id` of who has not logged in (simplified merge)."""

GIVEN: Final = "mpload_given"

_KEY_BYTES: Final = 32
_TOKEN: Final = re.compile(rb'"((?:[^"\\]|\\.)*)"|-?[0-9][-+.0-9eE]*', re.DOTALL)


def forms_of(id_: str) -> set[str]:
    """How an id may be written where ids stand: a device's with and without `$device:` before it."""
    return {id_, f"{_DEVICE}{id_.removeprefix(_DEVICE)}", id_.removeprefix(_DEVICE)} - {"", _DEVICE}


class KeptOut:
    """The hashes of those who stay out."""

    def __init__(self, key: bytes, hashes: Iterable[bytes]) -> None:
        self._key = key
        self._hashes = frozenset(hashes)

    def rows(self, table: pa.Table) -> pa.Table:
        """`table`, of events, profiles or members, without the rows of those who stay out."""
        stays = pa.repeat(pa.scalar(True), len(table))
        for name in ID_COLUMNS:
            if name in table.column_names:
                ids = table.column(name)
                listed = [id_ for id_ in pc.unique(ids).to_pylist() if id_ is not None and self._holds(id_)]
                stays = pc.and_not(stays, pc.is_in(ids, pa.array(listed, pa.string())))
        if "event_name" in table.column_names:
            stays = pc.and_not(stays, self._are_named_in_properties(table))
        return table.filter(stays)

    def lines(self, lines: Iterable[RejectedLine]) -> list[RejectedLine]:
        """Lines that could not be read as they are, without those that hold such an id as a text or a number."""
        return [line for line in lines if not any(map(self._holds, _texts(line.raw)))]

    def _are_named_in_properties(self, table: pa.Table) -> pa.Array:
        names, properties = table.column("event_name"), table.column("properties")
        links = pc.is_in(names, pa.array(list(IDENTITY_EVENTS)))
        may_be = pc.or_(links, pc.match_substring(properties, BEFORE_IDENTITY)).to_numpy()
        for row in may_be.nonzero()[0].tolist():  # few: most rows are never re-stamped
            may_be[row] = any(map(self._holds, _identities(names[row].as_py(), properties[row].as_py())))
        return pa.array(may_be)

    def _holds(self, id_: str) -> bool:
        return hash_of(self._key, id_) in self._hashes


def hash_of(key: bytes, id_: str) -> bytes:
    return hmac.digest(key, id_.encode("utf-8", "surrogatepass"), hashlib.sha256)


def _identities(event: str, properties: str) -> Iterator[str]:
    """The ids that the properties of an event name beside those that have columns."""
    try:
        values: dict[str, Any] = json.loads(properties, strict=False, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return
    for name in (BEFORE_IDENTITY, *((IDENTITY_EVENTS[event], ANONYMOUS_ID) if event in IDENTITY_EVENTS else ())):
        value = values.get(name)
        yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str))


def _texts(raw: bytes) -> Iterator[str]:
    for match in _TOKEN.finditer(raw):
        text = match[0].decode("utf-8", "replace")
        with suppress(ValueError):
            yield str(json.loads(text, strict=False, parse_int=str, parse_float=str))


# --- the key and the table


def key_path() -> Path:
    return settings.data_folder() / "keep-out.key"


def kept_out_of(connection: duckdb.DuckDBPyConnection) -> KeptOut | None:
    """Who stays out of a database; None where nobody does. Raises ConfigError where the key is not the hashes' own."""
    if KEPT_OUT not in table_names(connection):
        return None
    known = connection.execute(f"SELECT key_id, id_hash FROM {identifier(settings.DATASET)}.{KEPT_OUT}").fetchall()
    if not known:
        return None
    key = _read_key()
    if key is None or any(key_id != _key_id(key) for key_id, _ in known):
        raise ConfigError(
            f"who was forgotten cannot be kept out: {key_path()} is {'gone' if key is None else 'another key'}",
            hint="put it back from a copy; without one, mpload sql --write 'DELETE FROM kept_out' lets them in again,"
            " until mpload forget --keep-out is told their ids anew",
        )
    return KeptOut(key, (hash_ for _, hash_ in known))


def find_or_make_key() -> bytes:
    """The key of this data folder, in a file that only its owner may read."""
    path = key_path()
    key = _read_key()
    if key is not None:
        return key
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".keep-out.")  # mkstemp's mode is 0600
        try:
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(secrets.token_hex(_KEY_BYTES) + "\n")
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):  # another process was quicker
                os.link(name, path)
        finally:
            Path(name).unlink()
    except OSError as error:
        raise data_folder_error(error) from None
    return find_or_make_key()


def keep_out(connection: duckdb.DuckDBPyConnection, dataset: str, key: bytes, ids: Iterable[str]) -> None:
    """Add the hashes of `ids` to the table in `dataset`, which is SQL."""
    table = f"{dataset}.{KEPT_OUT}"
    connection.execute(f"CREATE TABLE IF NOT EXISTS {table} (key_id VARCHAR, id_hash BLOB)")
    hashes = pa.table({"id_hash": pa.array([hash_of(key, id_) for id_ in ids], pa.binary())})
    new = f"SELECT {literal(_key_id(key))}, id_hash FROM {GIVEN} WHERE id_hash NOT IN (SELECT id_hash FROM {table})"
    execute_with(connection, f"INSERT INTO {table} {new}", hashes)


def execute_with(connection: duckdb.DuckDBPyConnection, sql: str, rows: pa.Table) -> None:
    """Run `sql`, in which GIVEN is `rows`."""
    connection.register(GIVEN, rows)
    try:
        connection.execute(sql)
    finally:
        connection.unregister(GIVEN)


def _read_key() -> bytes | None:
    """None where there is none. Raises ConfigError for a file that is no key."""
    path = key_path()
    try:
        key = bytes.fromhex(path.read_text("ascii"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint="only its owner may read it") from None
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise ConfigError(f"{path} is damaged", hint="put it back from a copy, or remove it if nobody is kept out yet")
    return key


def _key_id(key: bytes) -> str:
    """What a key is known by. No id has a NUL before it."""
    return hash_of(key, "\0key").hex()[:16]
