"""`mpload auth`: accounts as their users meet them, and what is said of one that does not work."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import select
import stat
import subprocess
import sys
import tomllib
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from mixpanel_source import accounts, settings
from mixpanel_source.account_check import check_account, credentials_in_any_region
from mixpanel_source.cli import app
from mixpanel_source.credentials import Account, Credentials
from mixpanel_source.errors import AuthenticationError
from mixpanel_source.sandbox import Fault, Sandbox, SandboxServer

ROOT = Path(__file__).parent.parent
MPLOAD = [sys.executable, "-m", "mixpanel_source.cli"]
PLANTED = "pl4nted$ecret/+="
ADD = ("--username", "sandbox", "--project", "1")

Run = Callable[..., subprocess.CompletedProcess[str]]


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
    return {**kept, "HOME": str(home), "MP_DATA_DIR": str(home / "data"), "PYTHONPATH": str(ROOT), **(extra or {})}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """mpload as a process, with a home of its own."""

    def run(*arguments: str, env: Mapping[str, str] | None = None, stdin: str | bytes = "") -> Any:
        done = subprocess.run(
            [*MPLOAD, *arguments],
            env=environment(tmp_path, env),
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            timeout=60,
        )
        texts = done.stdout.decode(), done.stderr.decode()
        assert PLANTED not in "".join(texts)
        return subprocess.CompletedProcess(arguments, done.returncode, *texts)

    return run


@pytest.fixture
def run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quick: None) -> Run:
    """mpload in this process, where regions and limits can be set, with a home of its own."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        with pytest.raises(SystemExit) as done:
            app.main(arguments)
        out, err = capsys.readouterr()
        assert PLANTED not in out + err
        return subprocess.CompletedProcess(arguments, int(str(done.value.code)), out, err)

    return run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / ".mp" / "config.toml"


def keep(config: Path, secret: str = "sandbox", name: str = "a", **more: Any) -> None:
    """An account of the sandbox's project, in the file."""
    given: dict[str, Any] = {"username": "sandbox", "project_id": "1", "region": "us"}
    of_credentials = {key: more.pop(key) for key in list(more) if key in (*given, "kind", "workspace_id")}
    credentials = Credentials(secret=secret, **{**given, **of_credentials})
    accounts.add_account(name, Account(credentials, name, **more), config)


# --- the file


def test_accounts_are_added_listed_shown_chosen_and_removed(run: Run, config: Path) -> None:
    added = run("auth", "add", "one", *ADD, "--region", "eu", "--secret-stdin", stdin=f"{PLANTED}\n")
    assert (added.returncode, added.stderr) == (0, "")
    one = {
        "name": "one",
        "default": True,
        "kind": "service_account",
        "username": "sandbox",
        "secret": "***",
        "project_id": "1",
        "region": "eu",
        "workspace_id": None,
        "project_timezone": "UTC",
        "legacy_local_time": False,
        "load_settings": {},
    }
    assert json.loads(added.stdout) == one
    assert tomllib.loads(config.read_text()) == {
        "default": "one",
        "accounts": {"one": {"username": "sandbox", "secret": PLANTED, "project_id": "1", "region": "eu"}},
    }
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    full = ("--workspace-id", "9", "--project-timezone", "America/New_York", "--legacy-local-time")
    run("auth", "add", "two", *ADD, "--region", "in", *full, "--secret-stdin", stdin="x")
    assert [(row["name"], row["default"]) for row in json.loads(run("auth", "list").stdout)] == [
        ("one", True),
        ("two", False),
    ]
    assert json.loads(run("auth", "show").stdout) == {**one, "source": str(config)}
    assert json.loads(run("auth", "show", "-a", "two").stdout)["name"] == "two"
    switched = json.loads(run("auth", "switch", "two").stdout)
    assert [switched[key] for key in ("name", "default", "workspace_id", "project_timezone", "legacy_local_time")] == [
        "two", True, "9", "America/New_York", True,
    ]  # fmt: skip
    assert json.loads(run("auth", "remove", "two").stdout) == {"removed": "two", "default": "one"}
    assert json.loads(run("auth", "remove", "one").stdout) == {"removed": "one", "default": None}
    empty = run("auth", "list")
    assert (empty.returncode, empty.stdout) == (0, "[]\n")
    assert empty.stderr == f"mpload: {config} has no accounts: mpload auth add NAME keeps one\n"


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_every_kind_of_credentials_can_be_kept(run: Run, config: Path) -> None:
    secret = ("--project", "1", "--region", "us", "--secret-stdin")
    older = run("auth", "add", "older", "--kind", "project_secret", *secret, stdin=PLANTED)
    assert older.stderr == (
        "mpload: warning: Mixpanel stops accepting project secrets on 2027-03-03: use a service account\n"
    )
    run("auth", "add", "token", "--kind", "oauth_token", *secret, stdin="abc.def\r\n")
    tables = tomllib.loads(config.read_text())["accounts"]
    assert tables == {
        "older": {"kind": "project_secret", "secret": PLANTED, "project_id": "1", "region": "us"},
        "token": {"kind": "oauth_token", "token": "abc.def", "project_id": "1", "region": "us"},
    }
    assert [row["kind"] for row in json.loads(run("auth", "list").stdout)] == ["project_secret", "oauth_token"]
    assert "abc.def" not in run("auth", "show", "token").stdout


