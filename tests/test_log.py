"""The log: lines of JSON with fields, readable text, and no secret in either."""

from __future__ import annotations

import json
import logging
from base64 import b64encode
from datetime import date
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import RunLoad
from export_lines import day_lines
from test_cli import Run, account, run

from mixpanel_source.cli import messages
from mixpanel_source.json_log import JsonFormatter
from mixpanel_source.sandbox import Fault, Sandbox, SandboxServer

__all__ = ["run"]

SECRET = 'pl4nted "secret" /+='


@pytest.fixture
def mixpanel() -> SandboxServer:
    sandbox = Sandbox(limits=False, secret=SECRET)
    sandbox.set_day("2024-03-01", day_lines("2024-03-01", 3))
    return SandboxServer(sandbox)


def test_a_record_is_a_line_of_json_with_its_fields_and_every_text_redacted() -> None:
    formatter = JsonFormatter(lambda text: text.replace(SECRET, "***"))
    try:
        raise ValueError(f"of {SECRET}")
    except ValueError as error:
        extra = {"days": [date(2024, 3, 1)], "why": {SECRET: f"{SECRET}\n\u2028"}, "bytes": 2**60, "status": None}
        record = logging.LogRecord("mixpanel_source.x", 20, "", 1, "of %s", (SECRET,), (ValueError, error, None))
    vars(record).update(extra)
    text = formatter.format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert line.pop("time").endswith("+00:00")
    assert "ValueError: of ***" in line.pop("exception")
    assert line == {
        "level": "INFO", "logger": "mixpanel_source.x", "message": "of ***", "days": ["2024-03-01"],
        "why": {"***": "***\n\u2028"}, "bytes": 2**60, "status": None,
    }  # fmt: skip


def test_a_library_user_gets_the_fields_from_logging_itself(
    run_load: RunLoad, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mixpanel_source")
    sandbox.set_day("2024-03-01", day_lines("2024-03-01", 3))
    sandbox.faults.next("export", Fault.http(503))
    run_load("2024-03-01", "2024-03-01")
    ours = [vars(record) for record in caplog.records if record.name.startswith("mixpanel_source.")]
    asked = [record for record in ours if record.get("path") == "/api/2.0/export"]
    assert [(one["method"], one["status"], one["attempt"], one["from_date"]) for one in asked] == [
        ("GET", 503, 1, "2024-03-01"),
        ("GET", 200, 2, "2024-03-01"),
    ]
    assert asked[1]["seconds"] >= 0
    assert asked[1]["bytes"] > 0
    [wait] = [record for record in ours if "wait_s" in record]
    assert "answered 503" in wait["why"]
    [window] = [record for record in ours if "property_bytes" in record and "outcome" not in record]
    assert (str(window["from_date"]), window["rows"]) == ("2024-03-01", 3)
    [package] = [record for record in ours if record.get("table") == "events"]
    assert len(package["load_ids"]) == 1
    [ended] = [record for record in ours if "outcome" in record]
    assert (ended["outcome"], ended["rows"], ended["retries"]) == ("done", 3, 1)


def test_every_line_on_stderr_is_json_and_none_holds_the_secret(mixpanel: SandboxServer, run: Run) -> None:
    arguments = ("load", "events", "--from", "2024-03-01", "--to", "2024-03-01", "--log-format", "json")
    with mixpanel as server:
        done = run(*arguments, "--verbose", env=account(server, MP_SECRET=SECRET))
        failed = run(*arguments, "--refresh", "-v", env=account(server, MP_SECRET=f"{SECRET}!"))
    unknown = run("load", "--no-such-option", env={"MP_LOG_FORMAT": "json"})
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {"mixpanel_source.client", "mixpanel_source.cli", "dlt"} <= {line["logger"] for line in lines}
    assert all({"time", "level", "message"} <= line.keys() for line in lines)
    error = json.loads(failed.stderr.splitlines()[-1])
    assert (error["level"], error["error"], error["code"]) == ("ERROR", "AuthenticationError", failed.returncode)
    assert error["hint"]
    assert json.loads(unknown.stderr)["code"] == unknown.returncode == 3
    escaped = json.dumps(SECRET)[1:-1]
    for form in (SECRET, escaped, quote(SECRET, safe=""), b64encode(f"sandbox:{SECRET}".encode()).decode()):
        assert form not in done.stderr + failed.stderr


def test_the_log_goes_to_a_file_beside_what_is_said(mixpanel: SandboxServer, run: Run, tmp_path: Path) -> None:
    arguments = ("load", "events", "--from", "2024-03-01", "--to", "2024-03-01")
    log = tmp_path / "mpload.log"
    with mixpanel as server:
        env = account(server, MP_SECRET=SECRET, MP_LOG_FILE=str(log))
        done = run(*arguments, env=env)
        again = run(*arguments, "--log-format", "json", env=env)
    assert done.stderr.splitlines()[-1].startswith("mpload: loaded into ")
    assert again.stderr == "mpload: nothing new: every day asked for is there and complete\n"
    lines = log.read_text("utf-8").splitlines()
    request = " INFO mixpanel_source.client: GET /api/2.0/export (2024-03-01 to 2024-03-01): 200 in "
    assert any(request in line for line in lines)
    assert json.loads(lines[-1])["message"].startswith("nothing new")
    refused = run(*arguments, "--log-file", str(tmp_path / "no" / "log"))
    assert (refused.returncode, "cannot write the log" in refused.stderr) == (3, True)


def test_a_log_that_cannot_be_written_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    messages.set_up_log(False, False, None, Path("/dev/full"))
    try:
        logging.getLogger("mixpanel_source.x").info("unheard")
    finally:
        messages.set_up_log(False, False)
    assert capsys.readouterr().err == ""
