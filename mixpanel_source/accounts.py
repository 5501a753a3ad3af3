"""Named accounts in the config file, `~/.mp/config.toml`:

    default = "production"
    [accounts.production]
    username = "..."
    secret = "..."
    project_id = "12345"
    region = "us"

An account may also have `kind`, `token` (for kind `oauth_token`), `workspace_id`, `project_timezone`,
`legacy_local_time` and the keys of SETTING_KEYS. Of these, settings.REPORT_TABLES are arrays of tables, such as
`[[accounts.production.segmentation]]`, one for each report (see `report_questions`). The file holds secrets: it is
written with mode 0600 and refused if others may read it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
import os
import stat
import tempfile
import tomllib
import zoneinfo
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from mixpanel_source import settings
from mixpanel_source.credentials import Account, Credentials, Secret
from mixpanel_source.errors import AccountExistsError, AccountNotFoundError, ConfigError

if TYPE_CHECKING:
    import tomlkit

ACCOUNT_KEYS: Final[dict[str, tuple[type, ...]]] = {
    "username": (str,),
    "secret": (str,),
    "project_id": (str, int),
    "region": (str,),
    "kind": (str,),
    "token": (str,),
    "workspace_id": (str, int),
    "project_timezone": (str,),
    "legacy_local_time": (bool,),
}

SETTING_KEYS: Final[dict[str, tuple[type, ...]]] = {
    "start_date": (date, str),
    "lookback_days": (int,),
    "sweep_days": (int,),
    "max_rejected": (float, int),
    "window_days": (int,),
    "max_window_days": (int,),
    "max_window_events": (int,),
    "count_events": (bool,),
    "min_free_mb": (int,),
    "concurrent_exports": (int,),
    "max_spool_bytes": (int,),
    "spool_keep_hours": (float, int),
    "retries": (int,),
    "timeout_s": (float, int),
    "export_timeout_s": (float, int),
    "request_share": (float, int),
    "ledger_url": (str,),
    "max_body_bytes": (int,),
    "data_group_ids": (list,),
    "typed_tables": (bool,),
    **dict.fromkeys(settings.REPORT_TABLES, (list,)),
}
"""What an account may say of its loads; options of a load win over it."""

LOCK_TIMEOUT_S: Final = 10.0
"""How long a writer of the file waits for another one, which takes some milliseconds."""

REQUIRED_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "service_account": ("username", "secret", "project_id", "region"),
    "project_secret": ("secret", "project_id", "region"),
    "oauth_token": ("token", "project_id", "region"),
}
"""By kind. Of `username`, `secret` and `token` a kind takes only its own."""


@dataclass(frozen=True)
class Config:
    """What the config file says; `default`, if there is one, is a key of `accounts`."""

    default: str | None = None
    accounts: dict[str, Account] = field(default_factory=dict)

    @property
    def used(self) -> str | None:
        """The account where none is named: the default, or the only one."""
        return self.default or (next(iter(self.accounts)) if len(self.accounts) == 1 else None)


def config_path(environ: Mapping[str, str] | None = None) -> Path:
    """`MP_CONFIG_PATH`, else `~/.mp/config.toml`."""
    value = (os.environ if environ is None else environ).get("MP_CONFIG_PATH")
    try:
        return Path(value).expanduser() if value else settings.mixpanel_home() / "config.toml"
    except RuntimeError:
        raise ConfigError(f"MP_CONFIG_PATH {value!r} begins with the home of a user that is not known") from None


def read_config(path: Path | None = None) -> Config:
    """The config file's accounts in its order; an empty `Config` if there is no such file. Raises `ConfigError`."""
    path = path or config_path()
    return _config(path, _read_text(path))


def _config(path: Path, text: str) -> Config:
    document = _parse(path, text)
    for key in document:
        if key not in ("default", "accounts"):
            _wrong(path, key, "is not a known key", hint="known: default, accounts")
    accounts = accounts_of(path, document.get("accounts", {}))
    default = document.get("default")
    if default is not None and not isinstance(default, str):
        _wrong(path, "default", f"is text, not {_type_name(default)}")
    if default is not None and default not in accounts:
        _wrong(path, "default", f"names an account that is not there: {default!r}")
    return Config(default, accounts)


def accounts_of(where: Path | str, tables: object, section: str = "accounts") -> dict[str, Account]:
    """The accounts whose tables stand in `section`, in their order. Raises `ConfigError`, with `where` in it."""
    if not isinstance(tables, dict):
        _wrong(where, section, f"is a table, not {_type_name(tables)}")
    return {name: _account(where, name, table, section) for name, table in tables.items()}


def account_in(where: Path | str, accounts: Mapping[str, Account], name: str) -> Account:
    """Raises `AccountNotFoundError`, with `where` in it."""
    if name not in accounts:
        known = ", ".join(accounts) or "none"
        raise AccountNotFoundError(f"{where} has no account {name!r}", hint=f"its accounts: {known}")
    return accounts[name]


