"""What is known of one API family's requests, and what may be sent by that. Plain arithmetic: no clock, no file.

Moments are seconds of one clock. A request counts from the latest moment at which it may have reached Mixpanel, so
that Mixpanel never sees two requests closer together than they are here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mixpanel_source.ledger.clock import Reading, carried

MARGIN_S: Final = 0.05
"""Added to every period: clocks do not go quite alike."""
ARRIVAL_S: Final = 10.0
"""So long after it was permitted, a request that has no answer yet is taken to have reached Mixpanel."""
LONGEST_HOLD_S: Final = 3600.0 + 60.0
LOOK_EVERY_S: Final = 1.0
"""How often whoever is not the first in the queue looks again: those before it may have given up."""
PLACE_LOOK_S: Final = 0.2
"""The same where all places for requests at once are taken: nobody knows until when."""
ASLEEP_S: Final = 5.0
"""Who is so late to look again, has been stopped, or has a machine that sleeps: others are not kept waiting."""


class Limits(NamedTuple):
    """What one API family of a project allows."""

    rates: Sequence[tuple[int, float]]
    """(requests, seconds)"""
    at_once: int

    @property
    def longest(self) -> tuple[int, float]:
        return max(self.rates, key=lambda rate: rate[1])


class Wait(NamedTuple):
    """Nothing was permitted."""

    seconds: float
    """Until it will be, by what is known."""
    look_s: float
    """When to ask again at the latest."""


@dataclass
class Request:
    """A request that was permitted."""

    id: str
    holder: str
    """The process that sends it."""
    since: float
    arrived: float | None = None
    """When it certainly had reached Mixpanel; None: nobody knows yet."""
    is_over: bool = False

    def counts_at(self, now: float) -> float:
        return min(now, self.since + ARRIVAL_S if self.arrived is None else self.arrived)


@dataclass
class Turn:
    """Somebody who waits in the queue."""

    id: str
    holder: str
    looks_at: float


@dataclass
class Record:
    """The requests that still count, and the queue of those that wait, the first in front."""

    requests: list[Request] = field(default_factory=list)
    queue: list[Turn] = field(default_factory=list)
    hold_until: float | None = None
    """No request before, as a 429 asked for."""

    def take(self, id_: str, holder: str, limits: Limits, now: float) -> Wait | None:
        """None where the request `id_` is permitted now; otherwise it has its place in the queue."""
        before = 0
        for turn in self.queue:
            if turn.id == id_:
                break
            before += turn.looks_at + ASLEEP_S >= now
        wait_s = self.wait_s(limits, now, nth=before + 1)
        if wait_s == 0.0 and self.under_way + before < limits.at_once:
            self.leave(id_)
            self.requests.append(Request(id_, holder, since=now))
            return None
        wait_s = wait_s or PLACE_LOOK_S
        wait = Wait(wait_s, min(wait_s, LOOK_EVERY_S) if before else wait_s)
        for turn in self.queue:
            if turn.id == id_:
                turn.looks_at = now + wait.look_s
                return wait
        self.queue.append(Turn(id_, holder, now + wait.look_s))
        return wait

    def leave(self, id_: str) -> None:
        """Gives the place in the queue up."""
        self.queue = [turn for turn in self.queue if turn.id != id_]

    def arrived(self, id_: str, now: float) -> None:
        """Mixpanel has answered, or will not any more."""
        for request in self.requests:
            if request.id == id_ and request.arrived is None:
                request.arrived = request.counts_at(now)

    def over(self, id_: str, now: float) -> None:
        """Gives the place among the requests at once back."""
        self.arrived(id_, now)
        for request in self.requests:
            if request.id == id_:
                request.is_over = True

    def hold(self, seconds: float, now: float) -> None:
        until = now + min(max(seconds, 0.0), LONGEST_HOLD_S)
        self.hold_until = until if self.hold_until is None else max(self.hold_until, until)

    def tidy(self, limits: Limits, now: float, is_alive: Callable[[str], bool]) -> None:
        """Forgets what does not count any more. What dead processes had under way counts as of now."""
        holders = {request.holder for request in self._running} | {turn.holder for turn in self.queue}
        alive = {holder: is_alive(holder) for holder in holders}
        for request in self._running:
            if not alive[request.holder]:
                self.over(request.id, now)
        self.queue = [turn for turn in self.queue if alive[turn.holder]]
        since = now - limits.longest[1] - MARGIN_S
        self.requests = [one for one in self.requests if not one.is_over or one.counts_at(now) > since]

    @property
    def under_way(self) -> int:
        return len(self._running)

    @property
    def _running(self) -> list[Request]:
        return [request for request in self.requests if not request.is_over]

    def used(self, period_s: float, now: float) -> int:
        return sum(request.counts_at(now) + period_s + MARGIN_S > now for request in self.requests)

    def wait_s(self, limits: Limits, now: float, nth: int = 1) -> float:
        """Until the rates let `nth` more requests out: at least so long, as what is under way counts as of now."""
        counted = sorted(request.counts_at(now) for request in self.requests)
        free_at = now if self.hold_until is None else self.hold_until
        for allowed, period_s in limits.rates:
            rounds, behind = divmod(nth - 1, allowed)
            first_at = counted[behind - allowed] + period_s + MARGIN_S if len(counted) >= allowed - behind else now
            free_at = max(free_at, max(first_at, now) + rounds * (period_s + MARGIN_S))
        # Below a millisecond it is the rounding of the clock, and sleeping it may not move the clock.
        return wait if (wait := free_at - now) >= 0.001 else 0.0

    def dumped(self, written: Reading) -> str:
        return json.dumps(
            {
                "written": written,
                "requests": [[r.id, r.holder, r.since, r.arrived, r.is_over] for r in self.requests],
                "queue": [[turn.id, turn.holder, turn.looks_at] for turn in self.queue],
                "hold_until": self.hold_until,
            }
        )


def loaded(text: str | None, present: Reading) -> Record:
    """A record by the clock of `present`; an empty one where there is none that can be read.

    Nothing was sent in the future, and no wait is longer than it can be: a wall clock that was set back makes waits
    longer, up to the whole period.
    """
    if text is None:
        return Record()
    try:
        stored = json.loads(text)
        boot, now, wall = stored["written"]
        written = Reading(str(boot), float(now), float(wall))

        def moment(at: float, latest_s: float = 0.0) -> float:
            return min(carried(float(at), written, present), present.now + latest_s)

        return Record(
            [
                Request(str(id_), str(holder), moment(since), None if at is None else moment(at), bool(is_over))
                for id_, holder, since, at, is_over in stored["requests"]
            ],
            [Turn(str(id_), str(holder), moment(at, LONGEST_HOLD_S)) for id_, holder, at in stored["queue"]],
            None if (until := stored["hold_until"]) is None else moment(until, LONGEST_HOLD_S),
        )
    except (ValueError, TypeError, KeyError, OverflowError):
        return Record()
