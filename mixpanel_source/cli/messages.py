"""What is said on stderr: notes, errors, and with --verbose the log. A secret that is known here is never said."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from typing import Any, TextIO

import typer

from mixpanel_source.errors import ConfigError, MixpanelDataError

PROGRAM = "mpload"
WAIT_WORTH_A_LINE_S = 5.0

_secrets: set[str] = set()


def hide(*secrets: str) -> None:
    """Never say these, whoever puts them into a message. A shorter one is no secret, and part of many words."""
    _secrets.update(secret for secret in secrets if len(secret) >= 4)


def redacted(text: str) -> str:
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def one_line(text: str) -> str:
    """`text` without anything that would start a new line or steer a terminal."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in " ".join(text.split()))


def note(text: str) -> None:
    _say(f"{PROGRAM}: {one_line(redacted(text))}")


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
    if as_json:
        answer = {"error": error, "code": code, "message": message, "hint": hint}
        _say(json.dumps(answer, ensure_ascii=False))
    else:
        note(message.rstrip(".") + (f"; {hint}" if hint else ""))


def set_up_log(verbose: bool, quiet: bool) -> None:
    """Our log and dlt's, at DEBUG, to stderr; or none. Warnings of ours become notes."""
    # dlt reads this when it is imported; its own default tells of every retry.
    os.environ["RUNTIME__LOG_LEVEL"] = "DEBUG" if verbose else "CRITICAL"
    os.environ.setdefault("RUNTIME__DLTHUB_TELEMETRY", "false")
    hide(os.environ.get("MP_SECRET", "").strip())

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if (category is FutureWarning and not quiet) or verbose:
            note(f"warning: {message}")

    warnings.showwarning = show
    if verbose:
        handler = _RedactingHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        for name in ("mixpanel_source", "dlt"):  # dlt goes on with the handler it finds
            logger = logging.getLogger(name)
            logger.handlers = [handler]
            logger.setLevel(logging.DEBUG)
            logger.propagate = False
    else:
        logging.lastResort = None
        logging.getLogger().addHandler(logging.NullHandler())  # else the first warning says that there is no handler


class _RedactingHandler(logging.StreamHandler[TextIO]):
    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))