@pytest.mark.parametrize("command", [("list",), ("show",), ("switch", "a"), ("test",), ("remove", "b")])
def test_every_command_answers_in_every_format(
    command: tuple[str, ...], run_here: Run, config: Path, server: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MP_BASE_URL", server.url)
    answers = {}
    for format_ in ("json", "jsonl", "csv", "table"):
        config.unlink(missing_ok=True)
        keep(config)
        keep(config, name="b")
        done = run_here("auth", *command, "--format", format_, "-q")
        assert (done.returncode, done.stderr) == (0, "")
        answers[format_] = done.stdout
    objects = json.loads(answers["json"])
    rows = objects if isinstance(objects, list) else [objects]
    assert [json.loads(line) for line in answers["jsonl"].splitlines()] == rows
    read = list(csv.DictReader(io.StringIO(answers["csv"])))
    assert [list(row) for row in read] == [list(row) for row in rows]
    assert all(name in answers["table"] for name in rows[0])
    assert "sandbox" not in rows[0].get("secret", "")


def test_names_that_are_not_there_end_with_4_and_those_that_are_with_1(run: Run, config: Path) -> None:
    keep(config)
    for command in ("remove", "switch", "show", "test"):
        done = run("auth", command, "none")
        assert (done.returncode, done.stdout) == (4, "")
        assert done.stderr == f"mpload: {config} has no account 'none'; its accounts: a\n"
    again = run("auth", "add", "a", *ADD, "--region", "us", "-f", "json")
    assert again.returncode == 1
    assert json.loads(again.stderr) == {
        "error": "AccountExistsError",
        "code": 1,
        "message": f"{config} already has an account 'a'",
        "hint": "choose another name, or mpload auth remove it first",
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a", "--username", "u", "--region", "us"), "the project is missing; add --project ID"),
        (("a", "--project", "1"), "the service account's user name is missing; add --username USER, or --kind"),
        (("a", *ADD, "--region", "xx"), "region is one of us, eu, in, not 'xx'"),
        (("a", "--username", "u", "--project", "one"), "project_id is a number such as 12345, not 'one'"),
        (("a", *ADD, "--kind", "magic"), "kind is one of service_account, project_secret, oauth_token, not 'magic'"),
        (("a", *ADD, "--kind", "oauth_token"), "a username does not go with kind 'oauth_token'"),
        (("a", *ADD, "--region", "us", "--workspace-id", "x"), "workspace_id is a number such as 12345, not 'x'"),
        ((" ", *ADD), "not a name for an account: ' '"),
        (("a", *ADD, "--region", "us", "--project-timezone", "Mars"), "project_timezone is not a time zone: 'Mars'"),
    ],
)
def test_what_cannot_be_is_refused_with_3_and_nothing_is_kept(
    arguments: tuple[str, ...], said: str, run: Run, config: Path
) -> None:
    done = run("auth", "add", *arguments, "--secret-stdin", stdin=PLANTED)
    assert (done.returncode, done.stdout) == (3, "")
    assert said in done.stderr
    assert not config.exists()


