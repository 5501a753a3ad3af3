"""A Postgres server of its own, for trials and tests, where one is installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

_FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
"""Where Debian has it, which is not on the PATH."""


def installed() -> bool:
    return all(map(_command, ("initdb", "pg_ctl")))


@contextmanager
def running() -> Iterator[PostgresServer]:
    with TemporaryDirectory(prefix="postgres-") as folder:
        server = PostgresServer(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


class PostgresServer:
    """Made in `folder`, which nobody else needs; listens on loopback, and its superuser has a password."""

    PASSWORD = "of trials only"  # noqa: S105

    def __init__(self, folder: Path) -> None:
        self._data = folder / "data"
        self._log = folder / "log"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.url = f"postgresql://trial:{quote(self.PASSWORD)}@127.0.0.1:{self._port}/postgres"
        password = folder / "password"
        password.write_text(self.PASSWORD)
        self._user = "postgres" if os.getuid() == 0 else None  # it refuses to run as root
        if self._user:
            for path in (folder, password):
                shutil.chown(path, self._user)
        self._run("initdb", "-U", "trial", "-A", "scram-sha-256", "--pwfile", str(password), "--no-sync")

    def start(self) -> None:
        options = f"-p {self._port} -h 127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self._run("pg_ctl", "start", "-w", "-l", str(self._log), "-o", options)

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-m", "immediate")

    def _run(self, command: str, *arguments: str) -> None:
        path = _command(command)
        assert path is not None
        subprocess.run(
            [path, "-D", str(self._data), *arguments],
            check=True,
            user=self._user,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )


def _command(name: str) -> str | None:
    return next((str(folder / name) for folder in _FOLDERS if (folder / name).exists()), None) or shutil.which(name)
