"""`mpload` as users start it, with its memory watched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
_LOOK_EVERY_S = 0.1
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def mpload_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mixpanel_source.cli", *arguments]


def mpload_environment(url: str, folder: Path) -> dict[str, str]:
    """Of an `mpload` that knows of the server at `url`, of `folder`, and of nothing that is the user's."""
    others = ("MP_", "SOURCES__", "DESTINATION__")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return {**kept, "HOME": str(folder), "MP_DATA_DIR": str(folder / "data"), "MP_BASE_URL": url,
            "RUNTIME__DLTHUB_TELEMETRY": "false"}  # fmt: skip


def write_account(folder: Path, *, secret: str = "sandbox", **keys: int | float) -> None:
    """The config file of `mpload_environment`: the sandbox's account, and settings of a load."""
    account = {"username": "sandbox", "secret": secret, "project_id": "1", "region": "us", **keys}
    lines = [f"{name} = {value!r}" for name, value in account.items()]
    (folder / ".mp").mkdir(parents=True)
    path = folder / ".mp" / "config.toml"
    path.write_text("\n".join(["[accounts.soak]", *lines, ""]))
    path.chmod(0o600)


@dataclass(frozen=True)
class Finished:
    """`status` is None where it took too long or too much memory, and was killed."""

    status: int | None
    seconds: float
    peak_bytes: int
    out: str
    err: str


def run_mpload(
    arguments: Sequence[str],
    url: str,
    folder: Path,
    *,
    most_s: float,
    most_bytes: int = 1 << 62,
    on_look: Callable[[int, float], object] = lambda rss_bytes, cpu_s: None,
    without_limits: bool = False,
) -> Finished:
    """Runs it to its end, `without_limits` of requests. `on_look` is told its memory and its time of a CPU so far."""
    command = [sys.executable, "-m", "soak.mpload_without_limits"] if without_limits else mpload_command()
    started = time.monotonic()
    with (folder / "out").open("w+b") as out, (folder / "err").open("w+b") as err:
        process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            env=mpload_environment(url, folder),
        )
        is_over = False
        peak_bytes = 0
        while True:
            found, status, usage = os.wait4(process.pid, os.WNOHANG)
            if found:
                process.returncode = os.waitstatus_to_exitcode(status)
                peak_bytes = max(peak_bytes, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
                break
            rss_bytes = _rss_bytes(process.pid)
            peak_bytes = max(peak_bytes, rss_bytes)
            on_look(rss_bytes, _cpu_s(process.pid))
            if not is_over and (time.monotonic() - started > most_s or rss_bytes > most_bytes):
                is_over = True
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(_LOOK_EVERY_S)
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode(errors="replace"))
    return Finished(None if is_over else process.returncode, time.monotonic() - started, peak_bytes, said[0], said[1])


def _rss_bytes(pid: int) -> int:
    """0 where the system does not tell: then the peak is known at the end only."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    return 0


def _cpu_s(pid: int) -> float:
    """0.0 where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0
