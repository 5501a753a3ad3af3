from __future__ import annotations

import base64
import copy
import dataclasses
import pickle
import traceback
import warnings
from datetime import date
from pathlib import Path

import pytest

from mixpanel_source import credentials as module
from mixpanel_source.credentials import Account, Credentials, Secret, resolve_credentials
from mixpanel_source.errors import AccountNotFoundError, AuthenticationError, ConfigError

PLANTED = "planted-s3cret-000"
ENVIRONMENT = {"MP_USERNAME": "env.user", "MP_SECRET": PLANTED, "MP_PROJECT_ID": "12345", "MP_REGION": "eu"}

CONFIG = """
default = "production"

[accounts.production]
username = "file.user"
secret = "file-secret"
project_id = "777"
region = "us"

[accounts.mumbai]
username = "in.user"
secret = "in-secret"
project_id = 888
region = "in"
project_timezone = "Asia/Kolkata"
legacy_local_time = true
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    path.chmod(0o600)
    return path


@pytest.fixture(autouse=True)
def _warn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_warned_of_project_secret", False)


def service_account() -> Credentials:
    return Credentials("user", PLANTED, "12345", "us")


def test_the_secret_is_not_shown_by_any_way_of_printing_credentials() -> None:
    credentials = service_account()
    shown = [
        repr(credentials),
        str(credentials),
        f"{credentials} {credentials.secret} {credentials.secret:>20} {credentials.secret!r}",
        "%s %r" % (credentials.secret, credentials.secret),  # noqa: UP031
        str(dataclasses.asdict(credentials)),
        str(dataclasses.astuple(credentials)),
        str(vars(credentials)),
        repr(Account(credentials, "production")),
    ]
    assert not [text for text in shown if PLANTED in text]
    assert "***" in repr(credentials)


def test_credentials_survive_pickle_copy_and_replace() -> None:
    credentials = service_account()
    assert pickle.loads(pickle.dumps(credentials)) == credentials
    assert copy.deepcopy(credentials) == credentials
    assert dataclasses.replace(credentials, project_id="9").secret.reveal() == PLANTED
    assert hash(credentials) == hash(service_account())


def test_credentials_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        service_account().project_id = "1"  # type: ignore[misc]


def test_a_secret_compares_by_its_text_and_is_false_when_empty() -> None:
    assert Secret("a") == Secret(Secret("a"))
    assert Secret("a") != "a"
    assert not Secret("")


def test_a_service_account_signs_with_basic_user_and_secret() -> None:
    header = Credentials("näme", "pä:ss", 12345, "us").authorization()
    assert base64.b64decode(header.removeprefix("Basic ")).decode() == "näme:pä:ss"


def test_a_project_secret_signs_with_an_empty_password() -> None:
    with pytest.warns(FutureWarning, match="2027-03-03"):
        header = Credentials("", "abc", "1", "us", "project_secret").authorization()
    assert header == "Basic " + base64.b64encode(b"abc:").decode()


def test_an_oauth_token_signs_as_bearer() -> None:
    assert Credentials("", "t0ken", "1", "us", "oauth_token").authorization() == "Bearer t0ken"


def test_a_project_secret_warns_once_of_its_end() -> None:
    with pytest.warns(FutureWarning):
        Credentials("", "abc", "1", "us", "project_secret")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Credentials("", "abc", "1", "us", "project_secret")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"region": "us-east"}, "region is one of us, eu, in"),
        ({"region": "US"}, "region is one of"),
        ({"region": ""}, "region is one of"),
        ({"project_id": "p12"}, "project_id is a number"),
        ({"project_id": ""}, "project_id is a number"),
        ({"project_id": "١٢"}, "project_id is a number"),
        ({"project_id": True}, "project_id is a number"),
        ({"project_id": -5}, "project_id is a number"),
        ({"workspace_id": "main"}, "workspace_id is a number"),
        ({"kind": "api_key"}, "kind is one of"),
        ({"secret": ""}, "the secret is empty"),
        ({"secret": PLANTED + "\n"}, "white space"),
        ({"username": ""}, "username is empty"),
        ({"username": "a:b"}, "colon"),
        ({"kind": "oauth_token"}, "username does not go with kind"),
        ({"kind": "oauth_token", "username": "", "secret": f"{PLANTED} x"}, "HTTP header"),
    ],
)
def test_wrong_parts_are_told_without_the_secret(change: dict[str, object], problem: str) -> None:
    parts: dict[str, object] = {"username": "user", "secret": PLANTED, "project_id": "1", "region": "us"}
    with pytest.raises(ConfigError, match=problem) as caught:
        Credentials(**{**parts, **change})  # type: ignore[arg-type]
    assert PLANTED not in "".join(traceback.format_exception(caught.value))


def test_a_traceback_with_local_variables_does_not_show_the_secret() -> None:
    secret = Secret(PLANTED)
    with pytest.raises(ConfigError) as caught:
        Credentials("a:b", secret, "1", "us")
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert PLANTED not in shown


def test_the_environment_comes_first(config: Path) -> None:
    account = resolve_credentials(environ=ENVIRONMENT, config_path=config)
    assert account.name is None
    assert account.credentials == Credentials("env.user", PLANTED, "12345", "eu")


def test_the_environment_winning_over_a_named_account_is_told(config: Path) -> None:
    told: list[str] = []
    account = resolve_credentials("production", ENVIRONMENT, config, told.append)
    assert account.credentials.username == "env.user"
    assert len(told) == 1
    assert "'production'" in told[0]
    assert PLANTED not in told[0]


def test_nothing_is_told_where_no_account_was_named(config: Path) -> None:
    told: list[str] = []
    resolve_credentials(None, ENVIRONMENT, config, told.append)
    resolve_credentials("mumbai", {}, config, told.append)
    assert told == []


@pytest.mark.parametrize("name", list(ENVIRONMENT))
@pytest.mark.parametrize("account", [None, "production"])
def test_a_partial_environment_is_an_error_that_names_what_is_missing(
    name: str, account: str | None, config: Path
) -> None:
    with pytest.raises(ConfigError, match=f"not {name}") as caught:
        resolve_credentials(account, {**ENVIRONMENT, name: " "}, config)
    assert PLANTED not in str(caught.value)


def test_a_wrong_region_in_the_environment_is_an_error_and_none_is_assumed() -> None:
    with pytest.raises(ConfigError, match="region"):
        resolve_credentials(environ={**ENVIRONMENT, "MP_REGION": "apac"})


def test_the_named_account_comes_before_the_default(config: Path) -> None:
    account = resolve_credentials("mumbai", {}, config)
    assert account == Account(Credentials("in.user", "in-secret", "888", "in"), "mumbai", "Asia/Kolkata", True)


def test_the_default_account_is_last(config: Path) -> None:
    assert resolve_credentials(environ={}, config_path=config).name == "production"


def test_the_config_path_is_taken_from_the_environment(config: Path) -> None:
    assert resolve_credentials(environ={"MP_CONFIG_PATH": str(config)}).name == "production"


def test_an_unknown_account_is_not_found(config: Path) -> None:
    with pytest.raises(AccountNotFoundError) as caught:
        resolve_credentials("staging", {}, config)
    assert "production, mumbai" in str(caught.value.hint)


def test_no_credentials_at_all_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AuthenticationError) as caught:
        resolve_credentials(environ={}, config_path=tmp_path / "none.toml")
    hint = caught.value.hint or ""
    assert all(word in hint for word in ("MP_USERNAME", "MP_REGION", "none.toml", "mpload demo"))


def test_accounts_without_a_default_say_to_choose_one(config: Path) -> None:
    config.write_text(CONFIG.replace('default = "production"', ""))
    with pytest.raises(AuthenticationError, match="no default"):
        resolve_credentials(environ={}, config_path=config)


def test_the_only_account_needs_no_default(config: Path) -> None:
    config.write_text(CONFIG.partition("[accounts.mumbai]")[0].replace('default = "production"', ""))
    assert resolve_credentials(environ={}, config_path=config).name == "production"


def test_another_project_has_none_of_what_the_account_says_of_its_own() -> None:
    own = Account(
        Credentials("u", "planted", "1", "eu", workspace_id="9"),
        "prod",
        "America/New_York",
        True,
        {"start_date": date(2020, 1, 1), "data_group_ids": ("5",), "retries": 7},
    )
    other = own.of_project("77")
    assert other == Account(Credentials("u", "planted", "77", "eu"), "prod", load_settings={"retries": 7})
    assert own.of_project("1") is own
