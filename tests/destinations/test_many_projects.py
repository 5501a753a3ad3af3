"""Several accounts into one destination: a dataset each, and views over all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mpload_here import Done, run

from destinations.conftest import Place
from mixpanel_source import settings
from mixpanel_source.destinations import target_of
from mixpanel_source.errors import AuthenticationError
from mixpanel_source.many_projects import UNION_DATASET, account_names, dataset_of, load_account, make_views
from mixpanel_source.pipeline import open_pipeline
from mixpanel_source.sandbox import Sandbox
from soak.many_sandboxes import serving

DAYS = ("--from", "2024-01-01", "--to", "2024-01-02")


def lines(project_id: str, count: int) -> list[bytes]:
    event = '{"event":"E","properties":{"time":1704103200,"distinct_id":"u","$insert_id":"%s-%d"}}'
    return [(event % (project_id, number)).encode() for number in range(count)]


def ask(destination: str, dataset: str, sql: str) -> list[tuple[Any, ...]]:
    with open_pipeline(target_of(destination, dataset)).sql_client() as client:
        return [tuple(row) for row in client.execute_sql(sql) or []]


@pytest.mark.parametrize("kind", ["postgres", "ducklake-postgres"])
def test_accounts_have_a_dataset_each_and_views_over_all(
    kind: str, make_place: Callable[[str], Place], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for family in settings.LIMITS:
        monkeypatch.setitem(settings.LIMITS, family, ((100_000, 1.0),))
    place = make_place(kind).destination
    accounts = {"one": "11", "Two & more": "22", "broken": "33"}
    sandboxes = {name: Sandbox(project_id=id_, limits=False) for name, id_ in accounts.items()}
    config = tmp_path / "config.toml"
    account = 'username = "sandbox"\nsecret = "%s"\nproject_id = "%s"\nregion = "us"\n'
    keys = {name: account % ("wrong" if name == "broken" else "sandbox", id_) for name, id_ in accounts.items()}
    config.write_text("".join(f"[accounts.{json.dumps(name)}]\n{text}" for name, text in keys.items()))
    config.chmod(0o600)
    monkeypatch.setenv("MP_CONFIG_PATH", str(config))
    sandboxes["one"].set_day("2024-01-01", lines("11", 2))
    sandboxes["Two & more"].set_day("2024-01-01", lines("22", 3))
    sandboxes["Two & more"].set_cohorts([{"id": 5, "name": "c", "count": 1}])

    def load(*more: str) -> Done:
        return run(["load", *more, *DAYS, "--destination", place, "-f", "jsonl"])

    with serving(list(sandboxes.values())) as server:
        monkeypatch.setenv("MP_BASE_URL", server.url)
        done = load("events", "--all-accounts")
        assert done.code == 2, done.err  # the others are loaded all the same
        rows = [json.loads(line) for line in done.out.splitlines()]
        assert [(row["account"], row["rows"], row["error"] is None) for row in rows] == [
            ("one", 2, True), ("Two & more", 3, True), ("broken", 0, False),
        ]  # fmt: skip
        by_project = "SELECT project_id, count(*) FROM events GROUP BY project_id ORDER BY 1"
        assert ask(place, UNION_DATASET, by_project) == [("11", 2), ("22", 3)]
        assert ask(place, dataset_of("one"), "SELECT count(*) FROM events") == [(2,)]
        # A table that one of them has alone, with columns and an id of its own; and a day that comes again, smaller.
        sandboxes["Two & more"].set_day("2024-01-01", lines("22", 1))
        assert load("events", "cohorts", "--accounts", "Two & more", "--refresh").code == 0
        assert load("events", "cohorts", "--accounts", "Two & more", "--refresh").code == 0
        assert ask(place, UNION_DATASET, by_project) == [("11", 2), ("22", 1)]
        assert ask(place, UNION_DATASET, "SELECT project_id, id, name FROM cohorts") == [("22", 5, "c")]


def test_accounts_of_dlts_configuration_are_loaded_as_orchestrators_do(
    make_place: Callable[[str], Place], monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    place = make_place("ducklake-sqlite").destination
    secrets = {"one": "sandbox", "two": "sandbox", "wrong": "no"}
    sandboxes = [Sandbox(project_id=str(id_), limits=False) for id_ in (1, 2, 3)]
    yesterday = str(datetime.now(UTC).date() - timedelta(days=1))
    for sandbox in sandboxes:
        sandbox.set_day(yesterday, lines(sandbox.project_id, int(sandbox.project_id)))
    keys = {"username": "sandbox", "region": "us"}
    accounts = {
        name: {**keys, "secret": secret, "project_id": sandbox.project_id}
        for sandbox, (name, secret) in zip(sandboxes, secrets.items(), strict=True)
    }
    monkeypatch.setenv("SOURCES__MIXPANEL__ACCOUNTS", json.dumps(accounts))
    failed = []
    with serving(sandboxes) as server:
        monkeypatch.setenv("MP_BASE_URL", server.url)
        for name in account_names():
            try:
                load_account(name, place, ["events"])
            except AuthenticationError:
                failed.append(name)
    assert failed == ["wrong"]
    assert "events" in make_views(place)
    assert ask(place, UNION_DATASET, "SELECT project_id, count(*) FROM events GROUP BY 1 ORDER BY 1") == [
        ("1", 1),
        ("2", 2),
    ]
