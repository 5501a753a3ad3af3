"""What there is to ask for: over HTTP from the sandbox, and how long it is kept."""

from __future__ import annotations

import multiprocessing
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests_mock

from mixpanel_source import settings
from mixpanel_source.answer_cache import AnswerCache
from mixpanel_source.client import MixpanelClient
from mixpanel_source.credentials import Credentials
from mixpanel_source.discovery import Discovery
from mixpanel_source.errors import AuthenticationError, ConfigError, EntityNotFoundError, RateLimitError, ServerError
from mixpanel_source.project import Project
from mixpanel_source.rate_limit import RequestLedger
from mixpanel_source.sandbox import Sandbox

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("A", {"plan": "pro", "n": 1}),
    ("A", {"plan": "free"}),
    ("A", {"plan": "pro"}),
    ("b", {}),
    ("é", {"n": None}),
]
EVENTS = [
    {"event": name, "properties": {"time": 1709992800000, "distinct_id": "u", "$insert_id": str(number), **properties}}
    for number, (name, properties) in enumerate(KINDS)
]


@pytest.fixture
def project(project: Project, sandbox: Sandbox) -> Project:
    sandbox.add_events(EVENTS)
    return project


@pytest.fixture
def client(project: Project) -> Iterator[MixpanelClient]:
    with project.client() as client:
        yield client


def cached() -> list[Path]:
    return sorted((settings.data_folder() / "discovery").glob("*"))


def asked(sandbox: Sandbox) -> list[str]:
    paths = [request.path for request in sandbox.requests]
    sandbox.forget_requests()
    return paths


def explore(discovery: Discovery) -> list[Any]:
    names = discovery.events()
    return [names, discovery.properties("A"), discovery.values("A", "plan")]


def test_a_session_of_exploring_spends_requests_only_once(project: Project, sandbox: Sandbox) -> None:
    expected = [
        ["A", "b", "é"],
        [{"property": "$insert_id", "count": 3}, {"property": "plan", "count": 3}, {"property": "n", "count": 1}],
        ["pro", "free"],
    ]
    for spent in (3, 0, 0):
        with project.client() as client:
            ages: list[float] = []
            discovery = Discovery(client, on_cached=ages.append)
            found = explore(discovery)
        assert sorted(found[1], key=lambda row: (-row["count"], row["property"])) == expected[1]
        assert [found[0], found[2]] == [expected[0], expected[2]]
        assert (len(asked(sandbox)), len(ages)) == (spent, 3 - spent)
        assert all(0 <= age < 60 for age in ages)


def test_every_list_is_kept(client: MixpanelClient, sandbox: Sandbox) -> None:
    sandbox.set_funnels([{"funnel_id": 7, "name": "Buy", "steps": ["A", "b"]}])
    sandbox.set_cohorts([{"id": 5, "name": "Payers", "members": ["u"]}])
    sandbox.set_bookmarks([{"id": 1, "name": "One"}, {"id": 2, "name": "Two", "type": "funnels"}])
    for spent in (4, 0):
        discovery = Discovery(client)
        assert discovery.funnels() == [{"funnel_id": 7, "name": "Buy"}]
        assert [(row["id"], row["name"], row["count"]) for row in discovery.cohorts()] == [(5, "Payers", 1)]
        assert [row["name"] for row in discovery.bookmarks()] == ["One", "Two"]
        assert [row["name"] for row in discovery.bookmarks("funnels")] == ["Two"]
        assert discovery.projects() == [
            {"id": "1", "name": "Sandbox", "timezone": "UTC", "organization_id": 5, "organization": "Sandbox"}
        ]
        assert len(asked(sandbox)) == spent


