"""The options of every command. They may stand before the command or after it; after it wins."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from mixpanel_source.cli import completion
from mixpanel_source.cli.completion import Complete
from mixpanel_source.cli.messages import (
    WAIT_WORTH_A_LINE_S,
    LogFormat,
    hide,
    hide_address,
    logs_json_to_stderr,
    note,
    say_figures,
    set_up_log,
)
from mixpanel_source.cli.output import TABLE_ROWS, Format, default_format, write_rows
from mixpanel_source.errors import AuthenticationError, ConfigError

if TYPE_CHECKING:
    from mixpanel_source.credentials import Account
    from mixpanel_source.project import Project


_EPILOG = "Options of mpload itself (--db, --format, --quiet ...: see mpload --help) may stand here, too."


@dataclass(frozen=True)
class _Option:
    flags: tuple[str, ...]
    help: str
    value_type: Any = str | None
    metavar: str | None = None
    envvar: str | None = None
    complete: Complete | None = None

    def parameter(self, name: str, *, after_command: bool) -> inspect.Parameter:
        """After the command it is not in the help, and the environment does not stand in for it."""
        option = typer.Option(
            *self.flags,
            help=self.help,
            metavar=self.metavar,
            envvar=None if after_command else self.envvar,
            hidden=after_command,
            autocompletion=self.complete,
        )
        default = False if self.value_type is bool else None
        annotation: Any = Annotated[self.value_type, option]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


_OPTIONS = {
    "account": _Option(
        ("--account", "-a"), "An account of the config file.", metavar="NAME", complete=completion.accounts
    ),
    "project": _Option(("--project", "-p"), "Another project than the account's.", metavar="ID"),
    "db": _Option(
        ("--db",),
        "The DuckDB file; without it <project id>.duckdb in the data folder.",
        Path | None,
        metavar="FILE",
        envvar="MP_DB",
    ),
    "format": _Option(
        ("--format", "-f"),
        "How data are written; without it a table, or json when piped.",
        Format | None,
        envvar="MP_FORMAT",
    ),
    "quiet": _Option(("--quiet", "-q"), "Say nothing on stderr but errors.", bool),
    "verbose": _Option(("--verbose", "-v"), "Log what is done to stderr, in detail.", bool),
    "log_format": _Option(
        ("--log-format",),
        "Log to stderr: each request, wait, window and package. As json, all that is said there is JSON, a line each.",
        LogFormat | None,
        envvar="MP_LOG_FORMAT",
    ),
    "log_file": _Option(
        ("--log-file",), "Log to the end of this file instead.", Path | None, metavar="FILE", envvar="MP_LOG_FILE"
    ),
}


@dataclass
class GlobalOptions:
    """What was given. One for each run: `main` reads from it how to report an error."""

    account: str | None = None
    project: str | None = None
    db: Path | None = None
    format: Format | None = None
    quiet: bool = False
    verbose: bool = False
    log_format: LogFormat | None = None
    log_file: Path | None = None
    errors_as_json: bool = False
    _account: Account | None = None

    def take(self, **given: Any) -> None:
        """Where an option was given it takes the place of what is known; no flag is unset."""
        for name, value in given.items():
            if value:
                setattr(self, name, value)

    def take_parsed(self, context: typer.Context) -> None:
        """What a command line says that is read but not run."""
        for params in (context.find_root().params, context.params):
            self.take(**{name: params.get(f"global_{name}") for name in _OPTIONS})

    @property
    def output(self) -> Format:
        return self.format or default_format()

    def begin(self) -> None:
        """All options are known."""
        set_up_log(self.verbose, self.quiet, self.log_format, self.log_file)

    def say(self, text: str) -> None:
        """A note on stderr, unless quiet."""
        if not self.quiet:
            note(text)

    def say_figures(self, name: str, figures: Mapping[str, Any], words: str) -> None:
        """As `say`; an object where json was asked for by name. A log of JSON has them anyway."""
        if not (self.quiet or logs_json_to_stderr()):
            say_figures(name, figures, words, as_json=self.errors_as_json)

    def write(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], types: Sequence[Any] | None = None) -> None:
        """Write all `rows`, and say so where a table leaves some out."""
        if not write_rows(columns, rows, self.output, types):
            self.say(f"only the first {TABLE_ROWS} rows are shown; --format csv (or jsonl, json) has no limit")

    def find_account(self, name: str | None = None) -> Account:
        """The account the options and the environment lead to; with `name`, that of the config file in any case.

        Raises as `resolve_credentials`.
        """
        from mixpanel_source import accounts
        from mixpanel_source.credentials import ENVIRONMENT, Secret, resolve_credentials, spellings

        if self._account is not None:
            return self._account
        environ = dict(os.environ)
        if self.project and any(environ.get(name) for name in ENVIRONMENT):
            environ["MP_PROJECT_ID"] = self.project
        if name is None:
            account = resolve_credentials(self.account, environ, notify=self.say)
        else:
            account = accounts.find_account(name)
        hide(*spellings(account.credentials))
        if isinstance(address := account.load_settings.get("ledger_url"), Secret):
            hide_address(address.reveal())
        if self.project:
            account = account.of_project(self.project)
        self._account = account
        return account

    def find_accounts(self, names: str | None, all_: bool) -> list[Account]:
        """The configured ones: those named, separated by commas, or all. None where neither is asked for."""
        from mixpanel_source.configured_accounts import configured_account
        from mixpanel_source.credentials import Secret, spellings
        from mixpanel_source.many_projects import account_names

        if names is None and not all_:
            return []
        flag = "--all-accounts" if all_ else "--accounts"
        for other, value in (("--account", self.account), ("--project", self.project), ("--db", self.db)):
            if value is not None:
                raise ConfigError(f"{other} goes not with {flag}", hint="each account has its own")
        if all_ and names is not None:
            raise ConfigError("--accounts goes not with --all-accounts", hint="leave one of them out")
        chosen = account_names() if names is None else dict.fromkeys(map(str.strip, names.split(",")))
        found = [configured_account(name) for name in chosen]
        for account in found:
            hide(*spellings(account.credentials))
            if isinstance(address := account.load_settings.get("ledger_url"), Secret):
                hide_address(address.reveal())
        return found

    def find_project(self) -> Project:
        """The account's project, for questions: they wait for the hourly limit only where they are told to."""
        from mixpanel_source.project import project_of

        def waiting(seconds: float, why: str) -> None:
            if seconds > WAIT_WORTH_A_LINE_S:
                self.say(f"waiting {seconds:.0f} s: {why}")

        return project_of(self.find_account(), wait=False, on_wait=waiting)

    def find_database(self, account: Account | None = None) -> Path:
        """The file to work on. Raises ConfigError where nothing tells which."""
        from mixpanel_source.warehouse import database_path

        if self.db is not None:
            try:
                return self.db.expanduser()
            except RuntimeError:
                raise ConfigError(f"{self.db} begins with the home of a user that is not known") from None
        if self.project is not None:
            return database_path(self.project)
        try:
            account = account or self.find_account()
        except AuthenticationError:
            raise ConfigError(
                "nothing says which database is meant", hint="add --db FILE, or --project ID, or set up credentials"
            ) from None
        return database_path(account.credentials.project_id)

    def find_project_id(self) -> str | None:
        """None where there are no credentials to tell it."""
        try:
            return self.project or self.find_account().credentials.project_id
        except AuthenticationError:
            return None


