"""What is said on stderr: notes, errors, and on request the log. A secret that is known here is never said."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import typer

from mixpanel_source.errors import ConfigError, MixpanelDataError
from mixpanel_source.json_log import JsonFormatter

PROGRAM = "mpload"
WAIT_WORTH_A_LINE_S = 5.0


class LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


_secrets: set[str] = set()
_log = logging.getLogger("mixpanel_source.cli")
_handlers: list[logging.Handler] = []
"""Ours: of one log at a time."""
_log_is: set[str] = set()
"""`file`, `json`."""


def hide(*secrets: str) -> None:
    """Never say these, whoever puts them into a message. A shorter one is no secret, and part of many words."""
    _secrets.update(secret for secret in secrets if len(secret) >= 4)


def hide_address(url: str) -> None:
    """Never say the password in it, as it stands there or as it is meant, nor all of it."""
    with suppress(ValueError):
        password = urlsplit(url).password or ""
        hide(url, password, unquote(password))


def redacted(text: str) -> str:
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def one_line(text: str) -> str:
    """`text` without anything that would start a new line or steer a terminal."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in " ".join(text.split()))


def note(text: str) -> None:
    if logs_json_to_stderr():
        _log.info(one_line(text))
    else:
        _say(f"{PROGRAM}: {one_line(redacted(text))}")
        _also_log(logging.INFO, one_line(text))


def say_figures(name: str, figures: Mapping[str, Any], words: str, *, as_json: bool) -> None:
    """A note: in words, or as a JSON object of `figures`."""
    if as_json:
        _say(json.dumps({name: figures}, ensure_ascii=False))
    else:
        note(words)


def _say(line: str) -> None:
    try:
        print(line, file=sys.stderr)
    except OSError:  # a full disk: there is nobody left to tell, and the exit code is still to be right
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def confirm_removal(command: str, what: str) -> None:
    """Ask on the terminal. Raises MixpanelDataError for a no, ConfigError where nobody can be asked."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigError(f"{command} removes {what}", hint="add --force where nobody can be asked")
    if not typer.confirm(f"Remove {what}?", err=True):
        raise MixpanelDataError("nothing was removed")


def report(error: str, message: str, hint: str | None, code: int, *, as_json: bool) -> None:
    """An error: one line, or one JSON object."""
    message = redacted(message)
    hint = redacted(hint) if hint else None
    answer = {"error": error, "code": code, "hint": hint}
    if logs_json_to_stderr():
        _log.error(one_line(message), extra=answer)
        return
    _also_log(logging.ERROR, one_line(message), **answer)
    if as_json:
        answer = {"error": error, "code": code, "message": message, "hint": hint}
        _say(json.dumps(answer, ensure_ascii=False))
    else:
        note(message.rstrip(".") + (f"; {hint}" if hint else ""))


def set_up_log(verbose: bool, quiet: bool, format_: LogFormat | None = None, file: Path | None = None) -> None:
    """Ours and dlt's, to stderr or `file`; or none. Warnings of ours become notes.

    With `verbose` all of it; else, where a format or a file is named, ours from INFO and dlt's from WARNING. As JSON on
    stderr it holds notes and errors, too: every line is JSON. Raises ConfigError for a file that cannot be written.
    """
    is_on = verbose or format_ is not None or file is not None
    levels = {"mixpanel_source": "DEBUG" if verbose else "INFO", "dlt": "DEBUG" if verbose else "WARNING"}
    # dlt reads this when it is imported; its own default tells of every retry.
    os.environ["RUNTIME__LOG_LEVEL"] = levels["dlt"] if is_on else "CRITICAL"
    os.environ.setdefault("RUNTIME__DLTHUB_TELEMETRY", "false")
    hide(os.environ.get("MP_SECRET", "").strip())
    hide_address(os.environ.get("MP_LEDGER_URL", "").strip())

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if (category is FutureWarning and not quiet) or verbose:
            note(f"warning: {message}")

    warnings.showwarning = show
    for old in _handlers:
        for name in levels:
            logging.getLogger(name).removeHandler(old)
        with suppress(OSError):
            old.close()
    _handlers.clear()
    _log_is.clear()
    _log_is.update(name for name, is_so in (("file", file), ("json", format_ is LogFormat.JSON)) if is_so)
    if not is_on:
        logging.getLogger("mixpanel_source").propagate = True
        logging.lastResort = None
        logging.getLogger().addHandler(logging.NullHandler())  # else the first warning says that there is no handler
        return
    handler = _handler(file)
    _handlers.append(handler)
    formatter = JsonFormatter(redacted) if format_ is LogFormat.JSON else _TextFormatter(_TEXT)
    handler.format = formatter.format  # type: ignore[method-assign]  # dlt gives each handler a formatter of its own
    for name, level in levels.items():  # dlt goes on with the handler it finds
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False


def logs_json_to_stderr() -> bool:
    """Then nothing else is written there."""
    return _log_is == {"json"}


def log_exception(message: str) -> None:
    _log.debug(message, exc_info=True)


def _also_log(level: int, message: str, **fields: Any) -> None:
    """What is said on stderr is in the log's file as well."""
    if "file" in _log_is:
        _log.log(level, message, extra=fields)


def _handler(file: Path | None) -> logging.Handler:
    handler: logging.Handler
    if file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        from logging.handlers import WatchedFileHandler  # which takes longer than --help may

        try:  # a Watched one goes on in a new file where logrotate has moved the old one
            handler = WatchedFileHandler(file.expanduser(), encoding="utf-8", errors="backslashreplace")
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(
                f"cannot write the log {file}: {reason}", hint="look at --log-file, MP_LOG_FILE"
            ) from None
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk: nobody is left to tell
    return handler


_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))
