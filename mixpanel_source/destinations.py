"""Where rows go: a DuckDB file, or another of dlt's destinations; what each of them needs to keep our promises.

Exact days need DELETE and INSERT in one transaction, or one commit of a table (see `open_tables`), and lossless JSON a
column that keeps the text. Which destinations have both is written down here, by what was run or by dlt's code: what is
not listed is refused.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

import dlt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dlt.common.configuration.exceptions import ConfigurationException
from dlt.common.destination import Destination
from dlt.common.destination.exceptions import DestinationException
from dlt.common.exceptions import MissingDependencyException
from filelock import FileLock, Timeout

from mixpanel_source import open_tables, settings
from mixpanel_source.errors import ConfigError, MixpanelDataError, WarehouseError
from mixpanel_source.warehouse import is_held

logger = logging.getLogger(__name__)

EXACT_JSON: Any = {"data_type": "json", "x-exact-json": True}
"""The hint for a column of JSON text that is to stay the very text."""

JsonAs = Literal["json", "text"]


@dataclass(frozen=True)
class Support:
    """How a destination keeps what it is given."""

    json_type: str | None = None
    """The type that EXACT_JSON becomes: None is dlt's own, `text` what dlt has for text."""
    has_nul: bool = True
    """Whether its text may hold U+0000."""
    needs: str | None = None
    """A package that is not there with dlt alone."""
    keeps_history: bool = True
    """Whether a table may keep the versions of its rows."""


SUPPORT: Final[dict[str, Support]] = {
    "duckdb": Support(),
    "motherduck": Support(),
    "ducklake": Support(),
    # Without the driver dlt would write CSV, and read NULL where '' was.
    "postgres": Support(json_type="json", has_nul=False, needs="adbc_driver_postgresql"),
    "sqlalchemy": Support(json_type="text"),
    "snowflake": Support(json_type="text"),
    "bigquery": Support(json_type="text"),
    "redshift": Support(json_type="text", has_nul=False),
    **{name: Support(needs=package, keeps_history=False) for name, package in open_tables.PACKAGES.items()},
}
"""By dlt's name, of tables in a `filesystem` by that of their format. Of `sqlalchemy`, SQLite alone."""

_REFUSED: Final[dict[str, str]] = {
    "filesystem": "plain files are only ever added to: a day that comes again would be there twice",
    "clickhouse": "ClickHouse has no transaction: a day would be missing while it is replaced, and after a stop",
    "databricks": "dlt has no transaction there: a day would be missing while it is replaced, and after a stop",
    "athena": "Athena has no transaction: a day would be missing while it is replaced, and after a stop",
    "dremio": "Dremio has no transaction: a day would be missing while it is replaced, and after a stop",
    "synapse": "dlt merges without a transaction there: a day would be missing while it is replaced, and after a stop",
}
_ELSEWHERE: Final = "load into DuckDB, DuckLake or Postgres, and go on from there"
_AS_TABLES: Final = (
    'take Delta or Iceberg tables: preferred_table_format = "delta" (or "iceberg") under [destination.filesystem] of'
    " dlt's config"
)
_NO_CATALOG: Final = (
    "cannot load into Iceberg tables without a catalog: of two writers one would undo what the other has written, and"
    " a stop could leave a table that cannot be read"
)
_CATALOG: Final = (
    "name one in dlt's config: type, uri and warehouse under [iceberg_catalog.iceberg_catalog_config]; or take delta"
)


def support_of(destination: Destination[Any, Any]) -> Support:
    """Raises ConfigError for a destination that would not keep days exact, or JSON as it is."""
    type_ = type_of(destination)
    kind = (open_tables.table_format_of(destination) if type_ == "filesystem" else None) or type_
    if kind in SUPPORT and not (kind == "sqlalchemy" and _dialect(destination) != "sqlite"):
        return SUPPORT[kind]
    why = _REFUSED.get(type_, "whether days would be replaced exactly there is not known")
    hint = _AS_TABLES if type_ == "filesystem" else _ELSEWHERE
    raise ConfigError(f"cannot load into {type_}: {why}", hint=hint)


