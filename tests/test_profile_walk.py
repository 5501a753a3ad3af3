"""A walk over the profiles, page by page: what ends it, what breaks it, what it counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mixpanel_source.bodies import Spool
from mixpanel_source.errors import IncompleteExportError, QueryError, ServerError
from mixpanel_source.profile_walk import ProfileWalk, WalkBrokenError, read_page

Told = list[tuple[int, int | None]]


def rows(*ids: Any) -> list[Any]:
    return [{"$distinct_id": id_, "$properties": {}} for id_ in ids]


def walk(folder: Path, *pages: Any, told: Told | None = None, max_bytes: int = 10**6) -> Any:
    """A walk over what is answered page by page: a body's object, or an error."""
    left = list(pages)
    forms: list[dict[str, str]] = []

    def ask(form: Mapping[str, str]) -> tuple[bytes, dict[str, Any]]:
        forms.append(dict(form))
        page = left.pop(0)
        if isinstance(page, Exception):
            raise page
        body = json.dumps(page).encode()
        return body, read_page(body)

    def on_page(profiles: int, total: int | None) -> None:
        if told is not None:
            told.append((profiles, total))

    with ProfileWalk(ask, {"where": "x"}, on_page, max_bytes).run(Spool(folder, "p-")) as found:
        assert not left
        assert [form.get("page") for form in forms] == [None, *map(str, range(1, len(pages)))]
        return found.profiles, found.distinct, found.total


def page(*ids: Any, size: int = 2, **more: Any) -> dict[str, Any]:
    return {"results": rows(*ids), "page_size": size, "session_id": "s", **more}


def test_results_without_an_id_count_on_every_page_and_no_two_are_the_same(tmp_path: Path) -> None:
    told: Told = []
    counted = walk(tmp_path, page(None, "a", total=4), page({"an": "object"}, "b"), page(), told=told)
    assert counted == (4, 4, 4)
    assert told == [(2, 4), (4, 4), (4, 4)]


def test_a_project_without_profiles_is_a_whole_walk(tmp_path: Path) -> None:
    assert walk(tmp_path, page(total=0)) == (0, 0, 0)


def test_a_walk_that_gave_fewer_than_it_said_is_broken(tmp_path: Path) -> None:
    with pytest.raises(WalkBrokenError) as broken:
        walk(tmp_path, page("a", "b", total=4), page("b", "c"), page())
    assert "3 different profiles came of 4" in broken.value.error.message
    assert broken.value.error.hint == "try again later"


def test_a_total_that_is_no_number_a_count_can_be_is_not_known(tmp_path: Path) -> None:
    for total in ("many", -1, None):
        assert walk(tmp_path, page("a", total=total)) == (1, 1, None)


@pytest.mark.parametrize("total", [10**18 - 1, 10**18, 10**4_000], ids=["18 digits", "19 digits", "4001 digits"])
def test_a_total_of_however_many_digits_is_more_than_came(tmp_path: Path, total: int) -> None:
    with pytest.raises(WalkBrokenError):
        walk(tmp_path, page("a", total=total))


def test_a_page_that_comes_twice_and_a_full_one_without_a_session_break_it(tmp_path: Path) -> None:
    with pytest.raises(WalkBrokenError) as broken:
        walk(tmp_path, page("a", "b"), page("a", "b"))
    assert "the same page came twice" in broken.value.error.message
    with pytest.raises(WalkBrokenError) as broken:
        walk(tmp_path, {"results": rows("a", "b"), "page_size": 2})
    assert "a full page came without a session_id" in broken.value.error.message


@pytest.mark.parametrize("text", ["Request for page in Uncached query", "unknown SESSION"])
def test_a_session_that_ended_breaks_it_and_another_refusal_is_told(text: str, tmp_path: Path) -> None:
    with pytest.raises(WalkBrokenError):
        walk(tmp_path, page("a", "b"), QueryError(text))
    with pytest.raises(WalkBrokenError):
        walk(tmp_path, page("a", "b"), ServerError("away"))
    with pytest.raises(QueryError, match="bad expression"):
        walk(tmp_path, page("a", "b"), QueryError("bad expression"))
    with pytest.raises(QueryError):
        walk(tmp_path, QueryError(text))


def test_many_ids_are_told_apart(tmp_path: Path) -> None:
    ids = [f"id-{number}" for number in range(20_000)]
    assert walk(tmp_path, page(*ids, size=30_000, total=20_000)) == (20_000, 20_000, 20_000)


def test_a_page_that_only_duckdb_takes_for_json_is_read_all_the_same() -> None:
    found = read_page(b'{"results":[{"$distinct_id":"a",},{"$distinct_id":7},5,],"total":3,"session_id":"s",}')
    assert found["total"] == "3"
    assert found["session_id"] == "s"
    assert found["results"] == [{"$distinct_id": "a"}, {"$distinct_id": "7"}, {"$distinct_id": None}]
    with pytest.raises(ValueError, match="expected"):
        read_page(b'{"results":[')


def test_a_walk_that_never_ends_is_given_up(tmp_path: Path) -> None:
    pages = [page(f"a{n}", f"b{n}") for n in range(100)]
    with pytest.raises(IncompleteExportError, match="more than 5000 bytes"):
        walk(tmp_path, *pages, max_bytes=5000)
    assert list(tmp_path.iterdir()) == []
