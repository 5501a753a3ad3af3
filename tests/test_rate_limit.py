from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from ledger_requests import spend

from mixpanel_source import settings
from mixpanel_source.errors import RateLimitError, WarehouseError
from mixpanel_source.ledger.clock import system_clock
from mixpanel_source.ledger.file_store import FileStore
from mixpanel_source.ledger.record import LONGEST_HOLD_S, MARGIN_S
from mixpanel_source.ledger.store import Key
from mixpanel_source.rate_limit import RequestLedger, Spent

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
    spend(requests, "query", 60)
    assert clock.sleeps == []
    spend(requests, "query")
    assert clock.sleeps == [pytest.approx(3600 + MARGIN_S)]


def test_both_limits_of_the_export_hold_at_once(clock: Clock) -> None:
    requests = ledger(None, clock)
    times = []
    for _ in range(130):
        spend(requests, "export")
        times.append(clock.passed)
    for allowed, period in settings.LIMITS["export"]:
        assert min(b - a for a, b in zip(times, times[allowed:], strict=False)) > period
    assert times[59] < 25
    assert times[119] < 2 * 3600 - 3500


def test_a_request_counts_from_when_its_answer_begins(path: Path | None, clock: Clock) -> None:
    requests = ledger(path, clock, limits={"app": ((1, 100.0),)}, at_once={"app": 2})
    with requests.permit("app") as permit:
        clock.now += 10
        assert requests.spent("app") == pytest.approx((1, 1, 100 + MARGIN_S))
        permit.arrived()
        clock.now += 10
        assert requests.spent("app") == pytest.approx((1, 1, 90 + MARGIN_S))
    assert requests.spent("app") == pytest.approx((1, 1, 90 + MARGIN_S))


def test_an_hour_long_wait_that_is_not_allowed_is_an_error_with_its_length(path: Path | None, clock: Clock) -> None:
    requests = ledger(path, clock)
    spend(requests, "query", 60)
    clock.now += 600
    with pytest.raises(RateLimitError, match="project 1 is used up") as caught, requests.permit("query", wait=False):
        pass
    assert caught.value.retry_after == pytest.approx(3000 + MARGIN_S)
    assert "50 minutes" in str(caught.value.hint)
    assert clock.sleeps == []
    spend(requests, "query")  # nobody is left in the queue before it
    assert clock.sleeps == [pytest.approx(3000 + MARGIN_S)]


def test_a_wait_for_the_second_is_slept_even_where_waiting_is_not_allowed(path: Path | None, clock: Clock) -> None:
    requests = ledger(path, clock)
    spend(requests, "export", 3)
    with requests.permit("export", wait=False):
        assert clock.sleeps == [pytest.approx(1 + MARGIN_S)]


def test_a_longest_wait_is_kept(path: Path | None, clock: Clock) -> None:
    requests = ledger(path, clock)
    spend(requests, "query", 60)
    with pytest.raises(RateLimitError), requests.permit("query", max_wait_s=3599):
        pass
    with requests.permit("query", max_wait_s=3601):
        assert clock.passed > 3600


def test_what_is_spent_is_counted_by_the_hour(clock: Clock) -> None:
    requests = ledger(None, clock)
    assert requests.spent("query") == Spent(0, 60, 0.0)
    for _ in range(60):
        spend(requests, "query")
        clock.now += 10
    assert requests.spent("query") == pytest.approx((60, 60, 3000 + MARGIN_S))
    clock.now += 3001
    assert requests.spent("query").used == 59
    clock.now += 3600
    assert requests.spent("query") == Spent(0, 60, 0.0)


def test_a_share_of_the_hour_is_left_to_others(path: Path | None, clock: Clock) -> None:
    requests = ledger(path, clock, share=0.05)
    spend(requests, "export", 3)
    assert requests.spent("export") == pytest.approx((3, 3, 3600 + MARGIN_S))
    with pytest.raises(RateLimitError, match="3 in 3600 s and 3 in 1 s"), requests.permit("export", wait=False):
        pass
    assert ledger(path, clock, share=0.001).spent("query").allowed == 1
    spend(requests, "lexicon", 5)  # whose limit is none by the hour
    assert clock.sleeps == []


