"""The accounts of many projects: those of dlt's configuration, where it has any, else those of mpload's config file.

In dlt's an account is the table `[sources.mixpanel.accounts.NAME]`, with the same keys as in the config file. Each
of dlt's providers may say a part of it (secrets.toml, config.toml, the Airflow Variable `dlt_secrets_toml`), and so may
the environment: `SOURCES__MIXPANEL__ACCOUNTS__NAME__SECRET`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

import dlt
from dlt.common.configuration.providers import EnvironProvider
from dlt.common.configuration.utils import auto_cast
from dlt.common.typing import TSecretValue

from mixpanel_source.accounts import ACCOUNT_KEYS, SETTING_KEYS, account_in, accounts_of, find_account, read_config
from mixpanel_source.credentials import Account
from mixpanel_source.errors import ConfigError

SECTION: Final = ("sources", "mixpanel", "accounts")

HOW_TO_ADD: Final = "mpload auth add NAME, or [sources.mixpanel.accounts.NAME] in .dlt/secrets.toml"

_WHERE: Final = "dlt's configuration"
_SECRET_KEYS: Final = ("secret", "token", "ledger_url")


def configured_accounts() -> dict[str, Account]:
    """By name; none where neither has any. Raises ConfigError."""
    return _accounts_of_dlt() or read_config().accounts


def configured_account(name: str) -> Account:
    """Raises ConfigError and AccountNotFoundError."""
    found = _accounts_of_dlt()
    return account_in(_WHERE, found, name) if found else find_account(name)


def _accounts_of_dlt() -> dict[str, Account]:
    # Not through dlt.secrets: that takes the table of one provider whole, and keeps the secrets in dlt's trace.
    tables: dict[str, Any] = {}
    for provider in reversed(dlt.config.config_providers):  # the first of them wins
        found, _ = provider.get_value(SECTION[-1], TSecretValue, None, *SECTION[:-1])
        if isinstance(found, str):
            found = auto_cast(found)
        if found is None:
            continue
        if not isinstance(found, dict):
            accounts_of(_WHERE, found, ".".join(SECTION))
        if not provider.supports_secrets:
            _refuse_secrets(provider.name, found)
        for name, table in found.items():
            _add(tables, name, table)
    for name, key, value in _of_environment({name.upper(): name for name in tables}):
        _add(tables, name, {key: value})
    return accounts_of(_WHERE, tables, ".".join(SECTION))


def _add(tables: dict[str, Any], name: str, table: object) -> None:
    known = tables.get(name)
    tables[name] = {**known, **table} if isinstance(known, dict) and isinstance(table, dict) else table


def _refuse_secrets(provider: str, tables: Mapping[str, Any]) -> None:
    """As dlt does for its own: that file is one to be shown."""
    for name, table in tables.items():
        for key in _SECRET_KEYS:
            if isinstance(table, dict) and key in table:
                raise ConfigError(
                    f"{provider}: {'.'.join(SECTION)}.{name}.{key} is a secret", hint="move it to secrets.toml"
                )


def _of_environment(names: Mapping[str, str]) -> list[tuple[str, str, Any]]:
    """Names, keys and values of what the environment says; `names` are those that others tell of, by upper case."""
    prefix = EnvironProvider.get_key_name("", *SECTION)
    found = []
    for variable, value in os.environ.items():
        if not variable.startswith(prefix):
            continue
        name, _, key = variable.removeprefix(prefix).rpartition("__")
        if not name:
            raise ConfigError(f"{variable} names no key of an account", hint=f"such as {prefix}{key}__SECRET")
        key = key.lower()
        is_text = str in (ACCOUNT_KEYS | SETTING_KEYS).get(key, (str,))
        found.append((names.get(name, name.lower()), key, value if is_text else auto_cast(value)))
    return found
