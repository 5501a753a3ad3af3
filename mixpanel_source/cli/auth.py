"""`mpload auth`: the accounts of the config file."""

from __future__ import annotations

import os
import sys
from getpass import getpass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixpanel_source.cli.completion import accounts, one_of
from mixpanel_source.cli.global_options import GlobalOptions, commands_of, takes_global_options
from mixpanel_source.cli.messages import hide
from mixpanel_source.cli.output import write_record, write_rows
from mixpanel_source.credentials import ENVIRONMENT, KINDS, Secret
from mixpanel_source.errors import ConfigError
from mixpanel_source.settings import REGIONS

if TYPE_CHECKING:
    from mixpanel_source.credentials import Account

_LISTED = ("name", "default", "kind", "username", "project_id", "region", "project_timezone")
_MOST_SECRET_BYTES = 1 << 16
"""Of stdin: more is no secret."""

group = typer.Typer(name="auth", rich_markup_mode=None)
command = commands_of(group)


def _auth(options: GlobalOptions) -> None:
    """Accounts: credentials by name, kept in ~/.mp/config.toml (MP_CONFIG_PATH), which only you may read.

    \b
    mpload auth add production --username name.abc123.mp-service-account --project 12345
    mpload auth test production
    mpload auth list
    """


group.callback()(takes_global_options(_auth))


@command
def list_(options: GlobalOptions) -> None:
    """The accounts of the config file.

    \b
    mpload auth list
    """
    from mixpanel_source.accounts import config_path, read_config

    config = read_config()
    records = [_record(account, config.used) for account in config.accounts.values()]
    write_rows(_LISTED, [[record[name] for name in _LISTED] for record in records], options.output)
    if not records:
        options.say(f"{config_path()} has no accounts: mpload auth add NAME keeps one")
    if any(os.environ.get(name) for name in ENVIRONMENT):
        options.say(f"the credentials of the environment ({', '.join(ENVIRONMENT)}) win over every account")


@command
def add(
    options: GlobalOptions,
    name: Annotated[str, typer.Argument(help="What to call the account.")],
    username: Annotated[str, typer.Option(metavar="USER", help="The service account's user name.")] = "",
    project: Annotated[str | None, typer.Option("--project", "-p", metavar="ID", help="The project's number.")] = None,
    region: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(REGIONS),
            help="Where its data are; without it found by asking each.",
            autocompletion=one_of(*REGIONS),
        ),
    ] = None,
    secret: Annotated[
        Secret | None,
        typer.Option(parser=Secret, metavar="SECRET", help="Seen by who lists processes; without it asked for."),
    ] = None,
    secret_stdin: Annotated[bool, typer.Option("--secret-stdin", help="Read the secret from stdin.")] = False,
    kind: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="service_account, project_secret (an older project's API secret) or oauth_token: what the secret is.",
            autocompletion=one_of(*KINDS),
        ),
    ] = "service_account",
    workspace_id: Annotated[
        str | None, typer.Option(metavar="ID", help="The workspace (data view) that reports are asked of.")
    ] = None,
    project_timezone: Annotated[
        str, typer.Option(metavar="ZONE", help="The project's time zone, such as America/New_York.")
    ] = "UTC",
    legacy_local_time: Annotated[
        bool,
        typer.Option(
            "--legacy-local-time", help="The project was made before 2023: its days and times are those of its zone."
        ),
    ] = False,
) -> None:
    """Keep credentials under a name. The first account is the default one.

    Without --secret or --secret-stdin the secret is asked for, where there is a terminal. Nothing but a region that is
    not given is asked of Mixpanel: mpload auth test tries the account.

    \b
    mpload auth add production --username name.abc123.mp-service-account --project 12345
    mpload auth add eu --username name.abc123.mp-service-account --project 67890 --region eu --secret-stdin < secret
    """
    from mixpanel_source.account_check import credentials_in_any_region
    from mixpanel_source.accounts import add_account, check_new_name, read_config
    from mixpanel_source.credentials import Account, Credentials

    if secret is not None:
        hide(secret.reveal())
        options.say("warning: --secret is seen in the list of processes and the shell's history: use --secret-stdin")
    check_new_name(name)
    project = project or options.project
    if not project:
        raise ConfigError("the project is missing", hint="add --project ID")
    if kind == "service_account" and not username:
        raise ConfigError("the service account's user name is missing", hint="add --username USER, or --kind")
    # Whatever else is wrong is told before a secret is asked for.
    Credentials(username, secret or "unknown", project, region or REGIONS[0], kind, workspace_id)
    secret = _secret_from(secret, secret_stdin)
    hide(secret.reveal())
    credentials = credentials_in_any_region(username, secret, project, region, kind, workspace_id)
    account = Account(credentials, name, project_timezone, legacy_local_time)
    add_account(name, account)
    write_record(_record(account, read_config().used), options.output)
    if region is None:
        options.say(f"the region is {credentials.region}")


