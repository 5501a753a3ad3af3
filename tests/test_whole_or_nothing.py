"""A day is loaded whole or not at all, wherever its export breaks."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import get_args

import pytest
from conftest import NO_LIMITS, NOW, RunLoad, Sql
from export_lines import at, day_lines, line

from mixpanel_source.client import MixpanelClient
from mixpanel_source.credentials import Credentials
from mixpanel_source.errors import IncompleteExportError, MixpanelDataError, ServerError
from mixpanel_source.exports import read_export
from mixpanel_source.project import Project
from mixpanel_source.rate_limit import RequestLedger
from mixpanel_source.sandbox import Fault, Sandbox, SandboxServer
from mixpanel_source.sandbox.data import gzipped
from mixpanel_source.sandbox.faults import Framing
from mixpanel_source.windows import Window

DAY = "2024-03-05"
WINDOW = Window.of(date(2024, 3, 5))
SMALL = [b'{"event":"E","properties":{"time":%d,"n":%d}}' % (at(DAY, n), n) for n in range(6)]
"""Short enough to come plain."""
LARGE = [line(at(DAY, n), n, text="\u2028 some text of its own " * 2) for n in range(10)]
"""Long enough to come as gzip."""
FRAMINGS: tuple[Framing, ...] = get_args(Framing)

Export = Callable[[], list[str]]


@pytest.fixture
def export(server: SandboxServer, tmp_path: Path) -> Iterator[Export]:
    """Exports the day once, with no other try, and gives the properties of its rows."""
    credentials = Credentials("sandbox", "sandbox", "1", "us")
    ledger = RequestLedger(None, origin="test", project_id="1", limits=NO_LIMITS)
    project = Project(credentials)
    with MixpanelClient(
        credentials, base_url=server.url, retries=0, ledger=ledger, spool_folder=tmp_path / "spool"
    ) as client:

        def once() -> list[str]:
            with client.export(WINDOW) as body, read_export(body, WINDOW, project, NOW).held as held:
                return [text for table in held for text in table.column("properties").to_pylist()]

        yield once
    assert list((tmp_path / "spool").iterdir()) == []


def whole(lines: list[bytes]) -> list[str]:
    return [text.decode().partition('"properties":')[2][:-1] for text in lines]


def sent_bytes(sandbox: Sandbox, lines: list[bytes]) -> int:
    """Bytes of the day's body as it is sent: over 1400 bytes it is gzip."""
    block = sandbox.events.block(WINDOW.first, True)
    assert (len(block.plain) > 1400) == (lines is LARGE)
    return len(b"".join(gzipped([block], sandbox.gzip_level))) if lines is LARGE else len(block.plain)


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("lines", [SMALL, LARGE], ids=["plain", "gzip"])
def test_a_body_cut_after_any_byte_gives_no_row(
    sandbox: Sandbox, export: Export, framing: Framing, lines: list[bytes]
) -> None:
    sandbox.set_day(DAY, lines)
    size = sent_bytes(sandbox, lines)
    sent_whole = 0
    for after in range(size + 1):
        sandbox.faults.next("export", Fault.cut(after, framing=framing, chunk_size=100))
        try:
            rows = export()
        except IncompleteExportError:
            continue
        # Only the last byte makes it whole; chunks need their end mark besides, and a bare plain body proves nothing.
        assert after == size
        assert rows == whole(lines)
        sent_whole += 1
    assert sent_whole == (framing == "content-length" or (framing == "close" and lines is LARGE))
    sandbox.faults.next("export", Fault.framed(framing=framing, chunk_size=7))
    if framing == "close" and lines is SMALL:
        with pytest.raises(IncompleteExportError, match="nothing shows whether it is all"):
            export()
    else:
        assert export() == whole(lines)