def keep_promises(destination: Destination[Any, Any], *, to_read: bool = False) -> None:
    """Has dlt replace the rows of a table in one transaction, and keep JSON as it is. Raises as `support_of`.

    `to_read` leaves an Iceberg catalog alone, which is made where it is looked for.

    dlt says of most destinations only that their transactions may hold DDL, or nothing at all, and so gives the two
    statements of a merge none (dlt 1.31): killed between them, a load would leave days empty that were there before.
    """
    support = support_of(destination)
    if support.needs is not None and find_spec(support.needs) is None:
        raise ConfigError(f"{type_of(destination)} needs {support.needs}", hint=_EXTRAS)
    if type_of(destination) == "filesystem":
        if open_tables.table_format_of(destination) == "iceberg" and not to_read:
            _check_catalog()
        open_tables.replace_by_commits(destination)
        return
    destination.caps_params["supports_transactions"] = True
    if type_of(destination) == "postgres":
        destination.caps_params |= {"preferred_loader_file_format": "parquet", "loader_file_format_selector": None}
        _load_files_without_rows()
    if support.json_type is not None and "type_mapper" not in destination.caps_params:
        mapper = _mapper(destination.capabilities().type_mapper, support.json_type)
        destination.caps_params["type_mapper"] = mapper


def _check_catalog() -> None:
    try:
        try:
            found = open_tables.has_catalog()
        except Exception:  # of two that find no tables in it, and make them, one fails: then they are there
            found = open_tables.has_catalog()
    except Exception as error:
        raise ConfigError(f"cannot open the Iceberg catalog: {safe_line(error)}", hint=_CATALOG) from None
    if not found:
        raise ConfigError(_NO_CATALOG, hint=_CATALOG)


@functools.cache
def _load_files_without_rows() -> None:
    """dlt's job that loads Parquet into Postgres fails for a file without rows (dlt 1.31): what empties a day."""
    from dlt.destinations.impl.postgres.postgres import PostgresParquetCopyJob

    load = PostgresParquetCopyJob.run

    def run(job: Any) -> None:
        if pq.read_metadata(job._file_path).num_rows:
            load(job)

    PostgresParquetCopyJob.run = run  # type: ignore[method-assign, assignment]


def fitted(table: pa.Table, support: Support) -> pa.Table:
    """`table` with what a destination cannot take in its place: U+0000 is the text `\\u0000`."""
    if support.has_nul:
        return table
    for index, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            column = pc.replace_substring(table.column(index), "\0", "\\u0000")
            table = table.set_column(index, field, column)
    return table


@dataclass(frozen=True)
class Target:
    """What a load fills. `path` is the DuckDB file; of another destination what its lock and folders are named by."""

    path: Path
    destination: Destination[Any, Any] | None = None
    dataset: str = settings.DATASET
    where: str = ""
    """In words, without a secret."""

    @property
    def is_file(self) -> bool:
        return self.destination is None

    @property
    def is_lake(self) -> bool:
        return self.destination is not None and type_of(self.destination) == "ducklake"

    @functools.cached_property
    def schema(self) -> str:
        """The name that `dataset` has there: dlt makes `my_data` of `MyData`, so that both are one."""
        if self.destination is None:
            return self.dataset
        client = client_of(self)
        return str(client.config.normalize_dataset_name(client.schema))

    def __str__(self) -> str:
        return str(self.path) if self.is_file else f"{self.where}, dataset {self.dataset}"

    @contextmanager
    def written_alone(self, wait_s: float) -> Iterator[None]:
        """Keeps those of other machines from writing to the same dataset, where its database can tell of them.

        Two merges at once of a day that is not there yet would leave it twice, and two that make the tables fail.
        """
        lock: AbstractContextManager[None] = nullcontext()
        if self.destination is not None:
            if (url := postgres_url(self.destination)) is not None:
                lock = _advisory_lock(url, self.schema, self, wait_s)
            elif (file := file_of(self.destination, self.schema)) is not None:
                lock = _file_lock(file, self, wait_s)
        with lock:
            yield

    def is_written(self, wait_s: float) -> bool:
        """Whether a load writes to the dataset, still after `wait_s`, where its database can tell of those."""
        until = time.monotonic() + wait_s
        while self._is_locked():
            if time.monotonic() >= until:
                return True
            time.sleep(_POLL_S)
        return False

    def _is_locked(self) -> bool:
        if self.destination is None:
            return False
        if (url := postgres_url(self.destination)) is not None:
            with told(self), postgres_cursor(url) as cursor:
                cursor.execute("SELECT pg_try_advisory_lock_shared(%s)", (_lock_key(self.schema),))
                return not cursor.fetchone()[0]
        file = file_of(self.destination, self.schema)
        return file is not None and is_held(_lock_of(file))

    @contextmanager
    def made_alone(self, wait_s: float) -> Iterator[None]:
        """As `written_alone`, and for a lake's catalog also against those who write to its other datasets.

        Of two that find no lake there, and make its tables, one fails.
        """
        lock: AbstractContextManager[None] = nullcontext()
        if self.destination is not None and self.is_lake and (url := postgres_url(self.destination)) is not None:
            lock = _advisory_lock(url, f"catalog {catalog_of(self.destination)}", self, wait_s)
        with self.written_alone(wait_s), lock:
            yield


