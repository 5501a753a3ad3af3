"""The events of one load package as a Parquet file that dlt takes as it is."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import dlt
import pyarrow as pa
import pyarrow.parquet as pq

from mixpanel_source.bodies import Spool
from mixpanel_source.closing import Closing

_JSON = pa.json_(pa.string())
_JSON_COLUMNS = ("properties", "extra")


class EventFile(Closing):
    """Written by us because dlt's writer builds a dictionary of every column: for ids and properties that is all cost.

    Closing removes the file.
    """

    def __init__(self, folder: Path) -> None:
        self._spool = Spool(folder, "package-")
        self._writer: pq.ParquetWriter | None = None
        self._hints: pa.Table | None = None
        self._rows = 0

    def write(self, table: pa.Table) -> None:
        if self._writer is None:
            self._hints = table.schema.empty_table()
        # Called JSON in the file, it is not read once more by DuckDB, which has found it valid before.
        for name in _JSON_COLUMNS:
            column = table.column(name)
            chunks = [pa.ExtensionArray.from_storage(_JSON, chunk) for chunk in column.chunks]
            table = table.set_column(table.schema.get_field_index(name), name, pa.chunked_array(chunks, _JSON))
        if self._writer is None:
            # It lives for seconds: compressing it costs more than writing it.
            self._writer = pq.ParquetWriter(
                self._spool.file,
                table.schema,
                compression="none",
                use_dictionary=["event_name", "event_date", "_dlt_load_id"],
                write_statistics=False,
            )
        self._writer.write_table(table)
        self._rows += len(table)

    def items(self) -> list[Any]:
        """What to yield for it, once all is written; nothing where there are no rows."""
        if self._writer is None:
            return []
        self._writer.close()
        self._spool.finish()
        return [dlt.mark.with_file_import(str(self._spool.path), "parquet", self._rows, hints=self._hints)]

    def close(self) -> None:
        if self._writer is not None:
            with suppress(OSError):  # a full disk: the file goes all the same
                self._writer.close()
        self._spool.discard()
