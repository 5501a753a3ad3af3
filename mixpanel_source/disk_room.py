"""Room on the disks that a load writes to: too little is told before a request is spent."""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Collection
from datetime import date
from pathlib import Path
from typing import Final

from mixpanel_source import settings
from mixpanel_source.errors import WarehouseError
from mixpanel_source.planner import Forecast
from mixpanel_source.warehouse import data_folder_error

_DATABASE_SHARE: Final = 0.1
"""Of the bytes of properties: the least that the database is taken to grow by, typed tables included. Only what will
surely not fit is to be refused."""


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def room_for(database: Path, spool: Path, min_free_mb: int) -> DiskRoom:
    """As DiskRoom. Raises WarehouseError where there is too little, or no file can be made in the spool."""
    room = DiskRoom(database, spool, min_free_mb)
    room.check_spool()
    room.check()
    return room


class DiskRoom:
    """The room that is to stay free on the disks of a database and of the spool. `min_free_mb` 0 checks nothing."""

    def __init__(self, database: Path, spool: Path, min_free_mb: int) -> None:
        self._database = database.absolute().parent
        self._spool = spool
        self._min_free_mb = min_free_mb

    def check_spool(self) -> None:
        """Raises WarehouseError where no file can be made in the spool."""
        try:
            with tempfile.TemporaryFile(dir=self._spool) as file:
                file.write(b"\0")
        except OSError as error:
            raise data_folder_error(error) from None

    def check(self, database_bytes: float = 0, spool_bytes: float = 0) -> None:
        """Raises WarehouseError where a disk has less room than is to stay free beside what is going to be written."""
        if self._min_free_mb == 0:
            return
        needs: defaultdict[int, list[tuple[Path, float]]] = defaultdict(list)
        for folder, size in ((self._database, database_bytes), (self._spool, spool_bytes)):
            needs[folder.stat().st_dev].append((folder, size))
        for of_disk in needs.values():
            folder = of_disk[0][0]
            needed = self._min_free_mb * 1_000_000 + sum(size for _, size in of_disk)
            free = free_bytes(folder)
            if free < needed:
                raise WarehouseError(
                    f"too little room on the disk of {folder}: {free / 1e6:,.0f} MB are free, and a load takes"
                    f" {needed / 1e6:,.0f} MB",
                    hint="free some space, or allow less with --min-free-mb; what is loaded is there and whole",
                )

    def check_forecast(self, forecast: Forecast, there: Collection[date]) -> None:
        """As `check`, with what is expected; days that are `there` take the place of themselves."""
        if not forecast.bytes:
            return
        days = [day for planned in forecast.windows for day in planned.window.days]
        new = sum(day not in there for day in days) / len(days)
        self.check(forecast.bytes * new * _DATABASE_SHARE, min(forecast.bytes, settings.MAX_WINDOW_BYTES))