def add_account(name: str, account: Account, path: Path | None = None, *, replace: bool = False) -> None:
    """Stores `account`. The first one becomes the default. Raises `AccountExistsError` unless `replace`."""
    import tomlkit

    path = path or config_path()
    keys = _keys_of(account)
    _account(path, name, keys)  # else what cannot be read back would only be told by the whole file
    with _locked(path):
        config = _config_without(path, name, replace)
        default = config.default if config.accounts else name
        expected = Config(default, {**config.accounts, name: dataclasses.replace(account, name=name)})
        with _editing(path, expected) as document:
            if "accounts" not in document:
                document["accounts"] = tomlkit.table(is_super_table=True)
            table = tomlkit.table()
            for key, value in keys.items():
                table[key] = value
            document["accounts"][name] = table


def check_new_name(name: str, path: Path | None = None) -> None:
    """Raises `ConfigError` or `AccountExistsError` where `add_account` would, for asking before the secret is."""
    _config_without(path or config_path(), name)


def remove_account(name: str, path: Path | None = None) -> None:
    """Forgets an account; if it was the default there is none afterwards. Raises `AccountNotFoundError`."""
    path = path or config_path()
    with _locked(path):
        config = _config_with(path, name)
        rest = {other: account for other, account in config.accounts.items() if other != name}
        with _editing(path, Config(None if config.default == name else config.default, rest)) as document:
            del document["accounts"][name]


def set_default(name: str, path: Path | None = None) -> None:
    """Makes `name` the default account. Raises `AccountNotFoundError`."""
    path = path or config_path()
    with _locked(path):
        config = _config_with(path, name)
        with _editing(path, Config(name, config.accounts)):
            pass


def find_account(name: str, path: Path | None = None) -> Account:
    """The account of that name, whatever the environment says. Raises `AccountNotFoundError`."""
    return _config_with(path or config_path(), name).accounts[name]


def _config_without(path: Path, name: str, replace: bool = False) -> Config:
    if not name or name != name.strip() or not name.isprintable():
        raise ConfigError(f"not a name for an account: {name!r}")
    config = read_config(path)
    if name in config.accounts and not replace:
        raise AccountExistsError(
            f"{path} already has an account {name!r}", hint="choose another name, or mpload auth remove it first"
        )
    return config


def _config_with(path: Path, name: str) -> Config:
    config = read_config(path)
    account_in(path, config.accounts, name)
    return config


def _read_text(path: Path) -> str:
    """The file's text, "" if there is none. Refuses what others may read, or could have put there."""
    problem, hint = "", None
    try:
        # O_NONBLOCK: a pipe in the file's place is told, not waited for.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return ""
    except OSError as error:
        if error.errno == errno.ELOOP:
            problem, hint = "is a symbolic link", "set MP_CONFIG_PATH to the file itself"
        else:
            problem = f"cannot be read: {error.strerror}"
    else:
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                problem = "is not a file"
            elif os.name == "posix" and status.st_mode & 0o077:
                problem, hint = "holds secrets and can be read by others", f"chmod 600 {path}"
            else:
                with os.fdopen(handle, "rb", closefd=False) as file:
                    content = file.read()
                # Decoded with "replace", so that no exception with the content in it is ever raised.
                text = content.decode("utf-8", "replace")
                if text.encode("utf-8") == content:
                    return text.removeprefix("\ufeff")  # some editors put a byte order mark first
                problem = "is not UTF-8 text"
        finally:
            os.close(handle)
    raise ConfigError(f"{path} {problem}", hint=hint)


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        problem = str(error)
    # Out of the handler: newer Pythons keep the whole text, secrets included, in the exception.
    raise ConfigError(f"{path} is not valid TOML: {problem}")


def _account(where: Path | str, name: str, table: object, section: str = "accounts") -> Account:
    place = f"{section}.{name}"
    if not isinstance(table, dict):
        _wrong(where, place, f"is a table, not {_type_name(table)}")
    for key, value in table.items():
        known = ACCOUNT_KEYS | SETTING_KEYS
        if key not in known:
            _wrong(where, f"{place}.{key}", "is not a known key", hint=f"known: {', '.join(known)}")
        types = known[key]
        if not isinstance(value, types) or (isinstance(value, (bool, datetime)) and type(value) not in types):
            _wrong(where, f"{place}.{key}", f"is {_wanted(types)}, not {_type_name(value)}")
    kind = table.get("kind", "service_account")
    if kind not in REQUIRED_KEYS:
        _wrong(where, f"{place}.kind", f"is one of {', '.join(REQUIRED_KEYS)}")
    for key in REQUIRED_KEYS[kind]:
        if key not in table:
            _wrong(where, f"{place}.{key}", "is missing")
    for key in ("username", "secret", "token"):
        if key in table and key not in REQUIRED_KEYS[kind]:
            _wrong(where, f"{place}.{key}", f"does not go with kind {kind!r}")
    zone = table.get("project_timezone", "UTC")
    if not _is_zone(zone):
        _wrong(where, f"{place}.project_timezone", f"is not a time zone: {zone!r}", hint="such as Europe/Rome")
    try:
        credentials = Credentials(
            username=table.get("username", ""),
            secret=table["token"] if kind == "oauth_token" else table["secret"],
            project_id=table["project_id"],
            region=table["region"],
            kind=kind,
            workspace_id=table.get("workspace_id"),
        )
    except ConfigError as error:
        problem = error.message.partition(", not ")[0]  # what follows is the value
    else:
        load_settings = {key: _setting(where, f"{place}.{key}", table[key]) for key in SETTING_KEYS if key in table}
        return Account(credentials, name, zone, table.get("legacy_local_time", False), load_settings)
    return _wrong(where, place, f"is wrong: {problem}")


