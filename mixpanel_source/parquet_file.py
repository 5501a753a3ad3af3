"""Rows on their way into a database, as a Parquet file of the spool folder."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mixpanel_source.bodies import Spool
from mixpanel_source.closing import Closing

_JSON = pa.json_(pa.string())
_JSON_COLUMNS = ("properties", "extra")
_REPEATED = ("event_name", "event_date", "_dlt_load_id")


class ParquetFile(Closing):
    """Tables of one schema. Written by us, as dlt's writer builds a dictionary of every column: ids and properties
    only cost more by it.

    Closing removes the file. `rows` counts what was written; `schema` is that of the tables, None before the first.
    """

    def __init__(self, folder: Path) -> None:
        self.rows = 0
        self.schema: pa.Schema | None = None
        self._spool = Spool(folder, "package-")
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        self.schema = table.schema
        # Called JSON in the file, it is not read once more by DuckDB, which has found it valid before.
        for name in set(_JSON_COLUMNS) & set(table.column_names):
            column = table.column(name)
            chunks = [pa.ExtensionArray.from_storage(_JSON, chunk) for chunk in column.chunks]
            table = table.set_column(table.schema.get_field_index(name), name, pa.chunked_array(chunks, _JSON))
        if self._writer is None:
            # It lives for seconds: compressing it costs more than writing it.
            self._writer = pq.ParquetWriter(
                self._spool.file,
                table.schema,
                compression="none",
                use_dictionary=[name for name in _REPEATED if name in table.column_names],
                write_statistics=False,
            )
        self._writer.write_table(table)
        self.rows += len(table)

    def finish(self) -> Path:
        """The file, once all is written; at least one table was, if of no rows."""
        if self._writer is not None:
            self._writer.close()
        self._spool.finish()
        return self._spool.path

    def close(self) -> None:
        if self._writer is not None:
            with suppress(OSError):  # a full disk: the file goes all the same
                self._writer.close()
        self._spool.discard()