def test_a_link_or_a_file_that_others_can_read_is_refused(run: Run, config: Path, tmp_path: Path) -> None:
    keep(config)
    config.chmod(0o644)
    commands = (("list",), ("remove", "a"), ("add", "b", *ADD, "--region", "us", "--secret-stdin"), ("test",))
    for command in commands:
        done = run("auth", *command, stdin=PLANTED)
        assert done.returncode == 3
        assert done.stderr == f"mpload: {config} holds secrets and can be read by others; chmod 600 {config}\n"
    config.chmod(0o600)
    real = config.rename(tmp_path / "real.toml")
    before = real.read_text()
    config.symlink_to(real)
    for command in commands:
        done = run("auth", *command, stdin=PLANTED)
        assert done.returncode == 3
        assert done.stderr == f"mpload: {config} is a symbolic link; set MP_CONFIG_PATH to the file itself\n"
    assert real.read_text() == before
    assert run("auth", "show", env={"MP_CONFIG_PATH": str(real)}).returncode == 0
    odd = run("auth", "list", env={"MP_CONFIG_PATH": "~nobody-of-that-name/config.toml"})
    assert (odd.returncode, "home of a user that is not known" in odd.stderr) == (3, True)


def test_comments_and_settings_of_loads_stay_when_accounts_change(run: Run, config: Path) -> None:
    keep(config)
    text = config.read_text() + "lookback_days = 9  # late phones\n"
    config.write_text("# ours\n" + text)
    run("auth", "add", "b", *ADD, "--region", "us", "--secret-stdin", stdin=PLANTED)
    run("auth", "switch", "b")
    run("auth", "remove", "b")
    kept = config.read_text()
    assert kept.startswith("# ours\n")
    assert "lookback_days = 9  # late phones\n" in kept
    assert json.loads(run("auth", "show", "a").stdout)["load_settings"] == {"lookback_days": 9}


def test_writers_at_the_same_time_lose_no_account(run: Run, config: Path) -> None:
    keep(config, name="first")
    names = [f"n{number}" for number in range(8)]

    def add(name: str) -> int:
        return run("auth", "add", name, *ADD, "--region", "us", "--secret-stdin", stdin=PLANTED).returncode

    with ThreadPoolExecutor(len(names)) as pool:
        assert set(pool.map(add, names)) == {0}
    assert set(accounts.read_config(config).accounts) == {"first", *names}


def test_a_writer_that_never_ends_is_told_of(config: Path, monkeypatch: pytest.MonkeyPatch, run_here: Run) -> None:
    from filelock import FileLock

    keep(config)
    monkeypatch.setattr(accounts, "LOCK_TIMEOUT_S", 0.05)
    with FileLock(config.with_name(".config.toml.lock")):
        done = run_here("auth", "remove", "a")
    assert done.returncode == 3
    assert "cannot be written: another process has been changing it for some time" in done.stderr


# --- the secret


def test_a_secret_as_an_argument_is_taken_with_a_warning(run: Run, config: Path) -> None:
    done = run("auth", "add", "a", *ADD, "--region", "us", "--secret", PLANTED, "-v")
    assert done.returncode == 0
    assert "warning: --secret is seen in the list of processes" in done.stderr
    assert accounts.read_config(config).accounts["a"].credentials.secret.reveal() == PLANTED
    both = run("auth", "add", "b", *ADD, "--region", "us", "--secret", PLANTED, "--secret-stdin", stdin="x")
    assert both.returncode == 3
    assert "--secret and --secret-stdin exclude each other" in both.stderr


def test_without_a_terminal_nothing_is_asked(run: Run, config: Path) -> None:
    done = run("auth", "add", "a", *ADD, "--region", "us", stdin=PLANTED)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == ("mpload: the secret is missing, and there is no terminal to ask on; add --secret-stdin\n")
    assert not config.exists()


@pytest.mark.parametrize(
    ("stdin", "said"),
    [
        ("", "the secret is empty"),
        (f"{PLANTED}\n{PLANTED}\n", "the secret has white space around it or a control character in it"),
        (PLANTED.encode() + b"\xff", "the secret on stdin is not UTF-8 text"),
    ],
)
def test_what_is_no_secret_is_refused_without_telling_it(stdin: str | bytes, said: str, run: Run) -> None:
    done = run("auth", "add", "a", *ADD, "--region", "us", "--secret-stdin", "-v", stdin=stdin)
    assert done.returncode == 3
    assert said in done.stderr