def target_of(
    destination: str | Destination[Any, Any], dataset: str = settings.DATASET, *, to_read: bool = False
) -> Target:
    """What `destination` is: a name that dlt's config tells of, or one of `dlt.destinations`.

    A staging dataset of its own is part of it: merges of several writers through one lose rows. Not so with `to_read`,
    which makes nothing, here or there: what it gives is not to be loaded into. Raises ConfigError where it is not
    configured, its packages are missing, or it is refused.
    """
    if not dataset or not dataset.strip():
        raise ConfigError("a dataset needs a name")
    try:
        made = Destination.from_reference(destination)
        assert made is not None
        type_ = type_of(made)
        if type_ == "duckdb":
            raise ConfigError("a DuckDB file is loaded into without a destination", hint="name it with --db, or MP_DB")
        keep_promises(made, to_read=to_read)
        config = _config(made, dataset)
    except (ConfigurationException, DestinationException) as error:
        raise ConfigError(f"cannot load into {destination}: {safe_line(error)}", hint=_HOW) from None
    except MissingDependencyException as error:
        raise ConfigError(f"{destination} needs more packages: {safe_line(error)}", hint=_EXTRAS) from None
    place = str(config)
    key = hashlib.sha256(f"{type_}\n{made.destination_name}\n{place}\n{config.fingerprint()}".encode()).hexdigest()[:8]
    name = re.sub(r"[^\w-]", "_", dataset)[:40]
    if name != dataset:
        name = f"{name}-{hashlib.sha256(dataset.encode()).hexdigest()[:8]}"
    folder = settings.data_folder() / "destinations" / f"{type_}-{key}"
    target = Target(folder / name, made, dataset, f"{type_} ({place})" if place else type_)
    if target.is_lake and target.schema.endswith(settings.TYPED_SUFFIX):
        of = target.schema.removesuffix(settings.TYPED_SUFFIX)
        raise ConfigError(
            f"{target.schema} is where the typed tables of {of or 'others'} are", hint="name another dataset"
        )
    if not to_read:
        made.config_params["staging_dataset_name_layout"] = f"%s_staging_{_writer_id(target.path)}"
    return target


_POLL_S: Final = 0.05

_HOW: Final = "put its credentials into .dlt/secrets.toml, or DESTINATION__... of the environment, as dlt has them"
_EXTRAS: Final = (
    "pip install 'mixpanel-source[postgres]', [ducklake], [sqlalchemy], [delta] or [iceberg], or dlt's own extra"
)


def drop_staging(pipeline: dlt.Pipeline) -> None:
    """Remove the writer's own staging dataset; the next load makes it anew, or takes what is left of it."""
    assert pipeline.destination is not None
    if type_of(pipeline.destination) == "filesystem":  # it has none
        return
    with pipeline.sql_client() as client, suppress(DestinationException), client.with_staging_dataset():
        if client.has_dataset():
            client.drop_dataset()


@contextmanager
def told(target: Target) -> Iterator[None]:
    """Whatever the driver of a destination raises is a WarehouseError."""
    try:
        yield
    except MixpanelDataError:
        raise
    except Exception as error:
        logger.debug("cannot read %s: %s", target, without_secrets(str(error)))
        raise WarehouseError(f"cannot read {target}: {safe_line(error)}", hint=_HOW) from None


def catalog_of(destination: Destination[Any, Any]) -> str:
    """The schema of a lake's catalog."""
    credentials = _credentials(destination)
    return str(credentials.metadata_schema or credentials.ducklake_name)


def client_of(target: Target, schema: dlt.Schema | None = None) -> Any:
    assert target.destination is not None
    return target.destination.client(
        schema or dlt.Schema(settings.PIPELINE), _bound(target.destination, target.dataset)
    )


def _writer_id(path: Path) -> str:
    """What tells this data folder's loads into a dataset from those of others, for good."""
    file = path.with_name(f"{path.name}.writer")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError), file.open("x", encoding="utf-8") as new:
            new.write(f"w{uuid.uuid4().hex[:8]}")
        written = file.read_text("utf-8")
    except OSError as error:
        raise WarehouseError(f"cannot write in {path.parent}: {error.strerror}") from error
    # Another process may be about to write it; no load of its begins before ours has ended.
    return written if re.fullmatch(r"w[0-9a-f]{8}", written) else f"w{uuid.uuid4().hex[:8]}"


def type_of(destination: Destination[Any, Any]) -> str:
    """dlt's short name of it."""
    return destination.destination_type.rpartition(".")[2]


def _bound(destination: Destination[Any, Any], dataset: str) -> Any:
    spec = destination.spec()
    return spec._bind_dataset_name(dataset_name=dataset) if hasattr(spec, "_bind_dataset_name") else spec