def _wanted(types: tuple[type, ...]) -> str:
    if date in types:
        return "a day"
    if bool in types:
        return "true or false"
    if list in types:
        return "a list"
    return "text" if str in types else "a number" if float in types else "a whole number"


def _setting(where: Path | str, key: str, value: Any) -> Any:
    if key.endswith(".start_date") and isinstance(value, str):
        try:
            return datetime.strptime(value, "%Y-%m-%d").date()
        except ValueError:
            _wrong(where, key, "is not a day", hint="such as 2024-01-31")
    if key.endswith(".ledger_url"):
        return Secret(value)  # there is a password in it
    if key.rpartition(".")[2] in settings.REPORT_TABLES:
        # Their parameters are checked where the project is opened: that takes what asks for reports.
        for number, report in enumerate(value, 1):
            if not isinstance(report, dict):
                _wrong(where, key, f"holds {_type_name(report)} as report {number}", hint=f"such as [[{key}]]")
    if isinstance(value, (int, float)) and not 0 <= value < math.inf:
        _wrong(where, key, "is not a number that can be")
    return value


def _is_zone(name: str) -> bool:
    try:
        zoneinfo.ZoneInfo(name)
    except (OSError, ValueError, zoneinfo.ZoneInfoNotFoundError):
        return False
    return True


def _keys_of(account: Account) -> dict[str, Any]:
    credentials = account.credentials
    keys: dict[str, Any] = {}
    if credentials.kind == "service_account":
        keys["username"] = credentials.username
    else:
        keys["kind"] = credentials.kind
    keys["token" if credentials.kind == "oauth_token" else "secret"] = credentials.secret.reveal()
    keys["project_id"] = credentials.project_id
    keys["region"] = credentials.region
    if credentials.workspace_id is not None:
        keys["workspace_id"] = credentials.workspace_id
    if account.project_timezone != "UTC":
        keys["project_timezone"] = account.project_timezone
    if account.legacy_local_time:
        keys["legacy_local_time"] = True
    more = account.load_settings
    return keys | {key: value.reveal() if isinstance(value, Secret) else value for key, value in more.items()}


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time, from reading to writing: else the later of two would undo the change of the other."""
    from filelock import FileLock, Timeout

    # Not the file itself: each writer puts another one in its place.
    lock = FileLock(path.with_name(f".{path.name}.lock"), mode=0o600)
    problem = ""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.acquire(timeout=LOCK_TIMEOUT_S)
    except Timeout:
        problem = "another process has been changing it for some time"
    except OSError as error:
        problem = error.strerror or type(error).__name__
    if problem:
        raise ConfigError(f"{path} cannot be written: {problem}")
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _editing(path: Path, expected: Config) -> Iterator[Any]:
    """The file's document for changing its accounts; comments and order stay.

    Written afterwards, with `expected`'s default, if it then says exactly what is expected.
    """
    import tomlkit

    try:
        document = tomlkit.parse(_read_text(path))
        yield document
        text = _with_default(document, expected.default)
        good = _config(path, text) == expected
    except (ConfigError, ValueError, TypeError, KeyError):
        good = False
    if not good:
        raise ConfigError(
            f"{path} is laid out in a way that cannot be changed for you",
            hint="edit it by hand: a [accounts.NAME] table for each account",
        )
    _write(path, text)


def _with_default(document: tomlkit.TOMLDocument, name: str | None) -> str:
    """The document's text with `default` set. A new key goes to the top: below a heading it would be that table's."""
    import tomlkit

    if name is None:
        document.pop("default", None)
    elif "default" in document:
        if document["default"] != name:
            document["default"] = name
    else:
        first = tomlkit.document()
        first["default"] = name
        return tomlkit.dumps(first) + "\n" + tomlkit.dumps(document)
    return tomlkit.dumps(document)


def _write(path: Path, text: str) -> None:
    """Replaces the file whole or not at all: a reader, or a crash, never meets half of it."""
    problem = ""
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp's mode is 0600
        temporary = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        temporary = None
    except OSError as error:
        problem = error.strerror or type(error).__name__
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
    if problem:
        raise ConfigError(f"{path} cannot be written: {problem}")


def _wrong(where: Path | str, key: str, problem: str, hint: str | None = None) -> NoReturn:
    # Values are never told: any of them could be a secret in the wrong place.
    raise ConfigError(f"{where}: {key} {problem}", hint=hint)


def _type_name(value: object) -> str:
    return {"str": "text", "int": "a number", "float": "a number", "bool": "true or false", "list": "a list"}.get(
        type(value).__name__, "a table" if isinstance(value, dict) else "a date"
    )
