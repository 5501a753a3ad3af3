"""What `mpload init` writes, run as its users do; and dlt's own commands after it, and after a load of mpload."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest
from conftest import RunLoad

from mixpanel_source.errors import ConfigError, WarehouseError
from mixpanel_source.new_project import init_project
from mixpanel_source.sandbox import Sandbox, SandboxServer, demo_folder
from mixpanel_source.settings import SANDBOX_PORT
from mixpanel_source.status import info

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
DLT_COMMANDS = ("info", "trace", "schema", "failed-jobs")

Command = Callable[..., str]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Runs a program in a folder, with nothing of the user's own; what it says."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "MP_DATA_DIR")}
    environment = {**kept, "PYTHONPATH": str(ROOT), "DLT_DATA_DIR": str(tmp_path / "dlt")}

    def run(folder: Path, arguments: Sequence[str | Path]) -> str:
        done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert "ERROR" not in said  # dlt may end with 0 all the same
        return said

    return run


@pytest.fixture
def demo_server() -> Iterator[SandboxServer]:
    with SandboxServer(Sandbox(demo_folder(), now=datetime(2013, 3, 29, tzinfo=UTC))) as server:
        yield server


def exports(sandbox: Sandbox) -> int:
    return sum(request.endpoint == "export" for request in sandbox.requests)


def rows_in(database: Path) -> tuple[int, ...]:
    with duckdb.connect(str(database), read_only=True) as connection:
        found = connection.execute(
            "SELECT count(*), count(DISTINCT event_id), count(DISTINCT event_date) FROM mixpanel.events"
        ).fetchone()
    assert found is not None
    return found


@pytest.mark.long
def test_a_new_project_loads_the_sandbox_and_goes_on_where_dlt_has_forgotten_it(
    tmp_path: Path, command: Command, demo_server: SandboxServer
) -> None:
    folder = tmp_path / "made" / "project"
    init_project(folder)
    config = folder / ".dlt" / "config.toml"
    address = f"http://127.0.0.1:{SANDBOX_PORT}"
    assert address in config.read_text()
    config.write_text(config.read_text().replace(address, demo_server.url))
    script, dlt = [sys.executable, "mixpanel_pipeline.py"], [BIN / "dlt", "-y", "pipeline", "mixpanel"]

    command(folder, script)
    database = folder / "mixpanel_pipeline.duckdb"
    assert rows_in(database) == (8627, 8627, 28)
    asked = exports(demo_server.sandbox)
    command(folder, script)
    for name in DLT_COMMANDS:
        assert "mixpanel" in command(folder, [*dlt, name])

    command(folder, [*dlt, "sync"])
    assert "events" in command(folder, [*dlt, "info"])
    shutil.rmtree(tmp_path / "dlt")  # a new machine
    command(folder, [*dlt, "sync"])
    assert "events" in command(folder, [*dlt, "info"])
    shutil.rmtree(tmp_path / "dlt")
    command(folder, script)
    assert exports(demo_server.sandbox) == asked
    assert rows_in(database) == (8627, 8627, 28)
    assert [path.name for path in folder.glob("*.duckdb")] == [database.name]


@pytest.mark.long
def test_dlts_commands_know_what_mpload_has_loaded_and_a_new_machine_goes_on(
    tmp_path: Path, command: Command, sandbox: Sandbox, run_load: RunLoad, database: Path
) -> None:
    def loaded_days() -> list[str]:
        before = len(sandbox.requests)
        run_load("2024-02-01", "2024-03-10")
        return [one.params["from_date"] for one in sandbox.requests[before:] if one.endpoint == "export"]

    first = loaded_days()
    assert first[0] == "2024-02-01"
    told = info(database, "1")
    begin = shlex.split(told["dlt_command"])[1:-1]
    for name in DLT_COMMANDS:
        assert "mixpanel" in command(tmp_path, [BIN / "dlt", *begin, name])

    shutil.rmtree(told["pipeline_folder"])  # a new machine
    command(tmp_path, ["env", *shlex.split(told["dlt_sync_command"].replace(" dlt ", f" {BIN / 'dlt'} "))])
    assert "event_days" in command(tmp_path, [BIN / "dlt", *begin, "schema"])
    shutil.rmtree(told["pipeline_folder"])
    assert loaded_days() == []
    before = len(sandbox.requests)
    run_load()
    later = [one.params["from_date"] for one in sandbox.requests[before:] if one.endpoint == "export"]
    assert later
    assert min(later) >= "2024-03-06"  # what is not settled on 11 March


def test_the_files_are_those_of_the_repository_and_secrets_are_ones_own(tmp_path: Path) -> None:
    made = {file.path.relative_to(tmp_path).as_posix() for file in init_project(tmp_path, airflow=True, dagster=True)}
    assert made == {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    shipped = {path.name for path in (ROOT / "pipelines").iterdir() if path.is_file()}
    assert shipped <= made
    for name in shipped:
        assert (tmp_path / name).read_text() == (ROOT / "pipelines" / name).read_text()
    assert stat.S_IMODE((tmp_path / ".dlt/secrets.toml").stat().st_mode) == 0o600
    assert ".dlt/secrets.toml" in (tmp_path / ".gitignore").read_text().splitlines()
    assert tomllib.loads((tmp_path / ".dlt/secrets.toml").read_text())["sources"]["mixpanel"]["credentials"]["secret"]
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(packed["force-include"].values()) == {
        "mixpanel_source/project_files",
        "mixpanel_source/project_files/config.toml",
    }


def test_what_is_there_is_kept_and_nothing_is_written_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "requirements.txt").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"requirements\.txt is there already") as refused:
        init_project(tmp_path)
    assert "another folder" in (refused.value.hint or "")
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "requirements.txt"}

    (tmp_path / "requirements.txt").unlink()
    opened = os.open

    def full(path: Path, *args: int) -> int:
        if path.name == "requirements.txt":  # the last one
            raise OSError(28, "No space left on device", str(path))
        return opened(path, *args)

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(WarehouseError, match="No space left"):
        init_project(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    monkeypatch.undo()

    init_project(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