def _config(destination: Destination[Any, Any], dataset: str) -> Any:
    return destination.configuration(_bound(destination, dataset))


def _credentials(destination: Destination[Any, Any]) -> Any:
    return _config(destination, settings.DATASET).credentials


def _dialect(destination: Destination[Any, Any]) -> str:
    return str(_credentials(destination).to_url().get_backend_name())


def postgres_url(destination: Destination[Any, Any]) -> str | None:
    """Of the database that all its writers share: the destination itself, or DuckLake's catalog."""
    type_ = type_of(destination)
    if type_ not in ("postgres", "ducklake"):
        return None
    credentials = _credentials(destination)
    if type_ == "ducklake":
        credentials = credentials.catalog
    if not str(getattr(credentials, "drivername", "")).startswith("postgres"):
        return None
    url = credentials.to_url()
    return str(url._replace(drivername="postgresql").render_as_string(hide_password=False))


def file_of(destination: Destination[Any, Any], dataset: str) -> Path | None:
    """What its writers share: a database, or a folder of tables."""
    if type_of(destination) == "filesystem":
        config = _config(destination, dataset)
        return Path(config.make_local_path(config.bucket_url), dataset) if config.is_local_filesystem else None
    credentials = _credentials(destination)
    if type_of(destination) == "ducklake":
        credentials = credentials.catalog
    database = getattr(credentials, "database", None)
    driver = str(getattr(credentials, "drivername", "")).partition("+")[0]
    of_files = type_of(destination) in ("ducklake", "sqlalchemy") and driver in ("sqlite", "duckdb")
    is_file = of_files and database and database != ":memory:"
    return Path(str(database)).absolute() if is_file else None


@contextmanager
def _advisory_lock(url: str, name: str, target: Target, wait_s: float) -> Iterator[None]:
    """Held by the session, and so not longer than the process lives.

    Raises WarehouseError at the end where the session was lost: another load may have written meanwhile.
    """
    psycopg2 = _psycopg2()
    try:
        # It is idle while rows are written, for which servers end sessions, and networks forget connections.
        connection = psycopg2.connect(url, keepalives=1, keepalives_idle=60)
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute("SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'")
        cursor.execute("SELECT set_config('lock_timeout', %s, false)", (f"{max(1, round(wait_s * 1000))}ms",))
        cursor.execute("SELECT pg_advisory_lock(%s)", (_lock_key(name),))
    except psycopg2.errors.LockNotAvailable:
        connection.close()
        raise _busy(target) from None
    except psycopg2.Error as error:
        raise WarehouseError(f"cannot lock {target}: {safe_line(error)}") from None
    with closing(connection):
        yield
        try:
            cursor.execute("SELECT 1")
        except psycopg2.Error as error:
            raise WarehouseError(
                f"the lock of {target} was lost while it was written to: {safe_line(error)}",
                hint="if another load wrote to it meanwhile, load the days again with --refresh",
            ) from None


def _lock_key(name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"mixpanel_source {name}".encode()).digest()[:8], "big", signed=True)


def _psycopg2() -> Any:
    try:
        import psycopg2
    except ImportError:
        raise ConfigError("Postgres needs psycopg2", hint="pip install 'mixpanel-source[postgres]'") from None
    return psycopg2


@contextmanager
def postgres_cursor(url: str) -> Iterator[Any]:
    """A cursor of a session that ends with it."""
    with closing(_psycopg2().connect(url)) as connection:
        yield connection.cursor()


@contextmanager
def _file_lock(file: Path, target: Target, wait_s: float) -> Iterator[None]:
    lock = FileLock(_lock_of(file))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait_s)
    except Timeout:
        raise _busy(target) from None
    except OSError as error:
        raise WarehouseError(f"cannot write in {file.parent}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def _lock_of(file: Path) -> Path:
    return Path(f"{file}.lock")


def _busy(target: Target) -> WarehouseError:
    return WarehouseError(f"another load writes to {target.where}", hint="run the same command again")


@functools.cache
def _mapper(base: type[Any], json_type: str) -> type[Any]:
    """dlt's type mapper `base`, but for EXACT_JSON."""

    class ExactJson(base):  # type: ignore[misc]
        def to_destination_type(self, column: Any, table: Any) -> Any:
            if column.get("x-exact-json"):
                if json_type != "text":
                    return json_type
                column = {**column, "data_type": "text"}
            return super().to_destination_type(column, table)

    return ExactJson


def without_secrets(text: str) -> str:
    """`text` without the passwords of URLs, which drivers put into their messages."""
    return re.sub(r"(\w://[^:/@\s]*):[^\n]*@", r"\1:***@", text)


def safe_line(error: BaseException) -> str:
    return without_secrets(str(error)).strip().split("\n", 1)[0]
