"""`mpload forget`: deleting people."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mixpanel_source.cli.global_options import GlobalOptions
from mixpanel_source.cli.messages import WAIT_WORTH_A_LINE_S, confirm_removal
from mixpanel_source.cli.output import write_record
from mixpanel_source.errors import ConfigError


def forget(
    options: GlobalOptions,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[DISTINCT_ID]...", help="Of the people; or a user's or device's id.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Read ids from a file, one a line; - is stdin.")
    ] = None,
    keep_out: Annotated[
        bool, typer.Option("--keep-out", help="Leave these people out of later loads and snapshots, too.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Do not ask.")] = False,
) -> None:
    """Delete people: their rows from every table, and their bytes from the file and from what loads have left.

    Mixpanel itself is not asked for anything: what it still has comes again with the next load, unless --keep-out.

    \b
    mpload forget ann@example.com
    mpload forget --file ids.txt --keep-out --force
    """
    from mixpanel_source.forget import forget as forget_people

    given = [*(ids or []), *(_ids_in(file) if file is not None else [])]
    if not given:
        raise ConfigError("nobody is named", hint="mpload forget DISTINCT_ID, or --file FILE")
    people = "1 id" if len(set(given)) == 1 else f"{len(set(given))} ids"
    database = options.find_database()
    if not force:
        confirm_removal("forget", f"all rows of {people} from {database}")

    def waiting(seconds: float, why: str) -> None:
        if seconds > WAIT_WORTH_A_LINE_S:
            options.say(f"waiting {seconds:.0f} s {why}")

    done = forget_people(database, given, keep_out=keep_out, on_wait=waiting)
    if not done.rows:
        options.say(f"nothing was there of {people}")
    write_record(asdict(done), options.output)


def _ids_in(file: Path) -> list[str]:
    """The lines that are not empty. No error holds one of them."""
    try:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        lines = data.decode("utf-8-sig").split("\n")
    except OSError as error:
        raise ConfigError(f"cannot read the ids: {error}") from None
    except UnicodeDecodeError:
        raise ConfigError("the ids are not UTF-8 text") from None
    return [id_ for line in lines if (id_ := line.removesuffix("\r"))]
