from __future__ import annotations

import multiprocessing
import shutil
import sqlite3
import stat
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mixpanel_source import settings
from mixpanel_source.errors import RateLimitError, WarehouseError
from mixpanel_source.rate_limit import LONGEST_HOLD_S, MARGIN_S, RequestLedger, Spent

START = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = START
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds

    @property
    def passed(self) -> float:
        return self.now - START


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["file", "memory"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "data" / "ledger.sqlite" if request.param == "file" else None


def ledger(path: Path | None, clock: Clock, **more: Any) -> RequestLedger:
    wanted: dict[str, Any] = {"origin": "https://mixpanel.com", "project_id": "1", **more}
    return RequestLedger(path, clock=clock, sleep=clock.sleep, **wanted)


def test_the_61st_query_waits_until_the_first_is_an_hour_old(path: Path | None, clock: Clock) -> None:
    requests = ledger(path, clock)
    for _ in range(60):
        assert requests.acquire("query") == 0.0
    assert requests.acquire("query") == pytest.approx(3600 + MARGIN_S)
    assert clock.passed == pytest.approx(3600 + MARGIN_S)


def test_both_limits_of_the_export_hold_at_once(path: Path | None, clock: Clock) -> None:
    requests = ledger(path, clock)
    times = []
    for _ in range(130):
        requests.acquire("export")
        times.append(clock.passed)
    for allowed, period in settings.LIMITS["export"]:
        assert min(b - a for a, b in zip(times, times[allowed:], strict=False)) > period
    assert times[59] < 25
    assert times[119] < 2 * 3600 - 3500


def test_an_hour_long_wait_that_is_not_allowed_is_an_error_with_its_length(path: Path | None, clock: Clock) -> None:
    requests = ledger(path, clock)
    for _ in range(60):
        requests.acquire("query")
    clock.now += 600
    with pytest.raises(RateLimitError, match="project 1 is used up") as caught:
        requests.acquire("query", wait=False)
    assert caught.value.retry_after == pytest.approx(3000 + MARGIN_S)
    assert "50 minutes" in str(caught.value.hint)
    assert clock.sleeps == []


def test_a_wait_for_the_second_is_slept_even_where_waiting_is_not_allowed(path: Path | None, clock: Clock) -> None:
    requests = ledger(path, clock)
    for _ in range(4):
        requests.acquire("export", wait=False)
    assert clock.sleeps == [pytest.approx(1 + MARGIN_S)]


def test_a_longest_wait_is_kept(path: Path | None, clock: Clock) -> None:
    requests = ledger(path, clock)
    for _ in range(60):
        requests.acquire("query")
    with pytest.raises(RateLimitError):
        requests.acquire("query", max_wait_s=3599)
    assert requests.acquire("query", max_wait_s=3601) > 3600


def test_trying_enters_nothing_where_there_is_a_wait(path: Path | None, clock: Clock) -> None:
    requests = ledger(path, clock)
    for _ in range(3):
        assert requests.try_acquire("export") == 0.0
    for _ in range(5):
        assert requests.try_acquire("export") == pytest.approx(1 + MARGIN_S)
    assert requests.spent("export").used == 3


def test_what_is_spent_is_counted_by_the_hour(path: Path | None, clock: Clock) -> None:
    requests = ledger(path, clock)
    assert requests.spent("query") == Spent(0, 60, 0.0)
    for _ in range(60):
        requests.acquire("query")
        clock.now += 10
    assert requests.spent("query") == pytest.approx((60, 60, 3000 + MARGIN_S))
    clock.now += 3001
    assert requests.spent("query").used == 59
    clock.now += 3600
    assert requests.spent("query") == Spent(0, 60, 0.0)


def test_asking_what_is_spent_makes_no_file(tmp_path: Path, clock: Clock) -> None:
    requests = ledger(tmp_path / "data" / "ledger.sqlite", clock)
    assert requests.spent("export") == Spent(0, 60, 0.0)
    assert list(tmp_path.iterdir()) == []


def test_families_projects_and_origins_have_a_budget_each(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "ledger.sqlite"
    requests = ledger(path, clock)
    for _ in range(60):
        requests.acquire("query")
    assert requests.try_acquire("query") > 0
    assert requests.try_acquire("export") == 0.0
    assert ledger(path, clock, project_id="2").try_acquire("query") == 0.0
    assert ledger(path, clock, origin="http://127.0.0.1:8000").try_acquire("query") == 0.0


def test_the_budget_outlives_the_process(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "ledger.sqlite"
    for _ in range(60):
        ledger(path, clock).acquire("query")
    assert ledger(path, clock).try_acquire("query") > 3599


def test_a_penalty_holds_off_every_user_of_the_file(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "ledger.sqlite"
    mine, other = ledger(path, clock), ledger(path, clock)
    mine.penalize("export", 90)
    mine.penalize("export", 10)
    assert other.try_acquire("export") == pytest.approx(90)
    assert other.spent("export") == pytest.approx((0, 60, 90))
    assert other.try_acquire("query") == 0.0
    clock.now += 90
    assert other.try_acquire("export") == 0.0


def test_a_penalty_lasts_an_hour_at_most(path: Path | None, clock: Clock) -> None:
    requests = ledger(path, clock)
    requests.penalize("query", 1e9)
    assert requests.try_acquire("query") == pytest.approx(LONGEST_HOLD_S)


def test_a_clock_that_is_set_back_does_not_lock_the_ledger(path: Path | None, clock: Clock) -> None:
    requests = ledger(path, clock)
    for _ in range(60):
        requests.acquire("query")
    requests.penalize("query", 600)
    clock.now -= 365 * 86400
    assert requests.try_acquire("query") == 0.0
    assert requests.spent("query").used == 1


def test_a_clock_corrected_by_a_second_forgets_nothing(path: Path | None, clock: Clock) -> None:
    requests = ledger(path, clock)
    for _ in range(3):
        requests.acquire("export")
    clock.now -= 1
    assert requests.try_acquire("export") == pytest.approx(2 + MARGIN_S)


def test_the_file_is_private(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "data" / "ledger.sqlite"
    ledger(path, clock).acquire("query")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_file_that_is_no_database_is_told(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database at all, but long enough to look at" * 100)
    with pytest.raises(WarehouseError, match="not a database") as caught:
        ledger(path, clock).acquire("query")
    assert "remove" in str(caught.value.hint)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(WarehouseError, match="cannot be used") as caught:
        ledger(tmp_path / "data" / "ledger.sqlite", clock).acquire("query")
    assert "MP_DATA_DIR" in str(caught.value.hint)


def test_a_record_that_cannot_be_read_counts_as_empty(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger(path, clock).acquire("query")
    connection = sqlite3.connect(path)
    connection.execute("update ledger set record = '{\"hits\": 5}'")
    connection.commit()
    connection.close()
    assert ledger(path, clock).try_acquire("query") == 0.0


def _take(path: Path, count: int, permits: Any) -> None:
    looked = [0.0]

    def clock() -> float:
        looked[0] = time.time()
        return looked[0]

    requests = RequestLedger(path, origin="o", project_id="1", limits={"app": ((3, 0.2), (8, 1.0))}, clock=clock)
    for _ in range(count):
        requests.acquire("app")
        permits.put(looked[0])


def test_processes_together_stay_within_the_limits(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    permits = context.Queue()
    workers = [context.Process(target=_take, args=(tmp_path / "l.sqlite", 5, permits)) for _ in range(3)]
    for worker in workers:
        worker.start()
    times = sorted(permits.get(timeout=60) for _ in range(15))
    for worker in workers:
        worker.join()
    for allowed, period in ((3, 0.2), (8, 1.0)):
        assert min(b - a for a, b in zip(times, times[allowed:], strict=False)) > period


def test_requests_under_way_at_once_are_capped_across_ledgers(clock: Clock) -> None:
    cap = settings.MAX_CONCURRENT["query"]
    under_way, most, lock = 0, 0, threading.Lock()
    everyone = threading.Barrier(cap)

    def work() -> None:
        nonlocal under_way, most
        with ledger(None, clock, origin="cap").slot("query"):
            with lock:
                under_way += 1
                most = max(most, under_way)
            everyone.wait(5)
            with lock:
                under_way -= 1

    threads = [threading.Thread(target=work) for _ in range(2 * cap)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == cap


def test_what_is_spent_is_told_after_a_write_that_was_broken_off(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    RequestLedger(path, origin="x", project_id="1").try_acquire("export")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("pragma cache_size = 1")
        connection.execute("begin immediate")
        connection.execute("insert into ledger values ('y', '2', 'export', ?)", ("x" * 100_000,))
        broken = tmp_path / "broken" / path.name
        broken.parent.mkdir()
        for end in ("", "-journal"):
            shutil.copy(f"{path}{end}", f"{broken}{end}")
        connection.execute("rollback")
    assert RequestLedger(broken, origin="x", project_id="1").spent("export").used == 1
