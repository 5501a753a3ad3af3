"""The request ledger of several machines: the same of each kind of server."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ledger_requests import spend

from mixpanel_source.accounts import add_account
from mixpanel_source.cli import app
from mixpanel_source.client import MixpanelClient
from mixpanel_source.credentials import Account, Credentials, Secret
from mixpanel_source.errors import ConfigError, RateLimitError, WarehouseError
from mixpanel_source.ledger.store import Key
from mixpanel_source.project import Project
from mixpanel_source.rate_limit import RequestLedger, Spent
from mixpanel_source.status import status
from soak import postgres, redis_server

NOBODY = "postgresql://user:planted@127.0.0.1:1/ledger"
NO_REDIS = "redis://user:planted@127.0.0.1:1/0"
Server = postgres.PostgresServer | redis_server.RedisServer
CREDENTIALS = Credentials("user", "pl4nted-too", "1", "us")


@pytest.fixture(scope="module", params=["postgres", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    if request.param == "postgres":
        if not postgres.installed():
            pytest.skip("needs initdb and pg_ctl")
        with postgres.running() as running:
            yield running
    else:
        if not redis_server.installed():
            pytest.skip("needs redis-server")
        with redis_server.running() as redis:
            yield redis


def ledger(url: str, project_id: str) -> RequestLedger:
    limits: Any = {"app": ((9, 600.0),), "query": ((1000, 3600.0),)}
    at_once: Any = {"app": 1, "query": 5}
    return RequestLedger(None, origin="o", project_id=project_id, limits=limits, at_once=at_once, url=url)


def _hold(url: str, told: Any) -> None:
    """Holds the only place, and has a second request wait for it, until it is killed."""
    requests = ledger(url, "killed")
    with requests.permit("app"), requests.permit("app", on_wait=lambda _: told.put("waits")):
        pass


@pytest.mark.long
def test_what_a_killed_process_held_is_free_at_once_and_its_request_counts(server: Server) -> None:
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    worker = context.Process(target=_hold, args=(server.url, told))
    worker.start()
    assert told.get(timeout=60) == "waits"
    requests = ledger(server.url, "killed")
    with pytest.raises(RateLimitError), requests.permit("app", max_wait_s=0.1):
        pass
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    with requests.permit("app", max_wait_s=1.0):  # the server's turn to see that the connection has ended
        assert requests.spent("app").used == 2


@pytest.mark.long
def test_a_server_that_was_away_knows_what_it_knew_before(server: Server) -> None:
    requests = ledger(server.url, "away")
    assert requests.spent("app") == Spent(0, 9, 0.0)
    spend(requests, "app", 2)
    with requests.permit("app"):
        server.stop()
        with pytest.raises(WarehouseError, match="cannot be used") as caught:
            requests.penalize("app", 1)
        assert server.PASSWORD not in str(caught.value)
        server.start()
    spend(requests, "app")
    assert requests.spent("app").used == 4
    assert ledger(server.url, "other").spent("app").used == 0


def _count(url: str, told: Any) -> None:
    requests = ledger(url, "many")
    for _ in range(30):
        requests.penalize("query", 0)
        spend(requests, "query")
    told.put("done")


@pytest.mark.long
def test_nothing_is_lost_where_many_write_at_once(server: Server) -> None:
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    workers = [context.Process(target=_count, args=(server.url, told)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for _ in workers:
        told.get(timeout=120)
    for worker in workers:
        worker.join()
    assert ledger(server.url, "many").spent("query").used == 90


def _hold_lock(url: str, told: Any) -> None:
    """Holds the record itself, as one that is killed in the middle of a change does."""
    key = Key("o", "locked", "app")
    with ledger(url, "locked")._store.changing(key):
        told.put("holds")
        time.sleep(600)


@pytest.mark.long
def test_a_record_is_free_soon_after_the_process_that_changed_it_was_killed(server: Server) -> None:
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    worker = context.Process(target=_hold_lock, args=(server.url, told))
    worker.start()
    assert told.get(timeout=60) == "holds"
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    began = time.monotonic()
    spend(ledger(server.url, "locked"), "app")
    assert time.monotonic() - began < 20  # well before its lock would end by itself


@pytest.mark.parametrize(
    ("url", "shown"),
    [(NOBODY, "postgresql://127.0.0.1:1/ledger cannot be used: connection failed"),
     (NO_REDIS, "redis://127.0.0.1:1/0 cannot be used: Error")],
)  # fmt: skip
def test_status_answers_where_the_server_is_down(
    url: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = status(tmp_path / "db.duckdb", Project(CREDENTIALS, ledger_url=url))
    assert found.requests == []
    assert shown in str(found.requests_problem)
    for name, value in (("USERNAME", "u"), ("SECRET", "pl4nted-too"), ("PROJECT_ID", "1"), ("REGION", "us")):
        monkeypatch.setenv(f"MP_{name}", value)
    monkeypatch.setenv("MP_LEDGER_URL", url)
    with pytest.raises(SystemExit):
        app.main(["--db", str(tmp_path / "db.duckdb"), "--format", "table", "status"])
    assert "not known: the request ledger in" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "url",
    ["postgresql://u:pl@nted@h/d", "postgresql://u:planted/x@h/d", "postgresql://u:%planted@h/d", "planted",
     "redis://u:pl@nted@h", "redis://u:planted/x@h", "rediss://u:planted@h/nted"],
)  # fmt: skip
def test_an_address_that_cannot_be_is_told_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match=r"none of a (Postgres or )?Redis database") as caught:
        MixpanelClient(CREDENTIALS, ledger_url=url)
    for error in (caught.value, caught.value.__context__):
        assert not any(part in f"{error!r} {getattr(error, 'hint', '')}" for part in ("planted", "nted"))


def test_the_address_is_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert "planted" not in repr(Project(CREDENTIALS, ledger_url=NOBODY))
    path = tmp_path / "config.toml"
    monkeypatch.setenv("MP_CONFIG_PATH", str(path))
    add_account("a", Account(CREDENTIALS, load_settings={"ledger_url": Secret(NOBODY)}))
    assert f'ledger_url = "{NOBODY}"' in path.read_text()
    with pytest.raises(SystemExit):
        app.main(["--format", "json", "auth", "show", "a"])
    shown = capsys.readouterr().out
    assert json.loads(shown)["load_settings"] == {"ledger_url": "***"}
