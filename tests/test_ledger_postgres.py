"""The request ledger of several machines."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
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
from mixpanel_source.project import Project
from mixpanel_source.rate_limit import RequestLedger, Spent
from mixpanel_source.status import status
from soak import postgres

NOBODY = "postgresql://user:planted@127.0.0.1:1/ledger"
CREDENTIALS = Credentials("user", "pl4nted-too", "1", "us")


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.PostgresServer]:
    if not postgres.installed():
        pytest.skip("needs initdb and pg_ctl")
    with postgres.running() as running:
        yield running


def ledger(url: str, project_id: str) -> RequestLedger:
    limits: Any = {"app": ((9, 600.0),)}
    return RequestLedger(None, origin="o", project_id=project_id, limits=limits, at_once={"app": 1}, url=url)


def _hold(url: str, told: Any) -> None:
    """Holds the only place, and has a second request wait for it, until it is killed."""
    requests = ledger(url, "killed")
    with requests.permit("app"), requests.permit("app", on_wait=lambda _: told.put("waits")):
        pass


@pytest.mark.long
def test_what_a_killed_process_held_is_free_at_once_and_its_request_counts(server: postgres.PostgresServer) -> None:
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
def test_a_server_that_was_away_knows_what_it_knew_before(server: postgres.PostgresServer) -> None:
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


def test_status_answers_where_the_server_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = status(tmp_path / "db.duckdb", Project(CREDENTIALS, ledger_url=NOBODY))
    assert found.requests == []
    assert "postgresql://127.0.0.1:1/ledger cannot be used: connection failed" in str(found.requests_problem)
    for name, value in (("USERNAME", "u"), ("SECRET", "pl4nted-too"), ("PROJECT_ID", "1"), ("REGION", "us")):
        monkeypatch.setenv(f"MP_{name}", value)
    monkeypatch.setenv("MP_LEDGER_URL", NOBODY)
    with pytest.raises(SystemExit):
        app.main(["--db", str(tmp_path / "db.duckdb"), "--format", "table", "status"])
    assert "not known: the request ledger in" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "url",
    ["postgresql://u:pl@nted@h/d", "postgresql://u:planted/x@h/d", "postgresql://u:%planted@h/d", "redis://u:planted@h",
     "planted"],
)  # fmt: skip
def test_an_address_that_cannot_be_is_told_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="none of a Postgres database") as caught:
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
