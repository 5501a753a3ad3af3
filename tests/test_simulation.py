"""Simulated loads, against loads and against sums that can be done by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from conftest import NO_LIMITS
from export_lines import day_lines, days

from mixpanel_source import settings
from mixpanel_source.credentials import Credentials
from mixpanel_source.errors import ConfigError
from mixpanel_source.load import load
from mixpanel_source.machine_speed import measure
from mixpanel_source.planner import WindowLimits
from mixpanel_source.project import Project
from mixpanel_source.resources.events import PackageLimits
from mixpanel_source.sandbox import Sandbox, SandboxServer
from mixpanel_source.settings import PACKAGE_BYTES, PACKAGE_S
from mixpanel_source.simulation import Amount, Machine, Server, Simulation, simulate
from mixpanel_source.windows import DateRange

IDLE = Machine(cores=1, event_s=0, typed_event_s=0, package_s=0, start_s=0)
AT_ONCE = Server(first_byte_s=0, bytes_per_s=1e12, page_s=0)
A_DAY = WindowLimits(1, None, None)


def quota_only(amount: Amount, workers: int = 1, share: float = 1.0, windows: WindowLimits = A_DAY) -> Simulation:
    return simulate(
        amount, workers=workers, machine=IDLE, server=AT_ONCE, windows=windows, request_share=share, typed_tables=False
    )


@pytest.mark.parametrize(
    ("requests", "share", "hours"), [(60, 1.0, 0), (61, 1.0, 1), (120, 1.0, 1), (181, 1.0, 3), (61, 0.5, 2)]
)
def test_the_requests_of_an_hour_are_those_of_the_ledger(requests: int, share: float, hours: int) -> None:
    found = quota_only(Amount(10, requests), share=share)
    assert found.requests["export"] == requests
    # Three a second, and the ledger's margins.
    assert hours * 3600 <= found.seconds <= hours * 3601 + 30
    assert found.seconds == pytest.approx(found.quota_s, abs=0.1)
    if hours:
        assert found.bound_by == "quota"


def test_projects_have_limits_of_their_own_and_a_worker_loads_one_at_a_time() -> None:
    amount = Amount(10, 61, projects=4)
    assert [round(quota_only(amount, workers).seconds / 3600) for workers in (1, 2, 3, 4, 9)] == [4, 2, 2, 1, 1]


def test_profiles_are_pages_of_the_query_limit() -> None:
    found = quota_only(Amount(0, 1, profiles=120_001))
    assert (found.requests["query"], round(found.seconds / 3600)) == (121, 2)


def test_loads_share_the_processors() -> None:
    amount = Amount(1000, 10, projects=4)
    machine = Machine(cores=2, event_s=0.01, typed_event_s=0.02, package_s=0.5, start_s=1.5, threads=1.0)
    each = 1.5 + 10_000 * 0.03 + 0.5
    for workers, cores, rounds in ((1, 2, 4), (2, 2, 2), (4, 2, 2), (4, 1, 4), (4, 4, 1)):
        machine = Machine(cores, 0.01, 0.02, 0.5, 1.5, threads=1.0)
        found = simulate(amount, workers=workers, machine=machine, server=AT_ONCE, count_events=False)
        assert found.cpu_s == pytest.approx(4 * each, rel=0.02)
        assert found.seconds == pytest.approx(rounds * each, rel=0.05)
        assert found.bound_by == "cpu"


def test_exports_come_while_others_are_read() -> None:
    machine = Machine(cores=1, event_s=0.001, typed_event_s=0, package_s=0, start_s=0)
    server = Server(first_byte_s=5, bytes_per_s=1e12)
    one, four = (
        simulate(Amount(100, 40), machine=machine, server=server, windows=A_DAY, concurrent_exports=at_once)
        for at_once in (1, 4)
    )
    assert (one.bound_by, four.bound_by) == ("server", "server")
    assert one.seconds == pytest.approx(40 * 5.1, rel=0.05)
    # What has no answer yet counts as of now, so that three a second are three that are silent.
    assert 40 * 5 / 3 < four.seconds < 40 * 5 / 2
    assert four.spool_bytes > one.spool_bytes


def test_exports_that_end_half_way_are_asked_for_again() -> None:
    server = Server(first_byte_s=5, bytes_per_s=100.0, compression=1)
    whole, broken = (
        simulate(
            Amount(1, 40, bytes_per_event=100),
            machine=IDLE,
            server=replace(server, failing=failing),
            windows=A_DAY,
            concurrent_exports=1,
        )
        for failing in (0.0, 0.2)
    )
    assert (whole.requests["export"], broken.requests["export"]) == (40, 50 - 1)
    # Nine times a first byte, half of an answer, and a wait.
    assert broken.seconds - whole.seconds == pytest.approx(9 * (5 + 0.5 + 1), rel=0.05)
    assert broken.received_bytes - whole.received_bytes == 9 * 50
    with pytest.raises(ConfigError, match="failing is a share"):
        Server(failing=1)


def test_a_package_ends_where_that_of_a_load_does() -> None:
    assert (PackageLimits().bytes, PackageLimits().seconds) == (PACKAGE_BYTES, PACKAGE_S)


@pytest.mark.long
def test_a_load_asks_as_often_as_its_simulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, server: SandboxServer
) -> None:
    monkeypatch.setenv("MP_DATA_DIR", str(tmp_path))
    for family in NO_LIMITS:
        monkeypatch.setitem(settings.LIMITS, family, NO_LIMITS[family])
    year = days("2023-03-12", 100)
    for number, day in enumerate(year):
        sandbox.set_day(day, day_lines(day, 40, first=40 * number))
    project = Project(
        Credentials("sandbox", "sandbox", "1", "us"),
        max_window_events=500,
        base_url=server.url,
        typed_tables=False,
        count_events=False,
    )
    asked = DateRange(date.fromisoformat(year[0]), date.fromisoformat(year[-1]))
    loaded = load(project, tmp_path / "db.duckdb", ["events"], asked=asked)
    assert loaded.error is None
    found = simulate(Amount(40, len(year)), windows=project.window_limits, count_events=False)
    assert found.requests["export"] == loaded.metrics.requests == 10
    assert found.amount.events == loaded.rows


@pytest.mark.long
def test_the_speed_of_this_machine_is_measured_by_loads() -> None:
    found = measure(events=5_000)
    assert 1e-6 < found.machine.event_s < 1e-3
    assert 0.2 < found.machine.start_s < 60
    assert found.machine.threads >= 1
    assert 0.1 < found.machine.database_share < 5
    assert found.compression > 2
