"""Another program that reads the database."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

READ_FOR_A_WHILE = """
import duckdb, sys, time
connection = duckdb.connect(sys.argv[1], read_only=True)
print("open", flush=True)
time.sleep(float(sys.argv[2]))
connection.close()
"""


def start_reader(database: Path, seconds: float) -> subprocess.Popen[str]:
    """It has the database open when this returns. To be used as a context manager, and killed in it."""
    process = subprocess.Popen(
        [sys.executable, "-c", READ_FOR_A_WHILE, str(database), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process
