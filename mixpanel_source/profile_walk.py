"""One walk over the profiles: page after page until it is known to be complete, or broken."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Mapping
from typing import Any

from mixpanel_source import settings
from mixpanel_source.bodies import ProfilePages, Spool
from mixpanel_source.errors import IncompleteExportError, MixpanelDataError, QueryError, ServerError
from mixpanel_source.raw_json import as_text, elements, first_values, members


class WalkBrokenError(Exception):
    """A walk over the profiles that may be complete with a new session."""

    def __init__(self, error: MixpanelDataError) -> None:
        super().__init__(error.message)
        self.error = error


class ProfileWalk:
    """`ask` sends a form to engage and gives the body of the answer, and what it says."""

    def __init__(
        self,
        ask: Callable[[Mapping[str, str]], tuple[bytes, dict[str, Any]]],
        form: Mapping[str, str],
        on_page: Callable[[int, int | None], None] | None,
        max_bytes: int = settings.MAX_BODY_BYTES,
    ) -> None:
        self._ask = ask
        self._form = form
        self._on_page = on_page
        self._max_bytes = max_bytes

    def run(self, spool: Spool) -> ProfilePages:
        """The pages, in `spool`. Raises `WalkBrokenError` where a new session may help."""
        try:
            pages = self._walk(spool)
            spool.finish()
        except BaseException:
            spool.discard()
            raise
        return pages

    def _walk(self, spool: Spool) -> ProfilePages:
        ends = array("Q")
        # 8 bytes a profile: the ids themselves would take memory that grows with their length.
        ids = array("q")
        nameless = 0
        total: int | None = None
        session_id: str | None = None
        previous: list[int] = []
        while True:
            body, answer = self._page(len(ends), session_id)
            ends.append((ends[-1] if ends else 0) + len(body))
            if ends[-1] > self._max_bytes:
                raise _incomplete(f"they have more than {self._max_bytes} bytes", hint="raise max_body_bytes")
            spool.write(body)
            results: list[Any] = answer["results"]
            if len(ends) == 1:
                total = _count(answer.get("total"))
            named = [hash(id_) for id_ in map(_id, results) if id_ is not None]
            nameless += len(results) - len(named)
            if named and named == previous:
                raise _broken("the same page came twice")
            previous = named
            ids.extend(named)
            if self._on_page is not None:
                self._on_page(len(ids) + nameless, total)
            session_id = answer.get("session_id") or session_id
            page_size = _count(answer.get("page_size"))
            if not results or (page_size is not None and len(results) < page_size):
                break
            if session_id is None:
                raise _broken("a full page came without a session_id to go on with")
        distinct = _distinct(ids) + nameless
        if total is not None and distinct < total:
            raise _broken(f"{distinct} different profiles came of {total}")
        return ProfilePages(spool, ends, total=total, profiles=len(ids) + nameless, distinct=distinct)

    def _page(self, page: int, session_id: str | None) -> tuple[bytes, dict[str, Any]]:
        form = dict(self._form)
        if session_id is not None and page > 0:
            form |= {"session_id": session_id, "page": str(page)}
        try:
            return self._ask(form)
        except (ServerError, QueryError) as error:
            # A session's life is not published; an ended one is told as a page of an "uncached query".
            ended = isinstance(error, QueryError) and re.search(r"uncached|session", error.message, re.IGNORECASE)
            if page == 0 or not (isinstance(error, ServerError) or ended):
                raise
            failure = error
        raise WalkBrokenError(failure)


def read_page(body: bytes) -> Any:
    """What an engage response says; no more than a walk needs of one that is no JSON to Python, but is to DuckDB.

    Raises ValueError where it is neither.
    """
    text = body.decode(errors="surrogateescape")
    try:
        # A raw control character is repaired when the page is read into rows.
        return json.loads(text, parse_int=str, strict=False)
    except (ValueError, RecursionError):
        pass
    answer = first_values(members(text))
    if "results" not in answer:
        return answer
    rows = [first_values(members(row)) if row.startswith("{") else {} for row in elements(answer.pop("results"))]
    texts: dict[str, Any] = {name: as_text(value) for name, value in answer.items()}
    return {**texts, "results": [{"$distinct_id": as_text(row.get("$distinct_id"))} for row in rows]}


def _id(row: Any) -> str | None:
    """The text of a profile's id; None for a list or an object, too, which no two profiles are taken to share."""
    id_ = row.get("$distinct_id") if isinstance(row, dict) else None
    return str(id_) if isinstance(id_, str | float) else None


def _count(value: Any) -> int | None:
    """A number of the answer, which came as text so that none is too long to read: a long one is just a lot."""
    if not (isinstance(value, str) and value.isascii() and value.isdigit()):
        return None
    return int(value) if len(value) < 19 else 10**18


def _distinct(ids: array[int]) -> int:
    import numpy as np  # only here: it takes a tenth of a second

    return int(np.unique(np.frombuffer(ids, dtype=np.int64)).size) if ids else 0


def _broken(problem: str) -> WalkBrokenError:
    return WalkBrokenError(_incomplete(problem))


def _incomplete(problem: str, hint: str = "try again later") -> IncompleteExportError:
    return IncompleteExportError(f"the profiles did not come whole: {problem}", hint=hint)
