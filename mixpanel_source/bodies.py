"""Bodies that came from Mixpanel: how they are spooled and proven whole, and as what they are handed out."""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Final, cast

from isal import igzip_lib, isal_zlib

from mixpanel_source.closing import Closing
from mixpanel_source.errors import WarehouseError

fcntl: ModuleType | None
try:
    fcntl = importlib.import_module("fcntl")
except ImportError:  # Windows
    fcntl = None

READ_BYTES: Final = 256 << 10
PIECE_BYTES: Final = 1 << 20
"""Most that is decompressed at a time: a small body can hold gigabytes of one repeated line."""
BLOCK_BYTES: Final = 8 << 20
"""Large enough that the cost of a block's parse call does not show, small enough to fit beside others."""
MAX_LINE_BYTES: Final = 64 << 20
STALE_SPOOL_S: Final = 60.0
"""Age from which a file that nobody has locked is taken for left behind: its owner locks it right after making it."""

_SPOOL_PREFIX = "mpload-"
_SPACE = b" \t\r\n"
_GZIP_ERROR = cast(type[Exception], igzip_lib.IsalError)
_ODD_LINE_STARTS = re.compile(rb'\n(?!\{"event":|\n)')
_MESSAGE_WORDS = re.compile(
    rb"\b(terminated|timed?[ -]?out|errors?|failed|failure|abort(ed)?|unavailable|exceeded)\b", re.IGNORECASE
)
_BEGUN = re.compile(r"[-+.\\\w]{0,9}")
_ERROR_AT_END = re.compile(rb'\{"error"\s*:\s*"[^"]*"\s*\}$')


class ExportBody(Closing):
    """An export that came whole, in a file of its own until it is closed, or kept."""

    def __init__(
        self, spool: Spool, encoding: str, compressed_bytes: int, decompressed_bytes: int, lines: int, *, attempts: int
    ) -> None:
        self._spool = spool
        self._encoding = encoding
        self.compressed_bytes = compressed_bytes
        """Size as it was sent."""
        self.decompressed_bytes = decompressed_bytes
        self.lines = lines
        self.attempts = attempts
        """Requests it took, this one included."""

    def blocks(self, size: int = BLOCK_BYTES) -> Iterator[bytes]:
        """The lines in blocks of about `size` bytes, each of whole lines and ending in b"\\n". Can be called again.

        Lines end at b"\\n" only: `str.splitlines` also cuts at U+2028, which a property may hold raw.
        """
        parts: list[bytes] = []
        held = 0
        for piece in self._pieces(min(PIECE_BYTES, max(size, 1))):
            parts.append(piece)
            held += len(piece)
            if held >= size and (end := piece.rfind(b"\n") + 1):
                parts[-1] = piece[:end]
                yield b"".join(parts)
                parts = [piece[end:]]
                held = len(parts[0])
        rest = b"".join(parts)
        if rest:
            yield rest if rest.endswith(b"\n") else rest + b"\n"

    def _pieces(self, size: int) -> Iterator[bytes]:
        inflater = Inflater(self._encoding, size)
        problem = ""
        with self._spool.open() as file:
            try:
                while chunk := self._spool.read(file, READ_BYTES):
                    for piece in inflater.feed(chunk):
                        self._spool.check_open()
                        yield piece
                inflater.finish()
            except CutError as cut:
                problem = str(cut)
        if not problem and inflater.decompressed_bytes != self.decompressed_bytes:
            problem = f"it holds {inflater.decompressed_bytes} bytes, and held {self.decompressed_bytes}"
        if problem:
            raise DamagedError(f"the spooled export is damaged: {problem}", hint="check the disk MP_DATA_DIR is on")

    def facts(self) -> dict[str, Any]:
        """What `reopened` needs to know of it, and what it was: JSON."""
        return {
            "encoding": self._encoding,
            "compressed_bytes": self.compressed_bytes,
            "decompressed_bytes": self.decompressed_bytes,
            "lines": self.lines,
            "attempts": self.attempts,
        }

    @property
    def is_kept(self) -> bool:
        return self._spool.is_kept

    @property
    def name(self) -> str:
        """Of its file."""
        return self._spool.path.name

    def sync(self) -> None:
        """Have all of it on the disk. Raises OSError."""
        self._spool.sync()

    def keep(self, path: Path) -> None:
        """Move it to `path`, where it stays when this is closed. Raises OSError."""
        self._spool.keep(path)

    @classmethod
    def reopened(cls, path: Path, facts: Mapping[str, Any]) -> ExportBody:
        """One that was kept. Raises WarehouseError."""
        return cls(Spool.reopened(path), **facts)

    def close(self) -> None:
        """Removes the file, unless it is kept. What is still reading it fails."""
        self._spool.discard()


