"""One Mixpanel project as a load sees it: who signs, in which calendar its days run, how its exports are judged."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from mixpanel_source import settings
from mixpanel_source.client import MixpanelClient, RequestStats
from mixpanel_source.credentials import Account, Credentials, Secret
from mixpanel_source.engage import LAST, group_ids
from mixpanel_source.errors import ConfigError, WarehouseError
from mixpanel_source.planner import Plan, WindowLimits
from mixpanel_source.rate_limit import RequestLedger
from mixpanel_source.windows import ONE_DAY, DateRange, LoadedDay, days_to_load

if TYPE_CHECKING:
    from mixpanel_source.disk_room import DiskRoom
    from mixpanel_source.kept_out import KeptOut
    from mixpanel_source.report_questions import Question

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_MOST_DAYS = 36_500
"""A hundred years: more is a slip of the keyboard, and beyond what a date can hold."""


@dataclass(frozen=True)
class Project:
    """Raises ConfigError where a value cannot be."""

    credentials: Credentials
    project_timezone: str = "UTC"
    legacy_local_time: bool = False
    start_date: date | None = None
    lookback_days: int = settings.LOOKBACK_DAYS
    sweep_days: int = 0
    """How many days back a load without dates looks for late events of settled days; 0 does not look."""
    max_rejected: float = settings.MAX_REJECTED_SHARE
    window_days: int | None = None
    """Days of every export request; None joins as many as fit."""
    max_window_days: int = settings.MAX_WINDOW_DAYS
    max_window_events: int = settings.MAX_WINDOW_EVENTS
    count_events: bool = True
    """Whether a load may ask for the events by day where nothing else tells of them, to plan its export requests."""
    concurrent_exports: int = settings.CONCURRENT_EXPORTS
    """Export requests under way at once."""
    max_spool_bytes: int = settings.MAX_SPOOL_BYTES
    """While exports on the disk, compressed, are as large, or expected to be, no other one is begun."""
    spool_keep_hours: float = settings.SPOOL_KEEP_HOURS
    """How long an export that came is taken up by a later load into the same database, if the load was stopped."""
    retries: int = settings.RETRIES
    timeout_s: float = settings.TIMEOUT_S
    export_timeout_s: float = settings.EXPORT_TIMEOUT_S
    request_share: float = 1.0
    """Share of the limit by the hour that is used; the rest is left to other tools."""
    ledger_url: str | Secret | None = field(default=None, repr=False)
    """The Postgres or Redis database that several machines keep the request ledger in."""
    max_body_bytes: int = settings.MAX_BODY_BYTES
    """Of one export as it is sent, or of one walk over profiles."""
    data_group_ids: Sequence[str] = ()
    """Of the group types whose profiles are loaded, each a signed 64-bit number as text."""
    typed_tables: bool = True
    """Whether a load keeps the typed tables in step."""
    questions: Sequence[Question] = field(default=(), hash=False)
    """What is asked for the tables of reports: see `report_questions.questions_of`."""
    kept_out: KeptOut | None = field(default=None, compare=False, repr=False)
    """Whose rows are left out of what is loaded: see `forget`."""
    min_free_mb: int = settings.MIN_FREE_MB
    """Megabytes that stay free on the disks that a load writes to; 0 does not look."""
    disk: DiskRoom | None = field(default=None, compare=False, repr=False)
    """Looked at before each export."""
    stats: RequestStats | None = field(default=None, compare=False, repr=False)
    """Counts what all clients of the project spend; None: each its own."""
    base_url: str | None = None
    wait: bool = True
    """Whether a load waits for the hourly limit; if not, it raises RateLimitError."""
    on_wait: Callable[[float, str], None] | None = None
    """Told of each longer wait: seconds, and why."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "data_group_ids", group_ids(self.data_group_ids))
        object.__setattr__(self, "ledger_url", self.ledger_url and Secret(self.ledger_url))
        try:
            ZoneInfo(self.project_timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ConfigError(
                f"project_timezone {self.project_timezone!r} is not a time zone",
                hint="use an IANA name such as America/New_York",
            ) from None
        for name, value, least in (
            ("lookback_days", self.lookback_days, 0),
            ("sweep_days", self.sweep_days, 0),
            ("window_days", self.window_days, 1),
            ("max_window_days", self.max_window_days, 1),
        ):
            if value is not None and not least <= value <= _MOST_DAYS:
                raise ConfigError(f"{name} is a number from {least} to {_MOST_DAYS}, not {value}")
        if self.min_free_mb < 0:
            raise ConfigError(f"min_free_mb is a number from 0, not {self.min_free_mb}")
        if self.max_window_events < 1:
            raise ConfigError(f"max_window_events is a number from 1, not {self.max_window_events}")
        most = settings.MAX_CONCURRENT["export"]
        if not 1 <= self.concurrent_exports <= most:
            raise ConfigError(f"concurrent_exports is a number from 1 to {most}, not {self.concurrent_exports}")
        if self.max_spool_bytes < 0:
            raise ConfigError(f"max_spool_bytes is 0 or more, not {self.max_spool_bytes}")
        if not 0 <= self.spool_keep_hours <= 24 * _MOST_DAYS:
            raise ConfigError(f"spool_keep_hours is a number of hours from 0, not {self.spool_keep_hours:g}")
        if not 0 < self.request_share <= 1:
            raise ConfigError(f"request_share is a share over 0 and up to 1, not {self.request_share:g}")
        if not 0 <= self.max_rejected <= 1:
            raise ConfigError(f"max_rejected is a share between 0 and 1, not {self.max_rejected:g}")

    @property
    def calendar(self) -> ZoneInfo:
        """The zone export days are counted in (Mixpanel docs: Export methods)."""
        return ZoneInfo(self.project_timezone if self.legacy_local_time else "UTC")

    @property
    def local_zone(self) -> ZoneInfo | None:
        """The zone that exported `time` is wall clock in; None where it is a true epoch."""
        return self.calendar if self.legacy_local_time else None

    @property
    def report_calendar(self) -> ZoneInfo:
        """The zone that reports count days in, in old and new projects alike (Mixpanel docs: Managing Projects)."""
        return ZoneInfo(self.project_timezone)

    def client(self, spool: Path | None = None) -> MixpanelClient:
        """A client that shares the request ledger and spool folder, unless it gets one. Opens nothing yet."""
        return self._client(spool or spool_folder())

    def origin(self, family: settings.ApiFamily) -> str:
        """Scheme, host and port of what is asked."""
        return self._client(None).origin(family)

    def ledger(self) -> RequestLedger:
        """The request ledger for the project. Makes no file and no folder."""
        return self._client(None).ledger

    def _client(self, spool_folder: Path | None) -> MixpanelClient:
        return MixpanelClient(
            self.credentials,
            base_url=self.base_url or os.environ.get("MP_BASE_URL") or None,
            retries=self.retries,
            timeout_s=self.timeout_s,
            export_timeout_s=self.export_timeout_s,
            max_body_bytes=self.max_body_bytes,
            spool_folder=spool_folder,
            ledger_url=self.ledger_url,
            request_share=self.request_share,
            wait=self.wait,
            on_wait=self.on_wait,
            stats=self.stats,
        )

    @property
    def window_limits(self) -> WindowLimits:
        if self.window_days is not None:
            return WindowLimits(self.window_days, None, None)
        return WindowLimits(self.max_window_days, self.max_window_events)

    def plan(self, asked: DateRange, loaded: Sequence[LoadedDay], now: datetime | None = None) -> Plan:
        """What to export for `asked`, as far as `loaded` tells of it; `now` is the present unless given.

        Raises ConfigError.
        """
        days = days_to_load(
            asked,
            loaded,
            start_date=self.start_date,
            first_load_days=settings.FIRST_LOAD_DAYS,
            lookback_days=self.lookback_days,
            now=now or datetime.now(UTC),
            calendar=self.calendar,
        )
        whole = [day for day in loaded if day.complete]
        rows = sum(day.rows for day in whole)
        event_bytes = sum(day.bytes for day in whole) / rows if rows else None
        return Plan(days, self.window_limits, {day.day: day.rows for day in whole}, event_bytes)


def project_of(account: Account, **options: object) -> Project:
    """The project of `account`; `options` are fields of Project, None meaning not given.

    In place of `questions` the lists of reports under the names of settings.REPORT_TABLES.
    """
    given = {name: value for name, value in options.items() if value is not None}
    defaults = {"project_timezone": account.project_timezone, "legacy_local_time": account.legacy_local_time}
    fields: dict[str, Any] = {**defaults, **account.load_settings, **given}
    reports = {table: fields.pop(table) for table in settings.REPORT_TABLES if table in fields}
    if reports:
        from mixpanel_source.report_questions import questions_of  # it imports this module

        fields["questions"] = [question for table in reports for question in questions_of(table, reports[table])]
    return Project(account.credentials, **fields)


def spool_folder() -> Path:
    """Where export bodies wait to be read; made on first use. Raises WarehouseError where it cannot be."""
    folder = settings.data_folder() / "spool"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise WarehouseError(
            f"cannot make the folder {folder}: {error.strerror}", hint="set MP_DATA_DIR to a folder you can write to"
        ) from error
    return folder


def day_in_words(name: str, value: str | None, calendar: tzinfo) -> date | None:
    """`parse_day`, which `today` and `yesterday` in `calendar` are days for, too."""
    today = datetime.now(calendar).date()
    words = {"today": today, "yesterday": today - ONE_DAY}
    return parse_day(name, words.get(value, value) if value else None)


def parse_day(name: str, value: str | date | None) -> date | None:
    """`YYYY-MM-DD` as a date; `name` is the argument's, for the error. Raises ConfigError."""
    if value is None or value == "":
        return None
    if isinstance(value, datetime):
        raise ConfigError(f"{name} is a day, not a moment: {value}", hint="give it as YYYY-MM-DD")
    if isinstance(value, date):
        return value
    try:
        if not _DAY.fullmatch(value):  # ISO 8601 has more ways, such as 2024-W05-3
            raise ValueError
        return date.fromisoformat(value)
    except ValueError:
        raise ConfigError(f"{name} {value!r} is not a day", hint="give it as YYYY-MM-DD") from None


def parse_range(from_date: str | date | None, to_date: str | date | None, refresh: bool = False) -> DateRange:
    """The days asked for. Raises ConfigError."""
    return DateRange(parse_day("from_date", from_date), parse_day("to_date", to_date), refresh)


def parse_since(name: str, value: str | date | None) -> date | Literal["last"] | None:
    """`last`, or a day: for `ProfilesAsked.since`. Raises ConfigError."""
    return LAST if value == LAST else parse_day(name, value)
