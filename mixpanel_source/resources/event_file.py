"""The events of one load package as a Parquet file that dlt takes as it is."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import dlt
import pyarrow as pa
import pyarrow.parquet as pq

from mixpanel_source.bodies import Spool


class EventFile:
    """Written by us because dlt's writer builds a dictionary of every column: for ids and properties that is all cost.

    A context manager: the file is gone after it.
    """

    def __init__(self, folder: Path) -> None:
        self._spool = Spool(folder, "package-")
        self._writer: pq.ParquetWriter | None = None
        self._rows = 0

    def write(self, table: pa.Table) -> None:
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
        hints = self._writer.schema.empty_table()
        return [dlt.mark.with_file_import(str(self._spool.path), "parquet", self._rows, hints=hints)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is not None:
            with suppress(OSError):  # a full disk: the file goes all the same
                self._writer.close()
        self._spool.discard()
