"""Writes a dlt project: a pipeline script, dlt's settings, and what an orchestrator takes."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from mixpanel_source import settings
from mixpanel_source.errors import ConfigError, WarehouseError

SCRIPT = "mixpanel_pipeline.py"

_DEMO = {
    '# base_url = "http://127.0.0.1:8321"': f'base_url = "http://127.0.0.1:{settings.SANDBOX_PORT}"',
    '# from_date = "2024-01-01"': 'from_date = "2013-03-01"',
    '# to_date = "2024-01-31"': 'to_date = "2013-03-28"',
}
"""Lines of .dlt/config.toml that have the project load what the sandbox serves."""

_CONFIG_HEAD = f"""\
# As it is, this project loads the demo data of `mpload sandbox --port {settings.SANDBOX_PORT}`. For your own project,
# remove `from_date`, `to_date` and `base_url` below, and fill in .dlt/secrets.toml.

"""

_SECRETS = """\
# Those of the sandbox. For your own project: a service account of Organization settings > Service accounts.
# .gitignore leaves this file out of git.

[sources.mixpanel.credentials]
username = "sandbox"
secret = "sandbox"
project_id = "1"     # Project settings > Overview
region = "us"        # us, eu or in: where the project's data lives

# The file that mixpanel_pipeline.py fills, for `dlt pipeline mixpanel sync`; dlt takes it from secrets only.
[destination.duckdb]
credentials = "mixpanel_pipeline.duckdb"
"""

_GITIGNORE = """\
.dlt/secrets.toml
*.duckdb
*.duckdb.*
.venv
__pycache__/
"""

_DAGSTER_GITIGNORE = """\
# What Dagster keeps where DAGSTER_HOME is this folder.
/storage/
/history/
/schedules/
/logs/
/.nux/
/.telemetry/
"""


@dataclass(frozen=True)
class NewFile:
    path: Path
    holds: str


def init_project(folder: Path, *, airflow: bool = False, dagster: bool = False) -> list[NewFile]:
    """Write a project into `folder`, which is made where there is none; it runs against `mpload sandbox` as it is.

    `airflow` and `dagster` add the DAGs and the assets. All files are written, or none: raises ConfigError where one of
    them is there already, and WarehouseError where the folder cannot be written.
    """
    files = _files(airflow, dagster)
    there = [name for name in files if os.path.lexists(folder / name)]
    if there:
        raise ConfigError(
            f"{folder / there[0]} is there already, and nothing was written",
            hint="choose another folder, or move what is there away: " + ", ".join(there),
        )
    made: list[Path] = []
    try:
        for name, (text, _) in files.items():
            path = folder / name
            for parent in reversed(path.parents):
                if not parent.exists():
                    parent.mkdir()
                    made.append(parent)
            # Never through what has come there meanwhile.
            mode = 0o600 if path.name == "secrets.toml" else 0o666
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            made.append(path)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
    except BaseException as error:
        for path in reversed(made):
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        if not isinstance(error, OSError):
            raise
        raise WarehouseError(
            f"cannot write {error.filename or folder}: {error.strerror}; nothing was written",
            hint="choose a folder that you can write to",
        ) from error
    return [NewFile(folder / name, holds) for name, (_, holds) in files.items()]


def _files(airflow: bool, dagster: bool) -> dict[str, tuple[str, str]]:
    """What each file of the project holds, and that in words."""
    config = _shipped(".dlt", "config.toml")
    for line, own in _DEMO.items():
        if line not in config:
            raise AssertionError(f"config.toml has no {line}")
        config = config.replace(line, own)
    files = {
        SCRIPT: (_shipped("pipelines", SCRIPT), "the pipeline: python " + SCRIPT),
        ".dlt/config.toml": (_CONFIG_HEAD + config, "every setting"),
        ".dlt/secrets.toml": (_SECRETS, "the credentials"),
        ".gitignore": (_GITIGNORE + (_DAGSTER_GITIGNORE if dagster else ""), "what git leaves out"),
        "requirements.txt": (_requirement(airflow, dagster) + "\n", "what it is tested with"),
    }
    if airflow:
        files["airflow_dag.py"] = (
            _shipped("pipelines", "airflow_dag.py"),
            "DAGs: AIRFLOW__CORE__DAGS_FOLDER=$PWD",
        )
    if dagster:
        name = "dagster_assets.py"
        files[name] = (_shipped("pipelines", name), f"the assets: DAGSTER_HOME=$PWD dagster dev -f {name}")
        files["dagster.yaml"] = (_shipped("pipelines", "dagster.yaml"), "one writer of the DuckDB file at a time")
    return files


def _shipped(folder: str, name: str) -> str:
    """A file of ours: in the package where it was installed from a wheel, else in the tree beside it."""
    package = Path(__file__).parent
    packed = package / "project_files" / name
    return (packed if packed.exists() else package.parent / folder / name).read_text("utf-8")


def _requirement(airflow: bool, dagster: bool) -> str:
    """This package, from where it was installed from."""
    extras = ["sandbox", *(["airflow"] if airflow else []), *(["dagster"] if dagster else [])]
    name = f"mixpanel-source[{','.join(extras)}]"
    try:
        installed = distribution("mixpanel-source")
    except PackageNotFoundError:
        return f"{name} @ {Path(__file__).parent.parent.as_uri()}"
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    if "url" not in origin:
        return f"{name}=={installed.version}"
    vcs = origin.get("vcs_info")
    return f"{name} @ " + (f"{vcs['vcs']}+{origin['url']}@{vcs['commit_id']}" if vcs else origin["url"])