@pytest.mark.parametrize("command", [("add", "a", *ADD, "--region", "us"), ("show", "a"), ("switch", "a"), ("list",)])
def test_an_argument_too_many_may_be_a_secret_and_is_not_told(command: tuple[str, ...], run: Run, config: Path) -> None:
    done = run("auth", *command, PLANTED)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"mpload: 1 argument is too many; see mpload auth {command[0]} --help\n"
    assert "2 arguments are too many" in run("auth", *command, PLANTED, PLANTED).stderr
    assert not config.exists()


@pytest.mark.parametrize(
    ("wrong", "said"), [(("--kind", "password"), "kind is one of"), (("--region", "mars"), "region is one of")]
)
def test_what_is_wrong_is_told_before_the_secret_is_asked_for(wrong: tuple[str, ...], said: str, run: Run) -> None:
    done = run("auth", "add", "a", *ADD, *wrong)
    assert (done.returncode, done.stdout) == (3, "")
    assert said in done.stderr


def test_a_terminal_is_asked_for_the_secret_and_does_not_show_it(tmp_path: Path, config: Path) -> None:
    arguments = [*MPLOAD, "auth", "add", "a", *ADD, "--region", "us"]
    pid, terminal = pty.fork()  # a terminal of its own: the prompt is written to /dev/tty
    if pid == 0:
        os.execve(sys.executable, arguments, environment(tmp_path))
    shown = b""
    typed = False
    while True:
        ready, _, _ = select.select([terminal], [], [], 30)
        try:
            data = os.read(terminal, 65536) if ready else b""
        except OSError:  # how Linux tells that the other end is closed
            data = b""
        if not data:
            break
        shown += data
        if b"Secret:" in shown and not typed:
            typed = True
            os.write(terminal, f"{PLANTED}\n".encode())
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown
    assert PLANTED.encode() not in shown
    assert accounts.read_config(config).accounts["a"].credentials.secret.reveal() == PLANTED


def test_a_secret_that_mixpanel_repeats_is_not_told(run: Run, config: Path, sandbox: Sandbox) -> None:
    keep(config, PLANTED)
    forms = (PLANTED, quote(PLANTED, safe=""), b64encode(f"sandbox:{PLANTED}".encode()).decode())
    with SandboxServer(sandbox) as server:
        sandbox.secret = PLANTED
        sandbox.faults.next("me", Fault.http(403, f"who is {' '.join(forms)}?"))
        sandbox.faults.next("engage", Fault.http(403, f"who is {' '.join(forms)}?"))
        done = run("auth", "test", "-v", env={"MP_BASE_URL": server.url})
    assert done.returncode == 2
    assert "who is" in done.stderr
    assert not [form for form in forms if form in done.stdout + done.stderr]


# --- regions


@pytest.fixture
def regions(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Sandbox]]:
    """A sandbox for each region; they know nobody's secret but their own."""
    sandboxes: dict[str, Sandbox] = {
        region: Sandbox(limits=False, secret=f"of-{region}", region=region) for region in settings.REGIONS
    }
    servers = {region: SandboxServer(sandbox).start() for region, sandbox in sandboxes.items()}
    for family in settings.HOSTS:
        monkeypatch.setitem(settings.HOSTS, family, {region: server.url for region, server in servers.items()})
    yield sandboxes
    for server in servers.values():
        server.stop()


@pytest.mark.parametrize("region", settings.REGIONS)
def test_a_region_that_is_not_given_is_found(region: str, run_here: Run, regions: dict[str, Sandbox]) -> None:
    done = run_here("auth", "add", "a", *ADD, "--secret", f"of-{region}", "-f", "json")
    assert (done.returncode, json.loads(done.stdout)["region"]) == (0, region)
    assert done.stderr.endswith(f"mpload: the region is {region}\n")
    assert [[request.endpoint for request in sandbox.requests] for sandbox in regions.values()] == [["me"]] * 3


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_region_of_a_project_secret_or_token_is_found_too(run_here: Run, regions: dict[str, Sandbox]) -> None:
    regions["eu"].project_secret = PLANTED
    regions["in"].oauth_token = PLANTED
    older = run_here("auth", "add", "a", "-p", "1", "--kind", "project_secret", "--secret", PLANTED)
    assert json.loads(older.stdout)["region"] == "eu"
    token = run_here("auth", "add", "b", "-p", "1", "--kind", "oauth_token", "--secret", PLANTED)
    assert json.loads(token.stdout)["region"] == "in"


