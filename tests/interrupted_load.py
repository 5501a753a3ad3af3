"""`mpload` whose load packages take as long to be written as the one who starts it wants.

    python interrupted_load.py FOLDER ARGUMENT...

Each time rows of `events` are replaced it makes the file FOLDER/writing, and goes on when there is a FOLDER/go.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from dlt.destinations.impl.duckdb.sql_client import DuckDbSqlClient

from mixpanel_source.cli import app


def main(folder: Path, arguments: list[str]) -> None:
    original = DuckDbSqlClient.execute_sql

    def execute_sql(self: DuckDbSqlClient, sql: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, sql, *args, **kwargs)
        if str(sql).startswith('DELETE FROM "mixpanel"."events"'):
            (folder / "writing").touch()
            while not (folder / "go").exists():
                time.sleep(0.02)
        return result

    DuckDbSqlClient.execute_sql = execute_sql  # type: ignore[method-assign]
    sys.argv = ["mpload", *arguments]
    app.main()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