class DamagedError(WarehouseError):
    """A file does not hold any more what was written to it."""


class ProfilePages(Closing):
    """The raw bodies of the pages of one complete walk, in a file of its own until it is closed.

    Iterating gives each page's JSON as Mixpanel sent it, decompressed; it can be done again, and from the end.
    """

    def __init__(
        self, spool: Spool, ends: Sequence[int], *, total: int | None, profiles: int, distinct: int, attempts: int = 0
    ) -> None:
        self._spool = spool
        self._ends = ends
        self.pages = len(ends)
        self.total = total
        """The profiles Mixpanel said there are, where it said so."""
        self.profiles = profiles
        self.distinct = distinct
        """How many different `$distinct_id`s there are among `profiles`."""
        self.attempts = attempts
        """Requests it took, those of broken walks included."""

    def __len__(self) -> int:
        return self.pages

    def __iter__(self) -> Iterator[bytes]:
        return self._read(range(self.pages))

    def __reversed__(self) -> Iterator[bytes]:
        return self._read(reversed(range(self.pages)))

    def _read(self, pages: Iterable[int]) -> Iterator[bytes]:
        with self._spool.open() as file:
            for page in pages:
                start = self._ends[page - 1] if page else 0
                file.seek(start)
                yield self._spool.read(file, self._ends[page] - start)

    def close(self) -> None:
        """Removes the file. What is still reading it fails."""
        self._spool.discard()


class CutError(Exception):
    """A body that is not whole."""

    def __init__(self, problem: str, *, retry: bool = True) -> None:
        super().__init__(problem)
        self.retry = retry


class Inflater:
    """Decompresses a body, or passes it on, in pieces of at most `piece_bytes`. Raises `CutError`."""

    def __init__(self, encoding: str, piece_bytes: int = PIECE_BYTES) -> None:
        self.compressed = encoding == "gzip"
        self.decompressed_bytes = 0
        self._piece_bytes = piece_bytes
        self._member: isal_zlib.Decompress | None = None

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        for piece in self._inflate(chunk) if self.compressed else self._cut_up(chunk):
            self.decompressed_bytes += len(piece)
            yield piece

    def finish(self) -> None:
        if self._member is not None:
            raise CutError("its gzip stream does not come to an end")

    def _cut_up(self, chunk: bytes) -> Iterator[bytes]:
        for start in range(0, len(chunk), self._piece_bytes):
            yield chunk[start : start + self._piece_bytes]

    def _inflate(self, data: bytes) -> Iterator[bytes]:
        full = False
        while data or full:
            # What follows the end of a gzip member is another one, or garbage, which then fails as a header.
            if self._member is None:
                self._member = isal_zlib.decompressobj(31)
            problem = ""
            try:
                piece = self._member.decompress(data, self._piece_bytes)
            except _GZIP_ERROR as error:
                problem = str(error)
            if problem:
                raise CutError(f"its gzip stream is damaged: {problem}")
            if piece:
                yield piece
            if self._member.eof:
                data, full = self._member.unused_data, False
                self._member = None
            else:
                # A full piece may leave output behind even though all input was taken.
                data, full = self._member.unconsumed_tail, len(piece) == self._piece_bytes