def test_credentials_of_no_region_or_of_several_are_refused(
    run_here: Run, regions: dict[str, Sandbox], config: Path
) -> None:
    none = run_here("auth", "add", "a", *ADD, "--secret", PLANTED)
    assert none.returncode == 2
    assert "no region (us, eu, in) accepts the username or the secret" in none.stderr
    regions["us"].secret = regions["in"].secret = PLANTED
    several = run_here("auth", "add", "a", *ADD, "--secret", PLANTED)
    assert several.returncode == 3
    assert "several regions accept the username or the secret: us, in" in several.stderr
    assert not config.exists()
    regions["in"].faults.next("me", Fault.http(403))
    forbidden = run_here("auth", "add", "b", *ADD, "--secret", PLANTED)
    assert (forbidden.returncode, json.loads(forbidden.stdout)["region"]) == (0, "us")
    named = run_here("auth", "add", "a", *ADD, "--secret", PLANTED, "--region", "in")
    assert (named.returncode, json.loads(named.stdout)["region"]) == (0, "in")


def test_a_region_that_is_silent_matters_only_where_no_other_answers(
    run_here: Run, regions: dict[str, Sandbox]
) -> None:
    regions["us"].faults.next("me", *[Fault.http(503)] * 8)
    regions["us"].secret = PLANTED
    none = run_here("auth", "add", "a", *ADD, "--secret", PLANTED)
    assert none.returncode == 1
    assert "503" in none.stderr
    found = run_here("auth", "add", "a", *ADD, "--secret", "of-in")
    assert (found.returncode, json.loads(found.stdout)["region"]) == (0, "in")


def test_one_base_url_is_no_region(run: Run) -> None:
    done = run("auth", "add", "a", *ADD, "--secret", PLANTED, env={"MP_BASE_URL": "http://127.0.0.1:9"})
    assert done.returncode == 3
    assert "MP_BASE_URL stands for every region, so the region cannot be found; name one" in done.stderr


# --- test


@pytest.fixture
def at_sandbox(server: SandboxServer, monkeypatch: pytest.MonkeyPatch) -> SandboxServer:
    monkeypatch.setenv("MP_BASE_URL", server.url)
    return server


def test_an_account_that_works_is_described(
    run_here: Run, config: Path, sandbox: Sandbox, at_sandbox: SandboxServer
) -> None:
    keep(config)
    sandbox.project_timezone = "Europe/Rome"
    done = run_here("auth", "test")
    assert (done.returncode, done.stderr) == (0, "mpload: the account works\n")
    assert json.loads(done.stdout) == {
        "name": "a",
        "user": "sandbox",
        "role": "owner",
        "project_id": "1",
        "project_name": "Sandbox",
        "region": "us",
        "timezone": "Europe/Rome",
        "project_timezone": "UTC",
        "timezone_agrees": False,
    }
    assert [request.endpoint for request in sandbox.requests] == ["me", "engage"]