def test_asking_what_is_spent_makes_no_file(tmp_path: Path, clock: Clock) -> None:
    requests = ledger(tmp_path / "data" / "ledger.sqlite", clock)
    assert requests.spent("export") == Spent(0, 60, 0.0)
    assert list(tmp_path.iterdir()) == []


def test_families_projects_and_origins_have_a_budget_each(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "ledger.sqlite"
    requests = ledger(path, clock, limits={**settings.LIMITS, "query": ((2, 3600.0),)})
    spend(requests, "query", 2)
    assert requests.spent("query").next_free_s > 0
    assert requests.spent("export").used == 0
    assert ledger(path, clock, project_id="2").spent("query").used == 0
    assert ledger(path, clock, origin="http://127.0.0.1:8000").spent("query").used == 0


def test_a_penalty_holds_off_every_user_of_the_file(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "ledger.sqlite"
    mine, other = ledger(path, clock), ledger(path, clock)
    mine.penalize("export", 90)
    mine.penalize("export", 10)
    assert other.spent("export") == pytest.approx((0, 60, 90))
    assert other.spent("query").next_free_s == 0
    spend(other, "export")
    assert clock.sleeps == [pytest.approx(90)]


def test_a_penalty_lasts_an_hour_at_most(path: Path | None, clock: Clock) -> None:
    requests = ledger(path, clock)
    requests.penalize("query", 1e9)
    assert requests.spent("query").next_free_s == pytest.approx(LONGEST_HOLD_S)


def test_a_place_is_given_back_later_where_the_ledger_cannot_be_used_then(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "ledger.sqlite"
    requests = ledger(path, clock, at_once={"query": 1})
    with requests.permit("query"):
        aside = path.rename(tmp_path / "aside")
        path.mkdir()
    path.rmdir()
    aside.rename(path)
    spend(requests, "query")
    assert clock.sleeps == []
    assert requests.spent("query").used == 2


def test_the_file_is_private(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "data" / "ledger.sqlite"
    spend(ledger(path, clock), "query")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_file_that_is_no_database_is_told(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database at all, but long enough to look at" * 100)
    with pytest.raises(WarehouseError, match="not a database") as caught:
        spend(ledger(path, clock), "query")
    assert "remove" in str(caught.value.hint)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(WarehouseError, match="cannot be used") as caught:
        spend(ledger(tmp_path / "data" / "ledger.sqlite", clock), "query")
    assert "MP_DATA_DIR" in str(caught.value.hint)


def test_a_record_that_cannot_be_read_counts_as_empty(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "ledger.sqlite"
    spend(ledger(path, clock), "query")
    connection = sqlite3.connect(path)
    connection.execute("update ledger set record = '{\"hits\": 5}'")
    connection.commit()
    connection.close()
    assert ledger(path, clock).spent("query").used == 0


TRY_TO_WRITE = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('begin immediate')"


def test_another_thread_does_not_let_other_processes_in_while_one_writes(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    requests = RequestLedger(path, origin="o", project_id="1")
    spend(requests, "query")
    with ThreadPoolExecutor(1) as pool:
        with FileStore(path, system_clock).changing(Key("o", "2", "query")):
            other = pool.submit(spend, requests, "query")
            time.sleep(0.2)
            done = subprocess.run([sys.executable, "-c", TRY_TO_WRITE, path], capture_output=True, text=True)
            assert "database is locked" in done.stderr
        other.result()
    assert requests.spent("query").used == 2


QUICK: Any = {"limits": {"app": ((3, 0.2), (8, 1.0))}, "at_once": {"app": 4}}


def _take(path: Path, count: int, sent: Any) -> None:
    requests = RequestLedger(path, origin="o", project_id="1", **QUICK)
    for _ in range(count):
        with requests.permit("app"):
            # Any moment while it is under way may be the one at which it reaches Mixpanel.
            began = time.monotonic()
            time.sleep(0.01)
            sent.put((began, time.monotonic()))


def test_processes_together_stay_within_the_limits(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    sent = context.Queue()
    workers = [context.Process(target=_take, args=(tmp_path / "l.sqlite", 5, sent)) for _ in range(3)]
    for worker in workers:
        worker.start()
    times = sorted(sent.get(timeout=60) for _ in range(15))
    for worker in workers:
        worker.join()
    for allowed, period in QUICK["limits"]["app"]:
        assert min(b[0] - a[1] for a, b in zip(times, times[allowed:], strict=False)) > period


def test_requests_under_way_at_once_are_capped_and_come_in_the_order_of_asking(path: Path | None) -> None:
    requests = RequestLedger(path, origin="o", project_id="1", limits={"app": ((99, 1.0),)}, at_once={"app": 1})
    under_way, order, lock = [0], list[int](), threading.Lock()
    asked = threading.Semaphore(0)

    def work(number: int) -> None:
        with requests.permit("app", on_wait=lambda _: asked.release()):
            with lock:
                order.append(number)
                under_way.append(under_way[-1] + 1)
            go_on.wait(10)
            with lock:
                under_way.append(under_way[-1] - 1)

    go_on = threading.Event()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for number, thread in enumerate(threads):
        thread.start()
        if number > 0:
            assert asked.acquire(timeout=10)  # it is in the queue
        else:
            while not order:
                time.sleep(0.01)
    go_on.set()
    for thread in threads:
        thread.join()
    assert max(under_way) == 1
    assert order == [0, 1, 2, 3]


def test_only_what_has_not_gone_out_is_waited_for(path: Path | None) -> None:
    requests = RequestLedger(path, origin="o", project_id="1", limits={"app": ((1, 60.0),)}, at_once={"app": 1})
    waiting, closed = threading.Event(), threading.Event()

    def work() -> None:
        with pytest.raises(RuntimeError), requests.permit("app", sleep=sleep):
            pass

    def sleep(_: float) -> None:
        waiting.set()
        closed.wait(10)
        raise RuntimeError

    with ThreadPoolExecutor(1) as pool:
        with requests.permit("app"):
            done = pool.submit(work)
            assert waiting.wait(10)
            assert requests.spent("app").next_free_s > 50
            assert requests.waits_s("app") == 0.0  # what is under way is what is waited for
        assert 50 < requests.waits_s("app") < 61
        closed.set()
        done.result()
    assert requests.spent("app").next_free_s > 50
    assert requests.waits_s("app") == 0.0
    requests.penalize("app", 30)
    assert 20 < requests.waits_s("app") <= 30


def _hold(path: Path, told: Any) -> None:
    """Holds the only place, and has a second request wait for it, until it is killed."""
    requests = RequestLedger(path, origin="o", project_id="1", limits={"app": ((9, 60.0),)}, at_once={"app": 1})
    with requests.permit("app"), requests.permit("app", on_wait=lambda _: told.put("waits")):
        pass


def test_what_a_killed_process_held_is_free_at_once_and_its_request_counts(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    worker = context.Process(target=_hold, args=(path, told))
    worker.start()
    assert told.get(timeout=60) == "waits"
    requests = RequestLedger(path, origin="o", project_id="1", limits={"app": ((9, 60.0),)}, at_once={"app": 1})
    assert worker.pid is not None
    with pytest.raises(RateLimitError), requests.permit("app", max_wait_s=0.1):
        pass
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    with requests.permit("app", max_wait_s=0.0):
        assert requests.spent("app").used == 2
    assert len(list((tmp_path / "l.sqlite.holders").iterdir())) == 1


def test_what_is_spent_is_told_after_a_write_that_was_broken_off(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    spend(RequestLedger(path, origin="x", project_id="1"), "export")
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
