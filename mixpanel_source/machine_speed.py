"""What loads take of this machine, measured: `mpload load` itself, on events made up here, from a server of its own."""

from __future__ import annotations

import gzip
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from mixpanel_source.errors import MixpanelDataError
from mixpanel_source.simulation import Amount, Machine, available_cores

EVENTS: Final = 60_000
FEW_EVENTS: Final = 100
_DAYS: Final = (date(2024, 1, 1), date(2024, 1, 2), date(2024, 1, 3))
_NAMES: Final = ("Page Viewed", "Button Clicked", "Search", "Order Placed", "Sign Up")
_WORDS: Final = (
    "free",
    "pro",
    "Berlin",
    "New York",
    "newsletter",
    "spring sale",
    "Größe 42",
    "mobile",
    "web",
    "direct",
)
_RANDOM_BYTES: Final = 40
"""Of one property that is made up; lines have so many of them as they are to be long."""


@dataclass(frozen=True)
class Measured:
    machine: Machine
    compression: float
    """Bytes of the events made up for each byte of them that was sent."""


def measure(bytes_per_event: float = Amount.bytes_per_event, events: int = EVENTS) -> Measured:
    """Takes as long as five loads, one of which is of `events` events. Raises MixpanelDataError where one fails."""
    sizes = (FEW_EVENTS, FEW_EVENTS, events)
    days = [b"".join(_lines(day, size, bytes_per_event)) for day, size in zip(_DAYS, sizes, strict=True)]
    sent = {str(day): gzip.compress(lines) for day, lines in zip(_DAYS, days, strict=True)}
    with tempfile.TemporaryDirectory(prefix="mpload-measure-") as folder, _served(sent) as url:
        database = Path(folder, "measured.duckdb")
        _load(url, database, _DAYS[0])
        nothing = _load(url, database, _DAYS[0])
        small = _load(url, database, _DAYS[1], "--no-typed-tables")
        before = database.stat().st_size
        large = _load(url, database, _DAYS[2], "--no-typed-tables")
        # That day is there; what the typed tables lack is made up for.
        typed = _load(url, database, _DAYS[2])
        grown = database.stat().st_size - before
    return Measured(
        Machine(
            cores=available_cores(),
            event_s=max(large.cpu_s - small.cpu_s, 0.0) / events,
            typed_event_s=max(typed.cpu_s - nothing.cpu_s, 0.0) / events,
            package_s=max(small.cpu_s - nothing.cpu_s, 0.0),
            start_s=nothing.cpu_s,
            threads=max(1.0, (large.cpu_s - small.cpu_s) / max(large.wall_s - small.wall_s, 0.01)),
            database_share=max(grown, 0) / len(days[-1]),
        ),
        len(days[-1]) / len(sent[str(_DAYS[-1])]),
    )


@dataclass(frozen=True)
class _Spent:
    cpu_s: float
    wall_s: float


def _load(url: str, database: Path, day: date, *options: str) -> _Spent:
    """Of a process that loads one day."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MP_")}
    account = {"USERNAME": "nobody", "SECRET": "none", "PROJECT_ID": "1", "REGION": "us"}
    environment |= {f"MP_{name}": value for name, value in account.items()}
    environment |= {"MP_BASE_URL": url, "MP_DATA_DIR": str(database.parent), "MP_DB": str(database)}
    environment |= {"MP_CONFIG_PATH": str(database.parent / "config.toml")}
    command = [sys.executable, "-m", "mixpanel_source.cli", "load", "events", "--from", str(day), "--to", str(day)]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [*command, "--no-count-events", *options],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise MixpanelDataError(f"the load that is measured failed: {done.stderr.strip()[-300:]}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return _Spent(cpu_s, time.monotonic() - began)


@contextmanager
def _served(bodies: Mapping[str, bytes]) -> Iterator[str]:
    """Exports of single days, gzip, on loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = bodies[parse_qs(urlsplit(self.path).query)["from_date"][0]]
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _lines(day: date, events: int, bytes_per_event: float) -> Iterator[bytes]:
    """Lines of about so many bytes: what Mixpanel adds to each event, and as many properties as make it so long."""
    chance = random.Random(f"{day}/{events}")
    start_ms = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
    for number in range(events):
        time_ms = start_ms + 86_400_000 * number // events
        user = chance.randrange(max(10, events // 20))
        properties: dict[str, object] = {
            "time": time_ms,
            "distinct_id": f"user_{user}",
            "$insert_id": f"{chance.getrandbits(64):016x}",
            "mp_processing_time_ms": time_ms + chance.randrange(90_000),
            "$city": _WORDS[user % len(_WORDS)],
        }
        for place in range(max(0, round((bytes_per_event - 180) / _RANDOM_BYTES))):
            properties[f"property number {place}"] = _value(chance, place)
        event = {"event": _NAMES[number % len(_NAMES)], "properties": properties}
        yield json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _value(chance: random.Random, place: int) -> object:
    kinds: Sequence[object] = (
        f"{chance.choice(_WORDS)} {chance.randrange(50)}",
        chance.randrange(100_000),
        round(chance.random() * 1000, 2),
        f"https://www.example.com/{chance.choice(_WORDS)}/{chance.randrange(500)}",
    )
    return kinds[place % len(kinds)]
