"""Arrow tables of one window, held until the window is known whole: in memory while small, else on disk."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa

from mixpanel_source.closing import Closing

IN_MEMORY_BYTES = 64 * 1024 * 1024
"""So much of a window stays in memory."""


class HeldTables(Closing):
    """Tables of one schema, given back once, in the order they were added. Closing forgets them."""

    def __init__(self, folder: Path | None, in_memory_bytes: int = IN_MEMORY_BYTES) -> None:
        self._folder = folder
        self._room = in_memory_bytes
        self._tables: deque[pa.Table] = deque()
        self._file: IO[bytes] | None = None
        self._writer: pa.RecordBatchStreamWriter | None = None

    def add(self, table: pa.Table) -> None:
        self._room -= table.nbytes
        if self._room >= 0:
            self._tables.append(table)
            return
        if self._file is None or self._writer is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (closed by close)
            self._writer = pa.ipc.new_stream(self._file, table.schema)
        self._writer.write_table(table)

    def __iter__(self) -> Iterator[pa.Table]:
        while self._tables:
            yield self._tables.popleft()  # and forget it
        if self._file is None or self._writer is None:
            return
        self._writer.close()
        self._file.seek(0)
        for batch in pa.ipc.open_stream(self._file):
            if batch.num_rows:  # a table may have a chunk of no rows
                yield pa.Table.from_batches([batch])

    def close(self) -> None:
        self._tables.clear()
        if self._file is not None:
            self._file.close()