@pytest.mark.parametrize("framing", ["chunked", "content-length"])
def test_a_body_cut_short_and_ended_as_if_whole_gives_no_part_of_a_line(
    sandbox: Sandbox, export: Export, framing: Framing
) -> None:
    sandbox.set_day(DAY, SMALL)
    ends = {sum(len(text) + 1 for text in SMALL[:n]) for n in range(7)}
    ends |= {end - 1 for end in ends if end}  # the last line may come without its newline
    for after in range(sent_bytes(sandbox, SMALL) + 1):
        sandbox.faults.next("export", Fault.cut(after, framing=framing, end="clean"))
        if after in ends:
            # Nothing in such a body tells: it is what a smaller day looks like.
            assert export() == whole(SMALL)[: (after + 1) // (len(SMALL[0]) + 1)]
        else:
            with pytest.raises(IncompleteExportError):
                export()


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_gzip_body_cut_short_and_ended_as_if_whole_gives_no_row(
    sandbox: Sandbox, export: Export, framing: Framing
) -> None:
    sandbox.set_day(DAY, LARGE)
    for after in range(1, sent_bytes(sandbox, LARGE)):
        sandbox.faults.next("export", Fault.cut(after, framing=framing, end="clean"))
        with pytest.raises(IncompleteExportError):
            export()


BROKEN = {
    "terminated early": Fault.terminated_early("terminated early"),
    "export terminated early": Fault.terminated_early(),
    "half a line": Fault.half_last_line(),
    "one byte of a line": Fault.half_last_line(1),
    "an error object in the middle": Fault.error_line(),
    "an error object alone": Fault.error_in_200(),
    "a reset": Fault.reset(),
    "a close": Fault.reset(end="close"),
    "a reset in the middle": Fault.cut(100, end="reset"),
    "a web page": Fault.html(),
    "a server error": Fault.http(502),
}


def broken(lines: list[bytes]) -> dict[str, Fault]:
    return {**BROKEN, "a line but its last byte": Fault.half_last_line(len(lines[-1]) - 1)}


@pytest.mark.parametrize("name", broken(SMALL))
@pytest.mark.parametrize("lines", [SMALL, LARGE], ids=["plain", "gzip"])
def test_an_export_that_broke_gives_no_row(sandbox: Sandbox, export: Export, name: str, lines: list[bytes]) -> None:
    sandbox.set_day(DAY, lines)
    sandbox.faults.next("export", broken(lines)[name])
    with pytest.raises((IncompleteExportError, ServerError)):
        export()
    assert export() == whole(lines)


@pytest.mark.parametrize("lines", [SMALL, LARGE], ids=["plain", "gzip"])
def test_a_last_line_without_its_newline_is_whole(sandbox: Sandbox, export: Export, lines: list[bytes]) -> None:
    sandbox.set_day(DAY, lines)
    sandbox.faults.next("export", Fault.no_final_newline())
    assert export() == whole(lines)


@pytest.mark.parametrize("body", [b"", b"\n", b"\n\n", b" \n"])
def test_an_empty_body_is_an_empty_day(sandbox: Sandbox, export: Export, body: bytes) -> None:
    sandbox.set_day(DAY, SMALL)
    sandbox.faults.next("export", Fault.body(body))
    assert export() == []


# --- through the whole of a load


def loaded(sql: Sql) -> Counter[tuple[str, str]]:
    return Counter(sql("select event_date::varchar, properties::varchar from events"))


@pytest.mark.parametrize("lines", [SMALL, LARGE], ids=["plain", "gzip"])
def test_a_broken_export_leaves_the_day_as_it_was_and_a_retry_makes_it_whole(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project, lines: list[bytes]
) -> None:
    old = day_lines(DAY, 9)
    sandbox.set_day(DAY, old)
    run_load(DAY, DAY)
    before = sql("select * from events order by event_id"), sql("select * from event_days")
    sandbox.set_day(DAY, lines)
    rng = random.Random(f"{len(lines)}")
    cuts = [Fault.cut(rng.randrange(20, 250), framing=framing) for framing in ("chunked", "content-length")]
    faults = [*broken(lines).values(), *cuts]
    for fault in rng.sample(faults, 2):
        sandbox.faults.next("export", fault)
        with pytest.raises(MixpanelDataError):
            run_load(DAY, DAY, refresh=True, project=replace(project, retries=0))
        assert (sql("select * from events order by event_id"), sql("select * from event_days")) == before
    sandbox.faults.next("export", *faults)
    run_load(DAY, DAY, refresh=True, project=replace(project, retries=len(faults)))
    assert sandbox.faults.waiting == 0
    assert loaded(sql) == Counter((DAY, text) for text in whole(lines))
    assert sql("select rows, complete, requests, attempts from event_days") == [
        (len(lines), True, len(faults) + 1, len(faults) + 1)
    ]
    assert sql("select * from rejected_lines") == []


def test_a_day_that_never_came_whole_is_not_there_at_all(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project
) -> None:
    days = ["2024-03-04", "2024-03-05", "2024-03-06"]
    for day in days:
        sandbox.set_day(day, day_lines(day, 20))
    # It breaks twice as a whole, and twice for its one event.
    sandbox.faults.next("export", Fault.none(), *[Fault.cut(700)] * 4)
    result = run_load(
        days[0], days[-1], project=replace(project, retries=1, window_days=1, concurrent_exports=1), raises=False
    )
    assert isinstance(result.error, IncompleteExportError)
    assert {day for day, _ in loaded(sql)} == {"2024-03-04", "2024-03-06"}
    assert sql("select day::varchar, rows, complete from event_days order by day") == [
        ("2024-03-04", 20, True),
        ("2024-03-06", 20, True),
    ]
    run_load(days[0], days[-1])
    assert Counter(day for day, _ in loaded(sql).elements()) == dict.fromkeys(days, 20)


def test_an_empty_day_is_complete_and_empties_what_was_there(run_load: RunLoad, sandbox: Sandbox, sql: Sql) -> None:
    sandbox.set_day(DAY, SMALL)
    run_load(DAY, DAY)
    sandbox.faults.next("export", Fault.empty(), Fault.empty())
    result = run_load(DAY, DAY, refresh=True)
    assert sql("select * from events") == []
    assert sql("select day::varchar, rows, requests, complete from event_days") == [(DAY, 0, 2, True)]
    assert result.warnings == [f"{DAY} has 0 events now, and had {len(SMALL)}"]


def test_one_empty_answer_does_not_empty_a_day(run_load: RunLoad, sandbox: Sandbox, sql: Sql) -> None:
    sandbox.set_day(DAY, SMALL)
    run_load(DAY, DAY)
    sandbox.faults.next("export", Fault.empty())
    result = run_load(DAY, DAY, refresh=True)
    assert loaded(sql) == Counter((DAY, text) for text in whole(SMALL))
    assert sql("select rows, requests, complete from event_days") == [(len(SMALL), 2, True)]
    assert result.warnings == []


@pytest.mark.parametrize(("window_days", "requests"), [(1, 10), (None, 1)])
def test_through_a_storm_of_faults_every_day_is_exact(
    window_days: int | None, requests: int, run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project
) -> None:
    expected: Counter[tuple[str, str]] = Counter()
    for number in range(1, 11):
        day = f"2024-03-{number:02d}"
        lines = [line(at(day, n / 2), n, text="x" * 40 * number) for n in range(3 * number)]
        sandbox.set_day(day, lines)
        expected.update((day, text) for text in whole(lines))
    profiles = [{"$distinct_id": f"u{n}", "$properties": {"n": n}} for n in range(25)]
    sandbox.set_profiles(profiles)
    sandbox.page_size = 10
    sandbox.faults.random(seed=7, share=0.5)
    patient = replace(project, retries=40, window_days=window_days)
    run_load("2024-03-01", "2024-03-10", project=patient, resources=("events", "profiles"))
    assert loaded(sql) == expected
    assert sorted(sql("select distinct_id from profiles")) == sorted((f"u{n}",) for n in range(25))
    assert sql("select count(*), count(*) filter (complete) from event_days") == [(10, 10)]
    assert sql(f"select sum(attempts) > {requests} from event_days") == [(True,)]