def test_the_account_that_is_named_is_tested_and_else_the_one_in_use(
    run_here: Run, config: Path, at_sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(config, PLANTED, name="bad")
    for name, value in {"USERNAME": "sandbox", "SECRET": "sandbox", "PROJECT_ID": "1", "REGION": "us"}.items():
        monkeypatch.setenv(f"MP_{name}", value)
    assert json.loads(run_here("auth", "test").stdout)["name"] is None
    assert run_here("auth", "test", "bad").returncode == 2
    shown = json.loads(run_here("auth", "show").stdout)
    assert (shown["name"], shown["source"], shown["secret"]) == (None, "environment", "***")
    assert "win over every account" in run_here("auth", "list").stderr


@pytest.mark.parametrize("auth_failure", [400, 401])
def test_a_wrong_secret_is_told_from_a_wrong_region(
    auth_failure: Any, run_here: Run, config: Path, regions: dict[str, Sandbox]
) -> None:
    for sandbox in regions.values():
        sandbox.auth_failure = auth_failure
    keep(config, "of-eu", name="astray")
    astray = run_here("auth", "test", "astray")
    assert astray.returncode == 2
    assert astray.stderr == (
        "mpload: the region is wrong: not us but eu accepts the username or the secret;"
        ' set region = "eu" for the account (MP_REGION in the environment)\n'
    )
    keep(config, PLANTED, name="bad")
    bad = run_here("auth", "test", "bad", "-f", "json")
    assert (bad.returncode, bad.stdout) == (2, "")
    error = json.loads(bad.stderr)
    assert (error["error"], error["code"]) == ("AuthenticationError", 2)
    assert error["message"].startswith(f"the username or the secret is wrong: GET /api/app/me answered {auth_failure}")
    assert error["hint"] == "it may have expired or be deleted: look at Organization settings > Service Accounts"
    regions["in"].faults.next("me", *[Fault.http(503)] * 4)
    regions["in"].secret = PLANTED
    unsure = run_here("auth", "test", "bad")
    assert (unsure.returncode, "the username or the secret or the region is wrong" in unsure.stderr) == (2, True)


def test_a_project_that_the_account_does_not_see_is_told_with_those_it_does(
    run_here: Run, config: Path, at_sandbox: SandboxServer
) -> None:
    keep(config)
    done = run_here("auth", "test", "a", "--project", "2")
    assert done.returncode == 2
    assert "mpload: the project is wrong: no rights to 2: POST /api/query/engage answered 403" in done.stderr
    assert done.stderr.endswith("; projects of the account: 1 (Sandbox)\n")


def test_a_role_or_a_plan_without_the_right_is_told(
    run_here: Run, config: Path, sandbox: Sandbox, at_sandbox: SandboxServer
) -> None:
    keep(config)
    sandbox.faults.next("engage", Fault.http(403))
    role = run_here("auth", "test")
    assert role.returncode == 2
    assert "the role is wrong: the account is in the project 1 but may not read its data" in role.stderr
    sandbox.plan_402 = ["engage"]
    plan = run_here("auth", "test", "-f", "json")
    error = json.loads(plan.stderr)
    assert (plan.returncode, error["error"]) == (1, "PlanError")
    assert error["message"].startswith("the project's plan is too small: POST /api/query/engage answered 402")


def test_limits_and_trouble_of_mixpanels_are_not_blamed_on_the_account(
    run_here: Run, config: Path, sandbox: Sandbox, at_sandbox: SandboxServer
) -> None:
    keep(config)
    sandbox.faults.next("me", *[Fault.http(500)] * 4)
    assert run_here("auth", "test").returncode == 1
    sandbox.faults.next("engage", Fault.http(400, '{"error": "odd question"}'))
    odd = run_here("auth", "test")
    assert (odd.returncode, "odd question" in odd.stderr) == (1, True)
    sandbox.faults.next("engage", Fault.rate_limited(1800))
    assert run_here("auth", "test").returncode == 5


@pytest.mark.parametrize("answer", [Fault.http(403), Fault.http(404), Fault.body(b'{"results": [1]}')])
def test_an_account_works_also_where_mixpanel_does_not_say_whose_it_is(
    answer: Fault, run_here: Run, config: Path, sandbox: Sandbox, at_sandbox: SandboxServer
) -> None:
    keep(config)
    sandbox.faults.next("me", answer)
    done = run_here("auth", "test")
    assert (done.returncode, json.loads(done.stdout)["timezone_agrees"]) == (0, None)
    assert "warning: Mixpanel does not list the project 1 for the account" in done.stderr


def test_a_wrong_secret_is_told_also_where_mixpanel_does_not_say_whose_it_is(
    run_here: Run, config: Path, sandbox: Sandbox, at_sandbox: SandboxServer
) -> None:
    keep(config)
    sandbox.faults.next("me", Fault.http(404))
    sandbox.faults.next("engage", Fault.unauthenticated())
    done = run_here("auth", "test")
    assert done.returncode == 2
    assert "the username or the secret is wrong: POST /api/query/engage answered 400" in done.stderr


def test_a_role_that_mixpanel_does_not_tell_of_may_be_what_is_wrong(
    run_here: Run, config: Path, sandbox: Sandbox, at_sandbox: SandboxServer
) -> None:
    keep(config)
    sandbox.faults.next("me", Fault.http(403))
    sandbox.faults.next("engage", Fault.http(403))
    done = run_here("auth", "test")
    assert done.returncode == 2
    assert "the project, or the account's role in it, is wrong: no rights to 1: POST /api/query/engage" in done.stderr


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_project_secret_is_tested_without_asking_whose_it_is(
    run: Run, config: Path, sandbox: Sandbox, server: SandboxServer
) -> None:
    sandbox.project_secret = PLANTED
    keep(config, PLANTED, username="", kind="project_secret")
    keep(config, "wr0ng", name="bad", username="", kind="project_secret")
    env = {"MP_BASE_URL": server.url}
    done = run("auth", "test", "a", env=env)
    assert (done.returncode, json.loads(done.stdout)["user"]) == (0, None)
    assert "project secrets on 2027-03-03" in done.stderr
    assert [request.endpoint for request in sandbox.requests] == ["engage"]
    bad = run("auth", "test", "bad", env=env)
    assert (bad.returncode, "the project secret is wrong" in bad.stderr) == (2, True)
    project = run("auth", "test", "a", "-p", "2", env=env)
    assert (project.returncode, "the project is wrong: no rights to 2" in project.stderr) == (2, True)


@pytest.mark.parametrize(
    ("zone", "set_zone", "legacy", "agrees", "warned"),
    [
        ("US/Eastern", "America/New_York", True, True, False),
        ("Europe/Rome", "America/New_York", True, False, True),
        ("Europe/Rome", "UTC", True, False, True),
        ("Europe/Rome", "Europe/Berlin", False, True, False),
        ("Nowhere/Known", "Europe/Berlin", False, False, True),
    ],
)
def test_a_time_zone_that_is_not_the_projects_is_told_where_it_matters(
    zone: str, set_zone: str, legacy: bool, agrees: bool, warned: bool, run_here: Run, config: Path,
    sandbox: Sandbox, at_sandbox: SandboxServer,
) -> None:  # fmt: skip
    keep(config, project_timezone=set_zone, legacy_local_time=legacy)
    sandbox.project_timezone = zone
    done = run_here("auth", "test")
    assert json.loads(done.stdout)["timezone_agrees"] == agrees
    said = f"warning: the project's time zone is {zone}, but project_timezone is {set_zone}"
    assert (said in done.stderr) == warned


def test_a_workspace_of_another_project_is_told(run_here: Run, config: Path, at_sandbox: SandboxServer) -> None:
    keep(config, workspace_id="9")
    keep(config, name="b", workspace_id="10")
    assert "workspace" not in run_here("auth", "test", "a").stderr
    assert "warning: workspace_id 10 is not a workspace of the project" in run_here("auth", "test", "b").stderr


# --- help, and the same from Python


def test_every_command_has_an_example_and_takes_the_global_options(run: Run) -> None:
    from typer.main import get_command

    root: Any = get_command(app.app)
    group = root.commands["auth"]
    assert set(group.commands) == {"list", "add", "remove", "switch", "show", "test"}
    for name, command in group.commands.items():
        assert f"mpload auth {name}" in command.help
        assert {"--format", "--db", "--project"} <= {flag for option in command.params for flag in option.opts}
    bare = run("auth")
    assert (bare.returncode, bare.stderr) == (3, "mpload: Missing command; see mpload auth --help\n")
    assert "mpload auth add" in run("auth", "--help").stdout


def test_a_notebook_can_do_the_same(config: Path, regions: dict[str, Sandbox], quick: None) -> None:
    credentials = credentials_in_any_region("sandbox", "of-eu", 1)
    assert credentials.region == "eu"
    accounts.add_account("a", Account(credentials), config)
    checked = check_account(accounts.find_account("a", config))
    assert (checked.project_name, checked.timezone, checked.timezone_agrees) == ("Sandbox", "UTC", True)
    with pytest.raises(AuthenticationError, match="the project is wrong") as caught:
        check_account(Account(Credentials("sandbox", "of-eu", "2", "eu")))
    assert caught.value.status == 403
