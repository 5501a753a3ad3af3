"""Accounts of dlt's configuration, as each of its providers tells of them, and of mpload's config file."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from mpload_here import run

from mixpanel_source.accounts import read_config
from mixpanel_source.configured_accounts import configured_account, configured_accounts
from mixpanel_source.errors import AccountNotFoundError, ConfigError
from mixpanel_source.many_projects import account_names

PLANTED = "planted-s3cret-000"
PLAIN = 'username = "user"\nproject_id = 12345\nregion = "eu"\n'
SECRET = f'secret = "{PLANTED}"\n'
SETTINGS = """
project_timezone = "Europe/Rome"
workspace_id = "9"
start_date = 2024-01-31
lookback_days = 9
max_rejected = 0.5
ledger_url = "redis://:planted-s3cret-000@host"
data_group_ids = ["1"]
"""
WHERE = "dlt's configuration: sources.mixpanel.accounts"
REPORT = '[[%s.one.segmentation]]\nreport = "orders"\nevent = "Order"\n'

Configure = Callable[..., None]


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reload_dlt: Callable[[], None]) -> Configure:
    """Writes dlt's files and mpload's, which dlt reads from then on."""
    (tmp_path / ".dlt").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DLT_DATA_DIR", str(tmp_path / "dlt"))
    monkeypatch.setenv("MP_CONFIG_PATH", str(tmp_path / "mpload.toml"))

    def write(secrets: str = "", config: str = "", file: str = "") -> None:
        (tmp_path / ".dlt/secrets.toml").write_text(secrets)
        (tmp_path / ".dlt/config.toml").write_text(config)
        (tmp_path / "mpload.toml").write_text(file)
        (tmp_path / "mpload.toml").chmod(0o600)
        reload_dlt()

    return write


def test_an_account_is_the_same_in_dlts_configuration_as_in_the_config_file(configure: Configure) -> None:
    table = PLAIN + SECRET + SETTINGS
    configure(file=f"[accounts.one]\n{table}{REPORT % 'accounts'}")
    expected = read_config().accounts
    assert configured_accounts() == expected
    configure(f"[sources.mixpanel.accounts.one]\n{table}{REPORT % 'sources.mixpanel.accounts'}")
    assert configured_accounts() == expected
    assert configured_account("one") == expected["one"]


def test_accounts_of_the_config_file_count_where_dlts_configuration_has_none(configure: Configure) -> None:
    file = f"[accounts.mine]\n{PLAIN}{SECRET}"
    configure("[sources.mixpanel]\nlookback_days = 3\n", file=file)
    assert account_names() == ["mine"]
    configure(f"[sources.mixpanel.accounts.ours]\n{PLAIN}{SECRET}", file=file)
    assert account_names() == ["ours"]
    with pytest.raises(AccountNotFoundError, match="'mine'") as told:
        configured_account("mine")
    assert told.value.hint == "its accounts: ours"
    done = run(["load", "--accounts", "mine"])
    assert (done.code, "its accounts: ours" in done.err) == (4, True)
    configure()
    with pytest.raises(ConfigError, match="there are no accounts"):
        account_names()


def test_providers_may_each_say_a_part_of_an_account(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(
        f'[sources.mixpanel.accounts."A one"]\n{SECRET}lookback_days = 7\n[sources.mixpanel.accounts.Eu_2]\n{SECRET}',
        f'[sources.mixpanel.accounts."A one"]\n{PLAIN}lookback_days = 6\n[sources.mixpanel.accounts.Eu_2]\n{PLAIN}',
    )
    for name, value in {"SECRET": "12345", "LOOKBACK_DAYS": "9", "LEGACY_LOCAL_TIME": "true"}.items():
        monkeypatch.setenv(f"SOURCES__MIXPANEL__ACCOUNTS__EU_2__{name}", value)
    for name, value in {"USERNAME": "u", "SECRET": "x__y", "PROJECT_ID": "7", "REGION": "us"}.items():
        monkeypatch.setenv(f"SOURCES__MIXPANEL__ACCOUNTS__OF_THE_ENVIRONMENT__{name}", value)
    one, eu, third = configured_accounts().values()
    assert (one.name, one.credentials.secret.reveal(), one.credentials.region) == ("A one", PLANTED, "eu")
    assert one.load_settings == {"lookback_days": 7}
    assert (eu.name, eu.credentials.secret.reveal(), eu.legacy_local_time) == ("Eu_2", "12345", True)
    assert eu.load_settings == {"lookback_days": 9}
    assert (third.name, third.credentials.secret.reveal()) == ("of_the_environment", "x__y")


def test_the_environment_may_hold_them_all_as_json(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    configure()
    account = f'{{"username": "u", "secret": "{PLANTED}", "project_id": 7, "region": "us", "start_date": "2024-01-31"}}'
    monkeypatch.setenv("SOURCES__MIXPANEL__ACCOUNTS", f'{{"one": {account}}}')
    assert configured_account("one").credentials.secret.reveal() == PLANTED


@pytest.mark.parametrize(
    ("secrets", "config", "variable", "told"),
    [
        (SECRET + PLAIN + "speed = 9\n", "", "", f"{WHERE}.one.speed is not a known key"),
        (SECRET, "", "", f"{WHERE}.one.username is missing"),
        (SECRET + PLAIN.replace("eu", PLANTED), "", "", f"{WHERE}.one is wrong"),
        ("", PLAIN + SECRET, "", "config.toml: sources.mixpanel.accounts.one.secret is a secret"),
        ("", "", "=" + PLANTED, f"{WHERE} is a table, not text"),
        ("", "", "__SECRET=" + PLANTED, "SOURCES__MIXPANEL__ACCOUNTS__SECRET names no key of an account"),
    ],
)
def test_what_is_wrong_is_told_without_a_secret(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, secrets: str, config: str, variable: str, told: str
) -> None:
    configure(*(text and f"[sources.mixpanel.accounts.one]\n{text}" for text in (secrets, config)))
    if variable:
        name, _, value = variable.partition("=")
        monkeypatch.setenv(f"SOURCES__MIXPANEL__ACCOUNTS{name}", value)
    with pytest.raises(ConfigError) as raised:
        configured_accounts()
    assert raised.value.message.startswith(told)
    assert PLANTED not in "".join(traceback.format_exception(raised.value))
