"""dlt's traces that are kept of the last load packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import RunLoad, merge_broken_off
from export_lines import day_lines

from mixpanel_source import traces
from mixpanel_source.errors import WarehouseError
from mixpanel_source.sandbox import Sandbox
from mixpanel_source.traces import traces_folder
from mixpanel_source.warehouse import pipelines_folder


def kept(database: Path) -> list[Path]:
    return sorted(traces_folder(database).iterdir())


def test_the_traces_of_the_last_packages_are_kept_failed_ones_apart(
    run_load: RunLoad, sandbox: Sandbox, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "KEPT", 1)
    sandbox.set_day("2024-03-01", day_lines("2024-03-01", 3))
    run_load("2024-03-01", "2024-03-01")
    with merge_broken_off("events"), pytest.raises(WarehouseError):
        run_load("2024-03-01", "2024-03-01", refresh=True)
    [first, failed] = kept(database)
    assert failed.name.endswith("-events-failed.txt")
    assert failed.stat().st_mode & 0o077 == 0
    text = failed.read_text("utf-8")
    assert "the power is gone" in text
    assert "line " in text
    run_load("2024-03-01", "2024-03-01", refresh=True)
    assert first not in kept(database)
    assert [path.name.endswith("-events.txt") for path in kept(database)] == [False, True]
    assert "Step load COMPLETED" in kept(database)[1].read_text("utf-8")


def test_a_trace_that_cannot_be_kept_changes_nothing(run_load: RunLoad, sandbox: Sandbox, database: Path) -> None:
    pipelines_folder(database).mkdir(parents=True)
    traces_folder(database).write_text("in the way")
    assert run_load("2024-03-01", "2024-03-01").error is None


@pytest.mark.long
def test_dlt_shows_the_trace_of_the_last_package(run_load: RunLoad, sandbox: Sandbox, database: Path) -> None:
    sandbox.set_day("2024-03-01", day_lines("2024-03-01", 3))
    run_load("2024-03-01", "2024-03-01")
    command = [sys.executable, "-m", "dlt", "pipeline", "--pipelines-dir", str(pipelines_folder(database))]
    done = subprocess.run([*command, "mixpanel", "trace"], capture_output=True, text=True, check=True)
    assert "Step load COMPLETED" in done.stdout
