from __future__ import annotations

import os
import stat
import traceback
from datetime import date
from pathlib import Path

import pytest

from mixpanel_source import accounts, settings
from mixpanel_source.credentials import Account, Credentials, Secret
from mixpanel_source.errors import AccountExistsError, AccountNotFoundError, ConfigError
from mixpanel_source.project import project_of

PLANTED = "planted-s3cret-000"
ONE = f"""# ours
default = "a"

[accounts.a]  # main
username = "user"
secret = "{PLANTED}"
project_id = "12345"
region = "us"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "config.toml"


def write(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(0o600)


def account(project_id: str = "1", **more: object) -> Account:
    return Account(Credentials("user", PLANTED, project_id, "us"), **more)  # type: ignore[arg-type]


def test_there_is_nothing_in_a_file_that_is_not_there(path: Path) -> None:
    assert accounts.read_config(path) == accounts.Config(None, {})


def test_an_account_is_read_back_as_it_was_added(path: Path) -> None:
    full = Account(
        Credentials("user", 'q"u\u2028o\\te', "12345", "in", workspace_id="9"), "mine", "America/New_York", True
    )
    accounts.add_account("mine", full, path)
    assert accounts.read_config(path) == accounts.Config("mine", {"mine": full})


def test_settings_of_loads_are_read_back_as_they_were_added_and_reach_the_project(path: Path) -> None:
    found = {
        "start_date": date(2024, 1, 31),
        "lookback_days": 9,
        "max_rejected": 0.5,
        "window_days": 2,
        "retries": 0,
        "timeout_s": 10,
        "export_timeout_s": 60.5,
        "request_share": 0.5,
        "ledger_url": Secret("postgresql://u:planted@h/d"),
        "max_body_bytes": 10**9,
    }
    added = account(load_settings=found)
    accounts.add_account("a", added, path)
    (read,) = accounts.read_config(path).accounts.values()
    assert read.load_settings == found
    project = project_of(read)
    assert {key: getattr(project, key) for key in found} == found
    assert project_of(read, lookback_days=3, start_date=None).lookback_days == 3
    assert project_of(account()).retries == settings.RETRIES


REPORTS = """
# what we look at
[[accounts.a.segmentation]]
report = "orders"  # all of them
event = "Order"