class LineWatch:
    """Looks at each line of an export for what shows that it is not whole. Raises `CutError`.

    A full parse is the reader's. Here nearly all lines cost one comparison: those that start with `{"event":`.
    """

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._tail: list[bytes] = []
        self._tail_bytes = 0
        self._last = b""
        self._lines = 0
        self.count = 0
        """Of all lines, blank ones included."""

    def feed(self, piece: bytes) -> None:
        first_end = piece.find(b"\n")
        if first_end < 0:
            self._add_to_tail(piece)
            return
        self.count += piece.count(b"\n")
        self._add_to_tail(piece[:first_end])
        self._see(b"".join(self._tail))
        last_end = piece.rfind(b"\n")
        for match in _ODD_LINE_STARTS.finditer(piece, first_end, last_end):
            start = match.end()
            self._check(piece[start : piece.find(b"\n", start)])
        if last_end > first_end:
            self._lines += 1
            lines = piece[first_end + 1 : last_end].rstrip(_SPACE)
            if lines:
                self._last = lines[lines.rfind(b"\n") + 1 :]
        self._tail = [piece[last_end + 1 :]]
        self._tail_bytes = len(self._tail[0])

    def finish(self) -> None:
        tail = b"".join(self._tail).strip(_SPACE)
        if tail:
            self.count += 1
            self._see(tail)
            if not _is_object(tail):
                raise CutError(f"its last line is not whole: {_excerpt(tail, end=True)}")
        last = self._last.strip(_SPACE)
        if not last:
            return
        if _is_object(last):
            row = json_or_none(last)
            if isinstance(row, dict) and not row.keys() & {"event", "properties"}:
                raise CutError(f"it ends with what is no event: {_excerpt(last)}")
            return
        if last.startswith(b"{") and _breaks_off(last):
            raise CutError(f"its last line is not whole: {_excerpt(last, end=True)}")
        # The server's last words after it gave up. Other lines that are not JSON are left to the reader.
        words = not last.startswith(b"{") and len(last) < 4096 and _MESSAGE_WORDS.search(last)
        alone = self._lines == 1 and not last.startswith(b"{")
        glued = last.lower().endswith(b"terminated early") or _ERROR_AT_END.search(last)
        if words or alone or glued or last.startswith(b"<"):
            raise CutError(f"it ends with a message: {_excerpt(last, end=True)}")

    def _add_to_tail(self, part: bytes) -> None:
        self._tail.append(part)
        self._tail_bytes += len(part)
        if self._tail_bytes > self._max_line_bytes:
            raise CutError(f"it holds a line of more than {self._max_line_bytes} bytes", retry=False)

    def _see(self, line: bytes) -> None:
        self._check(line)
        line = line.strip(_SPACE)
        if line:
            self._lines += 1
            self._last = line

    def _check(self, line: bytes) -> None:
        if line.startswith(b'{"event":'):
            return
        line = line.strip(_SPACE)
        if line.startswith(b"<") and not self._last:
            raise CutError("an HTML page came in its place")
        if not line.startswith(b"{"):
            if len(line) < 200 and b"terminated early" in line.lower():
                raise CutError(f"Mixpanel gave up: {_excerpt(line)}")
        elif b'"error"' in line and b'"event"' not in line:
            row = json_or_none(line)
            if isinstance(row, dict) and not row.keys() & {"event", "properties"}:
                raise CutError(f"Mixpanel sent an error in it: {error_text(line)}")


