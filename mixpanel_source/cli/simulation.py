"""`mpload plan --simulate`: what loads of some size would take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from mixpanel_source.cli.output import Format, write_record
from mixpanel_source.cli.words import counted, length
from mixpanel_source.errors import ConfigError

if TYPE_CHECKING:
    from mixpanel_source.cli.global_options import GlobalOptions
    from mixpanel_source.simulation import Machine, Server, Simulation


class Asked(NamedTuple):
    """What to load, as given."""

    events_per_day: int | None
    days: int | None
    projects: int | None
    workers: int | None
    bytes_per_event: float | None
    profiles: int | None


class Supposed(NamedTuple):
    """Of the machine and of Mixpanel, as given."""

    cores: float | None
    event_us: float | None
    package_s: float | None
    start_s: float | None
    first_byte_s: float | None
    mb_per_s: float | None
    failing: float | None
    measure: bool


def write_simulation(
    options: GlobalOptions,
    asked: Asked,
    supposed: Supposed,
    *,
    window_days: int | None,
    max_window_days: int | None,
    max_window_events: int | None,
    request_share: float | None,
) -> None:
    from mixpanel_source.planner import WindowLimits
    from mixpanel_source.simulation import Amount, simulate

    if asked.events_per_day is None or asked.days is None:
        raise ConfigError(
            "--simulate needs to know how much is to be loaded",
            hint="mpload plan --simulate --events-per-day 200000 --days 365",
        )
    given = {name: value for name, value in asked._asdict().items() if value is not None and name != "workers"}
    amount = Amount(**given)
    for name, value in (("window_days", window_days), ("max_window_days", max_window_days)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is a number from 1, not {value}")
    limits = {"days": max_window_days, "events": max_window_events}
    windows = WindowLimits(**{name: value for name, value in limits.items() if value is not None})
    if window_days is not None:
        windows = WindowLimits(window_days, None, None)
    machine, server = _machine_and_server(options, supposed, amount.bytes_per_event)
    found = simulate(
        amount,
        workers=1 if asked.workers is None else asked.workers,
        machine=machine,
        server=server,
        windows=windows,
        request_share=1.0 if request_share is None else request_share,
    )
    write_record(_in_words(found) if options.output is Format.TABLE else _record(found), options.output)


def _machine_and_server(options: GlobalOptions, supposed: Supposed, bytes_per_event: float) -> tuple[Machine, Server]:
    from dataclasses import replace

    from mixpanel_source.simulation import Machine, Server, available_cores

    machine, server = Machine(cores=available_cores()), Server()
    if supposed.measure:
        from mixpanel_source.machine_speed import measure

        options.say("measuring this machine by some small loads ...")
        measured = measure(bytes_per_event)
        machine, server = measured.machine, replace(server, compression=measured.compression)
    of_machine = {"cores": supposed.cores, "package_s": supposed.package_s, "start_s": supposed.start_s}
    if supposed.event_us is not None:
        of_machine |= {"event_s": supposed.event_us / 1e6, "typed_event_s": 0.0}
    of_server = {
        "first_byte_s": supposed.first_byte_s,
        "bytes_per_s": None if supposed.mb_per_s is None else supposed.mb_per_s * 1e6,
        "failing": supposed.failing,
    }
    return replace(machine, **_given(of_machine)), replace(server, **_given(of_server))


def _given(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def _record(found: Simulation) -> dict[str, Any]:
    return {
        **asdict(found.amount),
        "workers": found.workers,
        "events": found.amount.events,
        "requests": found.requests["export"],
        "query_requests": found.requests["query"],
        "seconds": round(found.seconds, 1),
        "bound_by": found.bound_by,
        "seconds_without": {bound: round(seconds, 1) for bound, seconds in found.seconds_without.items()},
        "quota_s": round(found.quota_s, 1),
        "cpu_s": round(found.cpu_s, 1),
        "load_packages": found.packages,
        "received_bytes": found.received_bytes,
        "spool_bytes": found.spool_bytes,
        "database_bytes": found.database_bytes,
        "machine": asdict(found.machine),
        "server": asdict(found.server),
    }


_BOUNDS = {
    "quota": "the request limits",
    "cpu": "the processors",
    "server": "Mixpanel's answers on their way",
}


def _in_words(found: Simulation) -> dict[str, str]:
    """For eyes: a line each."""
    from rich.filesize import decimal

    amount, machine, server = found.amount, found.machine, found.server
    without = [f"{length(seconds)} without {_BOUNDS[bound]}" for bound, seconds in found.seconds_without.items()]
    each = "" if amount.projects == 1 else f", {counted(amount.projects, 'project')}"
    return {
        "to load": f"{counted(amount.events, 'event')}: {amount.events_per_day:,} a day of"
        f" {amount.bytes_per_event:,.0f} bytes, {counted(amount.days, 'day')}{each}",
        "requests": f"{found.requests['export']:,} of the export, {found.requests['query']:,} of queries",
        "quota": f"{length(found.quota_s)} for {'all' if amount.projects == 1 else 'each project'}",
        "CPU": f"{length(found.cpu_s)}, {machine.cores:g} cores",
        "time": f"{length(found.seconds)} by {counted(found.workers, 'worker')}, bound by {_BOUNDS[found.bound_by]}",
        "": "\n".join(without),
        "received": decimal(found.received_bytes),
        "spool": f"{decimal(found.spool_bytes)} at the most",
        "database": decimal(found.database_bytes),
        "supposed": f"{(machine.event_s + machine.typed_event_s) * 1e6:.0f} us of CPU an event, {machine.start_s:.1f} s"
        f" a start, {machine.package_s:.1f} s a load package; {server.first_byte_s:g} s to the first byte,"
        f" {server.bytes_per_s / 1e6:g} MB a second"
        + (f", {server.failing:.3g} of the exports end half way" if server.failing else ""),
    }
