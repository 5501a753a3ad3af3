"""Hosts, limits, sizes and defaults. Facts about Mixpanel name the page of its documentation they come from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal

Region = Literal["us", "eu", "in"]
ApiFamily = Literal["export", "query", "app", "lexicon", "ingestion"]

REGIONS: Final[tuple[Region, ...]] = ("us", "eu", "in")

HOSTS: Final[dict[ApiFamily, dict[Region, str]]] = {
    "export": {
        "us": "https://data.mixpanel.com",
        "eu": "https://data-eu.mixpanel.com",
        "in": "https://data-in.mixpanel.com",
    },
    "query": {
        "us": "https://mixpanel.com",
        "eu": "https://eu.mixpanel.com",
        "in": "https://in.mixpanel.com",
    },
    "app": {
        "us": "https://mixpanel.com",
        "eu": "https://eu.mixpanel.com",
        "in": "https://in.mixpanel.com",
    },
    "lexicon": {
        "us": "https://mixpanel.com",
        "eu": "https://eu.mixpanel.com",
        "in": "https://in.mixpanel.com",
    },
    "ingestion": {
        "us": "https://api.mixpanel.com",
        "eu": "https://api-eu.mixpanel.com",
        "in": "https://api-in.mixpanel.com",
    },
}
"""Origin of each API family by region. Mixpanel docs: API overview (reference/overview)."""

LIMITS: Final[dict[ApiFamily, tuple[tuple[int, float], ...]]] = {
    "export": ((60, 3600.0), (3, 1.0)),
    "query": ((60, 3600.0),),
    "app": ((1, 1.0),),
    "lexicon": ((5, 60.0),),
    "ingestion": ((1, 1.0),),
}
"""(requests, seconds) allowed to one project. Mixpanel docs: Rate Limits (reference/rate-limits).

