"""`python -m bench [EVENTS]`: ratios of this product to plain DuckDB and to plain dlt, all of one run.

Machines differ and are noisy, so nothing here is asserted: what counts is each ratio against the figure beside it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.generate import write_days

DATA = Path(__file__).parent / "data"
EVENTS_A_DAY = 100_000
SMALL_DAY = 10_000
RUNS = 3

Measures = dict[str, Any]


def run(case: str, *arguments: str) -> Measures:
    command = [sys.executable, "-m", "bench.cases", case, *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=DATA.parent.parent).stdout
    measures: Measures = json.loads(output.splitlines()[-1])
    return measures


@contextmanager
def served(folder: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "bench.serve", str(folder)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=DATA.parent.parent)
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.stdin.close()
        server.wait()


def product(url: str, days: int, *runs: str) -> Measures:
    with tempfile.TemporaryDirectory() as scratch:
        return run("product", url, str(days), f"{scratch}/product.duckdb", *runs)


def days_folder(days: int, events: int) -> Path:
    folder = DATA / str(events)
    write_days(folder, days, events)
    return folder


def median(measures: list[Measures], run_: str, what: str) -> float:
    return float(statistics.median(measure[run_][what] for measure in measures))


def main(events: int) -> None:
    days = max(1, events // EVENTS_A_DAY)
    console = Console(width=120, soft_wrap=True)
    console.print(f"{days * EVENTS_A_DAY:,} events in {days} days, {RUNS} runs of each, interleaved")
    folder = days_folder(days, EVENTS_A_DAY)
    anchors: list[Measures] = []
    bare_anchors: list[Measures] = []
    products: list[Measures] = []
    typed: list[Measures] = []
    plain: list[Measures] = []
    with served(folder) as url:
        for _ in range(RUNS):
            anchors.append(run("anchor", str(folder), str(days), "with"))
            products.append(product(url, days, "first", "reload"))
            typed.append(product(url, days, "typed"))
            bare_anchors.append(run("anchor", str(folder), str(days), "without"))
        for _ in range(RUNS):
            plain.append(run("dicts", url))

    table = Table("what", "CPU s", "wall s", "peak MB", "file MB", "CPU ratio", "wall ratio", "at most")
    base_cpu, base_wall = (median(anchors, "load", what) for what in ("cpu_s", "wall_s"))
    for name, measures, run_, most in (
        ("DuckDB by hand, the same columns", anchors, "load", ""),
        ("DuckDB by hand, without event_id", bare_anchors, "load", ""),
        ("first load", products, "first", "1.00"),
        ("reload of every day", products, "reload", "1.25"),
        ("first load, typed tables, too", typed, "typed", ""),
    ):
        cpu, wall = median(measures, run_, "cpu_s"), median(measures, run_, "wall_s")
        table.add_row(
            name,
            f"{cpu:.1f}",
            f"{wall:.1f}",
            f"{max(measure[run_]['peak_mb'] for measure in measures):.0f}",
            f"{measures[-1]['file_mb']:.0f}",
            f"{cpu / base_cpu:.2f}",
            f"{wall / base_wall:.2f}",
            most,
        )
    console.print(table)

    cpu, wall = (median(typed, "typed", what) / median(products, "first", what) for what in ("cpu_s", "wall_s"))
    ratios = {
        other: statistics.median(one["group_by"]["typed"] / one["group_by"][other] for one in typed)
        for other in ("by_hand", "json")
    }
    console.print(
        f"typed tables: a load takes {wall:.2f} times as long with them (at most 2.00; CPU {cpu:.2f}); a group by takes"
        f" {ratios['by_hand']:.2f} of that of a table made by hand (at most 1.20), of the JSON {ratios['json']:.3f}"
    )

    an_event = median(products, "first", "cpu_s") / (days * EVENTS_A_DAY)
    plain_event = median(plain, "load", "cpu_s") / EVENTS_A_DAY
    console.print(
        f"plain dlt, lists of dicts, {EVENTS_A_DAY:,} events: {plain_event * 1e6:.0f} us of CPU an event against"
        f" {an_event * 1e6:.0f}: {plain_event / an_event:.1f} times (at least 8)"
    )

    peak = max(measure["first"]["peak_mb"] for measure in products)
    with served(days_folder(3 * days, EVENTS_A_DAY)) as url:
        larger = product(url, 3 * days, "first")["first"]["peak_mb"]
    console.print(
        f"peak memory of a first load: {peak:.0f} MB (at most 700), of three times as much {larger:.0f} MB:"
        f" {larger / peak:.2f} times (at most 1.10)"
    )

    with served(days_folder(101, SMALL_DAY)) as url:
        after_1 = [product(url, 1, "first", "next") for _ in range(RUNS)]
        after_100 = [product(url, 100, "first", "next") for _ in range(RUNS)]
    small, large = median(after_1, "next", "cpu_s"), median(after_100, "next", "cpu_s")
    console.print(
        f"one more day of {SMALL_DAY:,} events into a table of 1 day {small:.2f} s of CPU, of 100 days {large:.2f} s:"
        f" {large / small:.2f} times (at most 1.20)"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
