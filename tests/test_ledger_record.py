"""The arithmetic of the request ledger: what may be sent, by what is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixpanel_source.ledger.clock import Reading, carried
from mixpanel_source.ledger.record import (
    ARRIVAL_S,
    ASLEEP_S,
    LONGEST_HOLD_S,
    MARGIN_S,
    Limits,
    Record,
    Request,
    Turn,
    loaded,
)

HOUR = Limits(((3, 100.0),), at_once=9)
NOW = 1000.0


def sent(*times: float) -> list[Request]:
    return [Request(str(number), "h", at, at, is_over=True) for number, at in enumerate(times)]


@pytest.mark.parametrize(
    ("times", "nth", "wait"),
    [
        ((), 1, 0.0),
        ((990, 991), 1, 0.0),
        ((990, 991, 992), 1, 90.0 + MARGIN_S),
        ((990, 991, 992), 2, 91.0 + MARGIN_S),
        ((990, 991, 992), 4, 90.0 + 100.0 + 2 * MARGIN_S),
        ((991,), 3, 91.0 + MARGIN_S),
        ((), 4, 100.0 + MARGIN_S),
        ((899, 990, 991), 1, 0.0),
    ],
)
def test_the_nth_request_waits_for_those_before_it(times: tuple[float, ...], nth: int, wait: float) -> None:
    assert Record(sent(*times)).wait_s(HOUR, NOW, nth) == pytest.approx(wait)


def test_a_request_without_an_answer_counts_as_of_now_for_a_while() -> None:
    record = Record([Request("a", "h", since=NOW)])
    assert record.wait_s(Limits(((1, 100.0),), 9), NOW + ARRIVAL_S / 2) == pytest.approx(100 + MARGIN_S)
    assert record.wait_s(Limits(((1, 100.0),), 9), NOW + ARRIVAL_S + 20) == pytest.approx(80 + MARGIN_S)


def test_who_comes_later_goes_out_only_where_there_is_room_for_those_before() -> None:
    record = Record(sent(990, 991), [Turn("first", "h", NOW)])
    assert record.take("second", "h", HOUR, NOW) is not None
    assert record.take("first", "h", HOUR, NOW) is None
    assert [turn.id for turn in record.queue] == ["second"]


def test_who_was_stopped_keeps_nobody_waiting() -> None:
    record = Record(sent(990, 991), [Turn("stopped", "h", NOW)])
    assert record.take("second", "h", HOUR, NOW + ASLEEP_S + 0.1) is None


def test_what_a_dead_process_had_under_way_was_sent_when_that_is_found() -> None:
    record = Record(
        [Request("a", "dead", since=NOW), Request("b", "alive", since=NOW)],
        [Turn("c", "dead", NOW), Turn("d", "alive", NOW)],
    )
    record.tidy(HOUR, NOW + 10, lambda holder: holder == "alive")
    assert [(one.arrived, one.is_over) for one in record.requests] == [(NOW + 10, True), (None, False)]
    assert [turn.id for turn in record.queue] == ["d"]


def test_only_what_no_limit_counts_any_more_is_forgotten() -> None:
    record = Record([*sent(899.9, 899.96), Request("under way", "h", since=0.0)])
    record.tidy(HOUR, NOW, lambda holder: True)
    assert [one.since for one in record.requests] == [899.96, 0.0]


BEFORE = Reading("boot 1", now=500.0, wall=10_000.0)
FULL = Record(sent(480.0, 490.0, 500.0), [Turn("t", "h", 501.0)], hold_until=530.0)


@pytest.mark.parametrize(
    ("present", "wait"),
    [
        (Reading("boot 1", 510.0, 10_010.0), 70.0),
        (Reading("boot 1", 510.0, 99_999.0), 70.0),  # the wall clock does not matter
        (Reading("boot 1", 510.0, 1.0), 70.0),
        (Reading("boot 2", 8.0, 10_060.0), 20.0),  # started again: by the wall clock
        (Reading("boot 2", 8.0, 10_500.0), 0.0),
        (Reading("boot 2", 8.0, 1.0), 100.0),  # which was set back
        (Reading("", 10_060.0, 10_060.0), 20.0),
    ],
)
def test_a_record_is_read_by_the_clock_there_is(present: Reading, wait: float) -> None:
    full = replace(FULL, hold_until=None)
    found = loaded(full.dumped(BEFORE), present).wait_s(HOUR, present.now)
    assert found == pytest.approx(wait + MARGIN_S if wait else 0.0)


@given(shift=st.floats(-1e9, 1e9), reboot=st.booleans())
def test_no_clock_makes_a_wait_longer_than_it_can_be(shift: float, reboot: bool) -> None:
    present = Reading("boot 2", 3.0, 10_000.0 + shift) if reboot else Reading("", 10_000 + shift, 10_000 + shift)
    record = loaded(FULL.dumped(BEFORE), present)
    assert record.wait_s(HOUR, present.now) <= LONGEST_HOLD_S + 0.01
    record.hold_until = None
    assert record.wait_s(HOUR, present.now) <= 100 + MARGIN_S + 0.01


def test_a_moment_keeps_its_distance_over_a_restart() -> None:
    assert carried(490.0, BEFORE, Reading("boot 2", 7.0, 10_020.0)) == -23.0


@pytest.mark.parametrize("text", ["", "[]", "null", '{"hits": [1.0]}', '{"written": ["", 1, 1], "requests": [[]]}'])
def test_a_record_that_cannot_be_read_counts_as_empty(text: str) -> None:
    assert loaded(text, BEFORE) == Record()


@given(st.data())
def test_whatever_happens_mixpanel_sees_no_more_than_the_limits_allow(data: Any) -> None:
    """Requests of processes that are slow, die and fall asleep, each seen at any moment it could have arrived at."""
    limits = Limits(((5, 50.0), (3, 3.0)), at_once=2)
    record, now = Record(), 0.0
    under_way: dict[str, tuple[str, float]] = {}
    seen: list[float] = []
    dead: set[str] = set()
    number = 0
    for _ in range(data.draw(st.integers(1, 60))):
        now += data.draw(st.floats(0.0, 8.0))
        record.tidy(limits, now, lambda holder: holder not in dead)
        action = data.draw(st.sampled_from(["ask", "ask", "ask", "end", "die"]))
        if action == "ask":
            waiting = [turn.id for turn in record.queue]
            name = data.draw(st.sampled_from([*waiting, f"r{number}"]))
            number += 1
            holder = next((turn.holder for turn in record.queue if turn.id == name), f"h{number % 3}{len(dead)}")
            if record.take(name, holder, limits, now) is None:
                under_way[name] = holder, now
        elif under_way and action == "end":
            name = data.draw(st.sampled_from(sorted(under_way)))
            _, since = under_way.pop(name)
            seen.append(data.draw(st.floats(since, min(now, since + ARRIVAL_S))))
            record.over(name, now)
        elif under_way:
            holder = data.draw(st.sampled_from(sorted({holder for holder, _ in under_way.values()})))
            dead.add(holder)
            record.tidy(limits, now, lambda holder: holder not in dead)
            for name in [name for name, (of, _) in under_way.items() if of == holder]:
                _, since = under_way.pop(name)
                seen.append(data.draw(st.floats(since, min(now, since + ARRIVAL_S))))
        assert len(under_way) <= limits.at_once
    seen.sort()
    for allowed, period_s in limits.rates:
        assert all(later - earlier > period_s for earlier, later in zip(seen, seen[allowed:], strict=False))