"lexicon" is the part of the App API with a limit of its own (Mixpanel docs: Lexicon Schemas). No other one is published
for the App API, nor for reads from the ingestion host (lookup tables); one request a second is
our own choice."""

MAX_CONCURRENT: Final[dict[ApiFamily, int]] = {"export": 100, "query": 5, "app": 1, "lexicon": 1, "ingestion": 1}
"""Requests of one project that may be under way at once. Mixpanel docs: Rate Limits."""

HOURLY: Final[tuple[ApiFamily, ...]] = ("export", "query")
"""Families with a limit by the hour, which is the longest of theirs: `request_share` is a share of it."""

PROJECT_SECRET_ENDS: Final = "2027-03-03"  # noqa: S105
"""The day Mixpanel stops accepting project secrets. Mixpanel docs: Project Secret (reference/project-secret)."""

RETRIES: Final = 3
"""Attempts after the first."""
BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 60.0
BACKOFF_JITTER: Final = 0.1
"""Share of a backoff that is random."""
TIMEOUT_S: Final = 30.0
"""Seconds to connect, and between two bytes, of any request but an export."""
EXPORT_TIMEOUT_S: Final = 300.0
"""Seconds between two bytes of an export: its first byte can take minutes."""

ANSWER_TIMEOUTS: Final = 12
"""A whole answer may take so many times the time-out between two of its bytes: else one that drips never ends."""
MAX_BODY_BYTES: Final = 32_000_000_000
"""Of one export as it is sent, or of the pages of one walk over profiles: so much disk is used at most."""
MAX_ANSWER_BYTES: Final = 128 << 20
"""Of any other answer, and of one page of profiles, decompressed: they are held in memory."""
MAX_ANSWER_VALUES: Final = 10_000_000
"""In such an answer, as far as commas and brackets tell: one in memory takes up to a hundred bytes."""
MAX_INFLATION: Final = 500
"""Times that an export may grow when it is decompressed, once it has more than INFLATION_FREE_BYTES. Events shrink to
a tenth or so; a body made to fill memory or disk grows a thousandfold."""
INFLATION_FREE_BYTES: Final = 256 << 20

JQL_TIMEOUT_S: Final = 150.0
"""The same for a script, which may run for two minutes. Mixpanel docs: JQL."""

DISCOVERY_CACHE_S: Final = 3600.0
"""How long names, values and lists that Mixpanel gave are used again, where `MP_CACHE_S` is not set."""

LOOKBACK_DAYS: Final = 5
"""Days after its end until a day is settled. `/track` accepts events up to 5 days old (reference/track-event)."""
FIRST_LOAD_DAYS: Final = 30
"""Days before today that a first load goes back, where `start_date` is not set."""
MAX_WINDOW_DAYS: Final = 30
MAX_WINDOW_EVENTS: Final = 1_000_000
MAX_WINDOW_BYTES: Final = 520_000_000
"""What one export request asks for at most, as expected. Mixpanel publishes no limit: its own helper advises one to two
million events (mixpanel-utils), and no client is known to ask for more than 30 days. The bytes, decompressed, are those
of a load package: a stop loses no more than one."""
PACKAGE_BYTES: Final = 512 * 1024 * 1024
"""Of properties in a load package. More costs less CPU, and leaves the file larger by what a replacement needs
meanwhile."""
PACKAGE_S: Final = 60.0
"""How long a load package is read before it is written: a stop loses no more than that."""
CONCURRENT_EXPORTS: Final = 4
"""Exports that a load has under way at once: most of the time of one passes before its first byte."""
MAX_SPOOL_BYTES: Final = 4_000_000_000
"""Of exports on the disk, compressed; no other one is begun meanwhile."""
SPOOL_KEEP_HOURS: Final = 24.0
"""How long an export that a stopped load has on the disk is loaded by the next one instead of being asked for again."""
MAX_DAYS_BEHIND: Final = 1
"""Days without events at the end that are not wrong: yesterday may still be on its way."""
COUNTED_EVENTS: Final = 100
"""Of so many of the most common events the counts by day are asked for, where nothing else tells the sizes of days."""
MIN_FREE_MB: Final = 500
"""Room that a load leaves on the disks it writes to: a load package and its copies take as much, at most."""
MAX_REJECTED_SHARE: Final = 0.01
MAX_REJECTED_FREE: Final = 10
"""So many unreadable lines never fail a window, whatever their share."""

BOOKKEEPING_EVENTS: Final = (
    "$identify",
    "$create_alias",
    "$merge",
    "$hotshard_events",
    "$hotshard_record",
)
"""Events that exports hold, and that Mixpanel's reports may not count. Mixpanel docs: Hot Shard Limits; Identity
Management. Whether reports count them is not documented."""
EVENT_NAMES_CHARS: Final = 6000
"""Of names in the address of one request, as they are sent. Servers commonly take 8 KB; Mixpanel's is not known."""

REPORT_TABLES: Final = ("segmentation", "event_counts", "funnel_steps", "retention_cohorts", "insights")
"""The tables of reports. What is asked for them is a setting: see `report_questions`."""

DATASET: Final = "mixpanel"
TYPED_SUFFIX: Final = "_typed"
"""What the dataset of typed tables has behind the name of the loaded one."""
TYPED_DATASET: Final = f"{DATASET}{TYPED_SUFFIX}"
PIPELINE: Final = "mixpanel"

SANDBOX_PORT: Final = 8321
"""Where the project that `mpload init` writes looks for `mpload sandbox`."""

DEMO_PROJECT: Final = "demo"


def mixpanel_home() -> Path:
    """`~/.mp`: where the config file and the data folder are unless told otherwise."""
    return Path.home() / ".mp"


def data_folder() -> Path:
    """`MP_DATA_DIR`, else `~/.mp/data`: databases, request ledger, spool. Not created here."""
    value = os.environ.get("MP_DATA_DIR")
    return Path(value).expanduser() if value else mixpanel_home() / "data"