class Spool:
    """A file of ours for what comes from Mixpanel, gone with us. `OSError`s become `WarehouseError`."""

    def __init__(self, folder: Path, name: str) -> None:
        try:
            handle, path = tempfile.mkstemp(dir=folder, prefix=_SPOOL_PREFIX + name)  # mkstemp's mode is 0600
        except OSError as error:
            raise spool_error(error) from None
        self.file: IO[bytes] = os.fdopen(handle, "wb")
        self.path = Path(path)
        self.is_kept = False
        if fcntl is not None:
            # Held while we live, so that `remove_stale` sees whose owner is gone. Not every file system can.
            with suppress(OSError):
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._finalizer: weakref.finalize[..., Any] = weakref.finalize(
            self, _discard, self.file, self.path, os.getpid()
        )

    def write(self, data: bytes) -> None:
        try:
            self.file.write(data)
        except OSError as error:
            raise spool_error(error) from None

    def finish(self) -> None:
        try:
            self.file.flush()
        except OSError as error:
            raise spool_error(error) from None

    def sync(self) -> None:
        os.fsync(self.file.fileno())

    def keep(self, path: Path) -> None:
        """Move it to `path`, where it stays when this object goes."""
        self.check_open()
        self.path.replace(path)
        self._finalizer.detach()
        self._keep(self.file, path)

    @classmethod
    def reopened(cls, path: Path) -> Spool:
        """A file that was kept."""
        spool = cls.__new__(cls)
        try:
            spool._keep(path.open("rb"), path)
        except OSError as error:
            raise spool_error(error) from None
        return spool

    def _keep(self, file: IO[bytes], path: Path) -> None:
        self.file, self.path, self.is_kept = file, path, True
        self._finalizer = weakref.finalize(self, _close, file, path, os.getpid())

    def open(self) -> IO[bytes]:
        self.check_open()
        try:
            return self.path.open("rb")
        except OSError as error:
            raise spool_error(error) from None

    def read(self, file: IO[bytes], size: int) -> bytes:
        self.check_open()
        try:
            return file.read(size)
        except OSError as error:
            raise spool_error(error) from None

    def check_open(self) -> None:
        if not self._finalizer.alive:
            raise RuntimeError("this body, or the MixpanelClient it came from, is closed")

    def discard(self) -> None:
        self._finalizer()


def _discard(file: IO[bytes], path: Path, owner: int) -> None:
    with suppress(OSError):  # a full disk: closing tries once more to write what is buffered
        file.close()
    if os.getpid() == owner:  # a forked child has the same object, and must leave the file
        with suppress(OSError):
            path.unlink()


def _close(file: IO[bytes], path: Path, owner: int) -> None:
    """As `_discard`, of a file that stays."""
    with suppress(OSError):
        file.close()


def remove_stale(folder: Path, older_than_s: float | None = None) -> None:
    """Removes spool files whose process was killed: nobody holds their lock."""
    if fcntl is None:
        return
    least_s = STALE_SPOOL_S if older_than_s is None else older_than_s
    for path in folder.glob(_SPOOL_PREFIX + "*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > least_s:
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()


def spool_error(error: OSError) -> WarehouseError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return WarehouseError("the disk is full", hint="make room, or set MP_DATA_DIR to a folder on another disk")
    return WarehouseError(
        f"the spool file cannot be used: {error.strerror or error}", hint="MP_DATA_DIR moves the data folder"
    )


def error_text(body: bytes) -> str:
    """Mixpanel's own message: the JSON's `error` or `message`, or the text."""
    answer = json_or_none(body)
    for key in ("error", "message"):
        if isinstance(answer, dict) and answer.get(key):
            value = answer[key]
            if isinstance(value, dict) and isinstance(value.get("message"), str):
                value = value["message"]
            return value if isinstance(value, str) else json.dumps(value)
    text = body.decode("utf-8", "replace").strip()
    return "an HTML page" if text.startswith("<") else text


def json_or_none(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8", "replace"), parse_int=str)
    except (ValueError, RecursionError):
        return None


def _is_object(line: bytes) -> bool:
    """Whether the reader can take `line` for a row: raw control characters it repairs, too deep ones it sets aside."""
    try:
        return isinstance(json.loads(line.decode("utf-8", "replace"), parse_int=str, strict=False), dict)
    except ValueError:
        return False
    except RecursionError:
        return line.endswith(b"}")


def _breaks_off(line: bytes) -> bool:
    """Whether `line` would be JSON if it went on: what is wrong with it is only at its end."""
    text = line.decode("utf-8", "replace")
    try:
        json.loads(text, parse_int=str, strict=False)
    except json.JSONDecodeError as error:
        # A number, a literal or an escape may have begun: at most `\\uD83D` or `-Infinity`. Anything else, such as
        # a comma before the end, is for the reader to judge.
        return error.msg.startswith("Unterminated string") or _BEGUN.fullmatch(text, error.pos) is not None
    except RecursionError:
        return not text.endswith("}")
    return False


def _excerpt(line: bytes, *, end: bool = False) -> str:
    return repr((line[-80:] if end else line[:80]).decode("utf-8", "replace"))