[[accounts.a.segmentation]]
report = "by plan"
event = "Order"
on = "plan"
limit = 3
"""


def test_the_reports_of_an_account_are_kept_when_the_file_is_changed(path: Path) -> None:
    write(path, ONE + REPORTS)
    reports = [
        {"report": "orders", "event": "Order"},
        {"report": "by plan", "event": "Order", "on": "plan", "limit": 3},
    ]
    more = {"segmentation": reports, "insights": [{"report": "i", "bookmark_id": 7}]}
    accounts.add_account("b", account(load_settings=more), path)
    accounts.set_default("b", path)
    found = accounts.read_config(path).accounts
    assert found["a"].load_settings == {"segmentation": reports}
    assert found["b"].load_settings == more
    assert REPORTS in path.read_text()
    assert [question.report for question in project_of(found["b"]).questions] == ["orders", "by plan", "i"]
    accounts.remove_account("a", path)
    assert accounts.read_config(path).accounts.keys() == {"b"}
    assert found["b"].of_project("2").load_settings == {}


def test_reports_are_tables(path: Path) -> None:
    write(path, ONE + 'segmentation = ["orders"]\n')
    with pytest.raises(ConfigError, match=r"accounts\.a\.segmentation holds text as report 1"):
        accounts.read_config(path)
    write(path, ONE + '[accounts.a.segmentation]\nreport = "orders"\n')
    with pytest.raises(ConfigError, match=r"accounts\.a\.segmentation is a list, not a table"):
        accounts.read_config(path)


def test_a_start_date_may_be_text(path: Path) -> None:
    write(path, ONE + 'start_date = "2024-01-31"\n')
    assert accounts.read_config(path).accounts["a"].load_settings == {"start_date": date(2024, 1, 31)}


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_every_kind_is_read_back_as_it_was_added(path: Path) -> None:
    token = Account(Credentials("", "t0ken", "1", "eu", "oauth_token"), "token")
    project = Account(Credentials("", "abc", "2", "eu", "project_secret"), "project")
    accounts.add_account("token", token, path)
    accounts.add_account("project", project, path)
    assert accounts.read_config(path).accounts == {"token": token, "project": project}
    assert 'token = "t0ken"' in path.read_text()


def test_the_file_is_private_and_so_is_its_folder(path: Path) -> None:
    previous = os.umask(0)
    try:
        accounts.add_account("a", account(), path)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_first_account_is_the_default_until_another_is_chosen(path: Path) -> None:
    accounts.add_account("a", account(), path)
    accounts.add_account("b", account(), path)
    assert accounts.read_config(path).default == "a"
    accounts.set_default("b", path)
    assert accounts.read_config(path).default == "b"
    accounts.add_account("c", account(), path)
    assert accounts.read_config(path).default == "b"


def test_an_account_that_exists_is_kept_unless_told_to_replace_it(path: Path) -> None:
    accounts.add_account("a", account("1"), path)
    with pytest.raises(AccountExistsError):
        accounts.add_account("a", account("2"), path)
    assert accounts.read_config(path).accounts["a"].credentials.project_id == "1"
    accounts.add_account("a", account("2"), path, replace=True)
    assert accounts.read_config(path).accounts["a"].credentials.project_id == "2"


def test_removing_the_default_leaves_none(path: Path) -> None:
    accounts.add_account("a", account(), path)
    accounts.add_account("b", account(), path)
    accounts.remove_account("a", path)
    config = accounts.read_config(path)
    assert (config.default, list(config.accounts)) == (None, ["b"])
    accounts.set_default("b", path)
    accounts.remove_account("b", path)
    assert accounts.read_config(path) == accounts.Config(None, {})


def test_an_unknown_account_can_be_neither_removed_nor_chosen(path: Path) -> None:
    for change in (accounts.remove_account, accounts.set_default):
        with pytest.raises(AccountNotFoundError):
            change("none", path)


def test_comments_and_order_stay_when_accounts_are_added(path: Path) -> None:
    write(path, ONE)
    accounts.add_account("b", account(), path)
    text = path.read_text()
    assert text.startswith(ONE.rstrip())
    assert list(accounts.read_config(path).accounts) == ["a", "b"]


def test_names_with_odd_characters_are_quoted(path: Path) -> None:
    for name in ("a.b", "ünï", "with space", 'q"'):
        accounts.add_account(name, account(), path)
        accounts.set_default(name, path)
        assert accounts.read_config(path).default == name


@pytest.mark.parametrize("name", ["", " a", "a\n"])
def test_a_name_that_cannot_be_typed_is_refused(name: str, path: Path) -> None:
    with pytest.raises(ConfigError):
        accounts.add_account(name, account(), path)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('region = "us"', 'region = "us"\nregoin = "eu"', "accounts.a.regoin is not a known key"),
        ('default = "a"', 'default = "a"\ncolour = 1', "colour is not a known key"),
        ('default = "a"', 'default = "b"', "default names an account that is not there: 'b'"),
        ('default = "a"', "default = 1", "default is text, not a number"),
        ('username = "user"', "username = 5", "accounts.a.username is text, not a number"),
        ('username = "user"', "", "accounts.a.username is missing"),
        (f'secret = "{PLANTED}"', "", "accounts.a.secret is missing"),
        (f'secret = "{PLANTED}"', f'secret = ["{PLANTED}"]', "accounts.a.secret is text, not a list"),
        (f'secret = "{PLANTED}"', 'secret = ""', "accounts.a is wrong: the secret is empty"),
        ('project_id = "12345"', "project_id = true", "accounts.a.project_id is text, not true or false"),
        ('project_id = "12345"', 'project_id = "x"', "accounts.a is wrong: project_id is a number"),
        ('region = "us"', "", "accounts.a.region is missing"),
        ('region = "us"', 'region = "xx"', "accounts.a is wrong: region is one of"),
        ('region = "us"', 'region = "us"\nkind = "magic"', "accounts.a.kind is one of"),
        ('region = "us"', 'region = "us"\ntoken = "t"', "accounts.a.token does not go with kind 'service_account'"),
        ('region = "us"', 'region = "us"\nproject_timezone = "Mars"', "accounts.a.project_timezone is not a time zone"),
        ('region = "us"', 'region = "us"\nproject_timezone = "../x"', "accounts.a.project_timezone is not a time zone"),
        ('region = "us"', 'region = "us"\nlegacy_local_time = "yes"', "accounts.a.legacy_local_time is true or false"),
        ('region = "us"', 'region = "us"\nstart_date = "2024-W05-3"', "accounts.a.start_date is not a day"),
        ('region = "us"', 'region = "us"\nstart_date = 2024-01-31T00:00:00', "accounts.a.start_date is a day"),
        ('region = "us"', 'region = "us"\nstart_date = 5', "accounts.a.start_date is a day, not a number"),
        ('region = "us"', 'region = "us"\nretries = 1.5', "accounts.a.retries is a whole number, not a number"),
        ('region = "us"', 'region = "us"\nretries = true', "accounts.a.retries is a whole number, not true or false"),
        ('region = "us"', 'region = "us"\ntimeout_s = "5"', "accounts.a.timeout_s is a number, not text"),
        ('region = "us"', 'region = "us"\ntimeout_s = inf', "accounts.a.timeout_s is not a number that can be"),
        ('region = "us"', 'region = "us"\nlookback_days = -1', "accounts.a.lookback_days is not a number that can be"),
        ("[accounts.a]", "[accounts]\na = 1\n[accounts.b]", "accounts.a is a table, not a number"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_key_and_without_the_value(
    old: str, new: str, problem: str, path: Path
) -> None:
    write(path, ONE.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        accounts.read_config(path)
    assert str(caught.value).startswith(f"{path}: {problem}")
    assert PLANTED not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("text", [f'secret = "{PLANTED}', f"{PLANTED}", f'a = "{PLANTED}"\na = 1', "[[accounts]]\n"])
def test_bad_toml_is_told_with_its_place_and_without_its_text(text: str, path: Path) -> None:
    write(path, text)
    with pytest.raises(ConfigError) as caught:
        accounts.read_config(path)
    assert str(path) in str(caught.value)
    assert PLANTED not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None


def test_text_that_is_not_utf_8_is_refused(path: Path) -> None:
    write(path, b'x = "' + PLANTED.encode() + b'\xff"')
    with pytest.raises(ConfigError, match="not UTF-8") as caught:
        accounts.read_config(path)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused_and_says_what_to_do(mode: int, path: Path) -> None:
    write(path, ONE)
    path.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        accounts.read_config(path)
    assert caught.value.hint == f"chmod 600 {path}"


def test_a_symbolic_link_is_refused(path: Path, tmp_path: Path) -> None:
    write(tmp_path / "other.toml", ONE)
    path.parent.mkdir()
    path.symlink_to(tmp_path / "other.toml")
    with pytest.raises(ConfigError, match="symbolic link"):
        accounts.read_config(path)
    with pytest.raises(ConfigError, match="symbolic link"):
        accounts.add_account("b", account(), path)


def test_a_folder_or_a_pipe_in_its_place_is_refused(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(ConfigError, match="is not a file"):
        accounts.read_config(path)
    pipe = path.parent / "pipe"
    os.mkfifo(pipe, 0o600)
    with pytest.raises(ConfigError, match="is not a file"):
        accounts.read_config(pipe)


@pytest.mark.parametrize(
    "text",
    [
        'accounts = {a = {username = "u", secret = "s", project_id = "1", region = "us"}}\n',
        'accounts.a.username = "u"\naccounts.a.secret = "s"\naccounts.a.project_id = "1"\naccounts.a.region = "us"\n',
    ],
)
def test_a_file_that_cannot_be_changed_safely_is_left_as_it_is(text: str, path: Path) -> None:
    write(path, text)
    assert list(accounts.read_config(path).accounts) == ["a"]
    with pytest.raises(ConfigError, match="cannot be changed for you"):
        accounts.add_account("b", account(), path)
    assert path.read_text() == text


def test_inline_tables_and_a_byte_order_mark_are_fine(path: Path) -> None:
    write(path, '\ufeff[accounts]\na = {username = "u", secret = "s", project_id = "1", region = "us"}\n')
    accounts.add_account("b", account(), path)
    assert list(accounts.read_config(path).accounts) == ["a", "b"]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, ONE)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        accounts.add_account("b", account(), path)
    assert path.read_text() == ONE
    assert {file.name for file in path.parent.iterdir()} == {"config.toml", ".config.toml.lock"}


def test_the_file_is_in_the_home_folder_unless_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert accounts.config_path({}) == tmp_path / ".mp" / "config.toml"
    assert accounts.config_path({"MP_CONFIG_PATH": "~/x.toml"}) == tmp_path / "x.toml"