def test_an_answer_is_used_for_its_time_and_no_longer_nor_after_the_clock_is_set_back(
    client: MixpanelClient, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spent(now: float, **options: Any) -> int:
        Discovery(client, clock=lambda: now, **options).events()
        return len(asked(sandbox))

    assert spent(1000) == 1
    assert spent(1000 + settings.DISCOVERY_CACHE_S - 1) == 0
    assert spent(1000 + settings.DISCOVERY_CACHE_S) == 1
    assert spent(1000) == 1
    assert spent(1030, cache_s=30) == 1
    assert spent(1059, cache_s=30) == 0
    assert spent(1031, fresh=True) == 1
    assert spent(1031 + 3599) == 0
    monkeypatch.setenv("MP_CACHE_S", "10")
    assert spent(1041) == 1
    assert spent(1050) == 0
    assert spent(1050, cache_s=0) == 1
    for wrong in ("-1", "inf", "an hour", "nan"):
        monkeypatch.setenv("MP_CACHE_S", wrong)
        with pytest.raises(ConfigError, match="MP_CACHE_S"):
            spent(1050)
    with pytest.raises(ConfigError, match="cache_s"):
        spent(1050, cache_s=-1)


def test_off_it_keeps_nothing(client: MixpanelClient, sandbox: Sandbox) -> None:
    for _ in range(2):
        Discovery(client, cache_s=0).events()
    assert (len(asked(sandbox)), cached()) == (2, [])


def test_answers_are_kept_by_question_user_project_and_origin(project: Project, sandbox: Sandbox) -> None:
    def spent(project: Project) -> int:
        with project.client() as client:
            try:
                Discovery(client).events()
            except AuthenticationError:  # another project, or another user
                assert len(sandbox.requests) == 1
        return len(asked(sandbox))

    own = project.credentials
    others = [
        Credentials("sandbox", "sandbox", "1", "us", workspace_id="9"),
        Credentials("other", "sandbox", "1", "us"),
        Credentials("sandbox", "sandbox", "2", "us"),
        Credentials("", "oauth-of-nobody", "1", "us", kind="oauth_token"),
        Credentials("", "oauth-of-another", "1", "us", kind="oauth_token"),
        Credentials("sandbox", "another secret", "1", "us"),
    ]
    assert spent(project) == 1
    for credentials in others:
        assert spent(replace(project, credentials=credentials)) == 1
    assert spent(replace(project, base_url=project.base_url.replace("127.0.0.1", "localhost"))) == 1  # type: ignore[union-attr]
    assert spent(replace(project, credentials=replace(own, region="eu"))) == 0  # one origin stands for every region
    with project.client() as client:
        discovery = Discovery(client)
        assert discovery.values("A", "plan", 1) == ["pro"]
        assert discovery.values("A", "plan", 2) == ["pro", "free"]
        assert discovery.events(1) == ["A"]


def test_who_has_another_token_is_not_told_what_was_answered_to_the_first(project: Project, sandbox: Sandbox) -> None:
    sandbox.oauth_token = "t0ken-of-one"
    for token, knows in (("t0ken-of-one", True), ("t0ken-of-two", False), ("t0ken-of-one", True)):
        credentials = Credentials("", token, "1", "us", kind="oauth_token")
        with replace(project, credentials=credentials).client() as client:
            if knows:
                assert Discovery(client).events() == ["A", "b", "é"]
            else:
                with pytest.raises(AuthenticationError):
                    Discovery(client).events()
    assert asked(sandbox) == ["/api/query/events/names"] * 2
    assert not [path for path in cached() if "t0ken" in path.read_text()]


def test_what_is_kept_is_for_its_owner_alone_and_holds_no_secret(project: Project, sandbox: Sandbox) -> None:
    sandbox.secret = "pl4nted"
    signed = Credentials("sandbox", "pl4nted", "1", "us")
    with replace(project, credentials=signed).client() as client:
        explore(Discovery(client))
        Discovery(client).projects()
        header = signed.authorization().partition(" ")[2]
    assert len(cached()) == 4
    for path in cached():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert "pl4nted" not in path.read_text()
        assert header not in path.read_text()
    assert stat.S_IMODE(cached()[0].parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "damage", [b"", b'{"question', b"[]", b"null", b"\xff\x00", b'{"asked_at": 0, "answer": 1}', None]
)
def test_a_damaged_answer_is_asked_for_again(damage: bytes | None, client: MixpanelClient, sandbox: Sandbox) -> None:
    Discovery(client).events()
    (path,) = cached()
    if damage is None:
        # One that ends in the middle.
        damage = path.read_bytes()[:-5]
    path.write_bytes(damage)
    assert Discovery(client).events() == ["A", "b", "é"]
    assert len(asked(sandbox)) == 2
    assert Discovery(client).events() == ["A", "b", "é"]
    assert asked(sandbox) == []


def test_where_nothing_can_be_kept_it_is_asked_for_each_time(client: MixpanelClient, sandbox: Sandbox) -> None:
    (settings.data_folder() / "discovery").write_text("a file is in the way")
    for _ in range(2):
        assert Discovery(client).events() == ["A", "b", "é"]
    assert len(asked(sandbox)) == 2


def test_a_ledger_in_memory_keeps_nothing_on_disk(project: Project, sandbox: Sandbox) -> None:
    ledger = RequestLedger(None, origin="x", project_id="1")
    with MixpanelClient(project.credentials, base_url=project.base_url, ledger=ledger) as client:
        Discovery(client).events()
    assert cached() == []


def test_an_error_is_not_kept(project: Project, sandbox: Sandbox) -> None:
    with replace(project, credentials=Credentials("sandbox", "wrong", "1", "us")).client() as client:
        for _ in range(2):
            with pytest.raises(AuthenticationError):
                Discovery(client).events()
    assert (len(asked(sandbox)), cached()) == (2, [])


def test_an_unknown_event_is_told_from_one_without_properties(client: MixpanelClient, sandbox: Sandbox) -> None:
    sandbox.add_events([{"event": "bare", "properties": {"time": 1709992800000, "distinct_id": "u"}}])
    discovery = Discovery(client)
    assert discovery.properties("bare") == []
    assert discovery.values("A", "nothing") == []
    with pytest.raises(EntityNotFoundError, match="no event 'C'"):
        discovery.properties("C")
    with pytest.raises(EntityNotFoundError, match="no event 'C'"):
        discovery.values("C", "plan")
    with pytest.raises(ConfigError, match="limit"):
        discovery.events(0)


def test_discovery_does_not_wait_for_the_hour_unless_told_to(project: Project, sandbox: Sandbox) -> None:
    with replace(project, wait=True).client() as client:
        client.ledger.penalize("query", 1800)
        for ask in (Discovery.events, Discovery.funnels, Discovery.cohorts):
            with pytest.raises(RateLimitError):
                ask(Discovery(client))
        assert Discovery(client).projects()  # the limit of another API
    assert len(asked(sandbox)) == 1


def test_odd_answers(quick: None) -> None:
    """Properties of sessions have no count; a value may be no text; lists may be nested once, or be none."""
    root = "https://mixpanel.com/api"
    with requests_mock.Mocker() as mock, MixpanelClient(Credentials("u", "s3cret", "7", "us"), retries=0) as client:
        discovery = Discovery(client, cache_s=0)
        mock.get(f"{root}/query/events/properties/top", json={"$duration_s": {}, "n": {"count": 2}})
        assert discovery.properties("A") == [{"property": "$duration_s", "count": None}, {"property": "n", "count": 2}]
        mock.get(f"{root}/query/events/properties/values", json=["x", 5, None])
        assert discovery.values("A", "n") == ["x", "5", "null"]
        mock.get(f"{root}/app/projects/7/bookmarks", json={"status": "ok", "results": [{"id": 1}]})
        assert discovery.bookmarks() == [{"id": 1}]
        assert mock.last_request.qs == {"v": ["2"]}
        mock.get(requests_mock.ANY, json={"status": "ok", "results": 5})
        for ask in (discovery.events, discovery.bookmarks, discovery.projects, discovery.funnels):
            with pytest.raises(ServerError):
                ask()
        mock.get(requests_mock.ANY, json=[])
        with pytest.raises(ServerError):
            discovery.properties("A")


# --- many processes


def _put_and_get(folder: Path, number: int) -> bool:
    cache = AnswerCache(folder)
    answer = [number] * 20_000
    for _ in range(50):
        cache.put(["same"], answer)
        kept = cache.get(["same"], 60)
        if kept is None or len(kept.answer) != 20_000 or len(set(kept.answer)) != 1:
            return False
    return True


def test_processes_that_write_the_same_answer_never_read_half_of_one(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.starmap(_put_and_get, [(tmp_path, number) for number in range(3)]) == [True] * 3
    assert len(list(tmp_path.iterdir())) == 1


def test_files_that_nobody_wants_any_more_are_removed(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path)
    cache.put(["old"], 1)
    (old,) = tmp_path.iterdir()
    os.utime(old, (0, 0))
    cache.put(["new"], 2)
    assert old not in tmp_path.iterdir()
    assert cache.get(["new"], 60) is not None