def _secret_from(given: Secret | None, from_stdin: bool) -> Secret:
    """The secret as given, or from stdin, or typed by who sits there."""
    if given is not None and from_stdin:
        raise ConfigError("--secret and --secret-stdin exclude each other", hint="leave --secret out")
    if given is not None:
        return given
    if sys.stdin.isatty():
        # Not typer.prompt, which shows the prompt before it turns the echo off.
        try:
            return Secret(getpass("Secret: "))
        except EOFError:
            raise typer.Abort from None
    if not from_stdin:
        raise ConfigError("the secret is missing, and there is no terminal to ask on", hint="add --secret-stdin")
    # Decoded with "replace", so that no exception with the secret in it is ever raised.
    text = sys.stdin.buffer.read(_MOST_SECRET_BYTES).decode("utf-8", "replace")
    if "\ufffd" in text:
        raise ConfigError("the secret on stdin is not UTF-8 text")
    return Secret(text.removesuffix("\n").removesuffix("\r"))


@command
def remove(
    options: GlobalOptions, name: Annotated[str, typer.Argument(help="An account.", autocompletion=accounts)]
) -> None:
    """Forget an account. Nothing that was loaded with it is removed.

    \b
    mpload auth remove staging
    """
    from mixpanel_source.accounts import read_config, remove_account

    remove_account(name)
    config = read_config()
    write_record({"removed": name, "default": config.used}, options.output)
    if config.used is None and config.accounts:
        options.say("there is no default account any more: mpload auth switch NAME chooses one")


@command
def switch(
    options: GlobalOptions, name: Annotated[str, typer.Argument(help="An account.", autocompletion=accounts)]
) -> None:
    """Make an account the default one.

    \b
    mpload auth switch staging
    """
    from mixpanel_source.accounts import find_account, set_default

    set_default(name)
    write_record(_record(find_account(name), name), options.output)


@command
def show(
    options: GlobalOptions,
    name: Annotated[
        str | None, typer.Argument(help="An account; without it the one that would be used.", autocompletion=accounts)
    ] = None,
) -> None:
    """What is kept of an account; of its secret only that there is one.

    \b
    mpload auth show
    mpload auth show production --format json
    """
    from mixpanel_source.accounts import config_path, read_config

    account = options.find_account(name)
    from_file = account.name is not None
    record = _record(account, read_config().used if from_file else None)
    write_record({**record, "source": str(config_path()) if from_file else "environment"}, options.output)


@command
def test(
    options: GlobalOptions,
    name: Annotated[
        str | None, typer.Argument(help="An account; without it the one that would be used.", autocompletion=accounts)
    ] = None,  # noqa: PT028
) -> None:
    """Try an account. Where it does not work, the error says whether secret, region, project, role or plan is wrong.

    It takes 2 requests, of which one counts toward the 60 an hour.

    \b
    mpload auth test
    mpload auth test production --format json | jq .timezone
    """
    from mixpanel_source.account_check import check_account

    checked = check_account(options.find_account(name))
    for warning in checked.warnings:
        options.say(f"warning: {warning}")
    account = checked.account
    write_record(
        {
            "name": account.name,
            "user": checked.user,
            "role": checked.role,
            "project_id": account.credentials.project_id,
            "project_name": checked.project_name,
            "region": account.credentials.region,
            "timezone": checked.timezone,
            "project_timezone": account.project_timezone,
            "timezone_agrees": checked.timezone_agrees,
        },
        options.output,
    )
    options.say("the account works")


def _record(account: Account, used: str | None) -> dict[str, Any]:
    credentials = account.credentials
    return {
        "name": account.name,
        "default": account.name is not None and account.name == used,
        "kind": credentials.kind,
        "username": credentials.username or None,
        "secret": str(credentials.secret),
        "project_id": credentials.project_id,
        "region": credentials.region,
        "workspace_id": credentials.workspace_id,
        "project_timezone": account.project_timezone,
        "legacy_local_time": account.legacy_local_time,
        "load_settings": {
            key: str(value) if isinstance(value, Secret) else value for key, value in account.load_settings.items()
        },
    }