class _Command(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As Typer does it, but no argument too many is told of with its text: it may be a secret that went astray."""
        ctx.allow_extra_args = True
        super().parse_args(ctx, args)
        if ctx.args and not ctx.resilient_parsing:
            ctx.fail("1 argument is too many" if len(ctx.args) == 1 else f"{len(ctx.args)} arguments are too many")
        return []

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """The global options are given here, too, which the help leaves to that of mpload itself."""
        for parameter in self.params:
            if isinstance(parameter, TyperOption):
                parameter.hidden = False
        return super().shell_complete(ctx, incomplete)


def refuse_empty(*given: tuple[str, str | None]) -> None:
    """An empty value is a variable of the shell's that is not set, and not the same as an option left out."""
    for flag, value in given:
        if value == "":
            raise ConfigError(f"{flag} is empty", hint="give it a value, or leave it out")


def commands_of(group: typer.Typer) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that makes a function a command of `group`, with the global options."""

    def command(function: Callable[..., None]) -> Callable[..., None]:
        name = function.__name__.rstrip("_").replace("_", "-")  # `list_` is called list
        group.command(name, cls=_Command, epilog=_EPILOG)(takes_global_options(function))
        return function

    return command


def takes_global_options(function: Callable[..., None], *, after_command: bool = True) -> Callable[..., None]:
    """A function of GlobalOptions and options of its own, as Typer wants it: with the global options among its own.

    An option of its own that is named like a global one takes its place.
    """
    _, *own = inspect.signature(function, eval_str=True).parameters.values()
    others = {name: option for name, option in _OPTIONS.items() if name not in {one.name for one in own}}

    def run(**values: Any) -> None:
        options: GlobalOptions = values.pop("context").obj
        options.take(**{name: values.pop(f"global_{name}") for name in others})
        if after_command:
            options.begin()
        function(options, **values)

    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    added = [option.parameter(f"global_{name}", after_command=after_command) for name, option in others.items()]
    parameters = [context, *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own), *added]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__name__, run.__doc__ = function.__name__, function.__doc__
    return run
