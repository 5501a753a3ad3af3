"""What the product sends, call by call, and that no call is left out. The table is in request_cases."""

from __future__ import annotations

import ast
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from request_cases import CASES, PRODUCT, Case, ask, filled_sandbox, record

from mixpanel_source.client import MixpanelClient
from mixpanel_source.discovery import Discovery
from mixpanel_source.errors import ConfigError
from mixpanel_source.listings import LISTINGS
from mixpanel_source.reports import Reports
from mixpanel_source.sandbox import SandboxServer

pytestmark = pytest.mark.usefixtures("quick")

ASKS_NOTHING = {"MixpanelClient.close", "MixpanelClient.origin"}
NOT_SENT = {
    "MixpanelClient.export": {"on_bytes"},
    "MixpanelClient.profiles": {"on_page"},
    "MixpanelClient.request_json": {"wait", "timeout_s", "exact"},
    "Reports.funnel": {"funnel_name"},  # told back
    "Discovery.bookmarks": {"type"},  # chosen from the answer
}
"""Parameters that do not go to Mixpanel."""

SENDERS = {"request", "_retrying", "request_json", "export", "profiles", "me", "ask"}
"""Methods that send, or lead to one that does: each place that calls one has to be met by a case."""
MAY_SPEAK_HTTP = {"client.py", "transport.py"}
HTTP_LIBRARIES = {"requests", "urllib3", "http", "httpx", "aiohttp", "socket", "urllib.request"}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_call_sends_just_what_it_should(case: Case) -> None:
    assert record(case).sent == list(case.sent)


def test_names_are_encoded_once_in_queries_and_forms() -> None:
    encoded = "J%C3%B6%E6%97%A5+%22in%22+%26+%2B1%3D100%25%3B%3F%2F%23%5C"
    (counted,) = record(case_of("Reports.segmentation", "least")).requests
    assert counted.url == (
        f"https://mixpanel.com/api/query/segmentation?project_id=12345&event={encoded}"
        "&from_date=2024-03-01&to_date=2024-03-02"
    )
    (scripted,) = record(case_of("Reports.jql", "least")).requests
    assert (scripted.url, scripted.body) == ("https://mixpanel.com/api/query/jql?project_id=12345", f"script={encoded}")
    (exported,) = record(case_of("MixpanelClient.export", "all")).requests
    assert "&event=%5B%22J%5Cu00f6%5Cu65e5+%5C%22in%5C%22+%26+%2B1%3D100%25%3B%3F%2F%23%5C%5C%22%2C%22B%22%5D&" in str(
        exported.url
    )


def test_what_excludes_each_other_is_refused_before_a_request_is_spent() -> None:
    for asked in ({"include_all_users": True}, {"behaviors": [], "filter_by_cohort": 7}):
        with pytest.raises(ConfigError):
            record(Case("MixpanelClient.profiles", "refused", asked, ()))


# --- no call is left out


def methods() -> dict[str, Callable[..., Any]]:
    """Whatever a user may call to ask Mixpanel for something, but for loads."""
    return {
        f"{owner.__name__}.{name}": method
        for owner in (MixpanelClient, Reports, Discovery)
        for name, method in inspect.getmembers(owner, inspect.isfunction)
        if not name.startswith("_")
    }


def test_every_method_and_every_parameter_has_a_case() -> None:
    given: dict[str, set[str]] = defaultdict(set)
    for case in CASES:
        given[case.asks] |= set(case.arguments)
    expected = {
        name: set(inspect.signature(method).parameters) - {"self"} - NOT_SENT.get(name, set())
        for name, method in methods().items()
        if name not in ASKS_NOTHING
    }
    assert {name: parameters for name, parameters in given.items() if name in methods()} == expected
    least = {case.asks for case in CASES if case.given == "least"}
    assert least >= expected.keys()
    assert {name for name in given if name.startswith("LISTINGS.")} == {f"LISTINGS.{table}" for table in LISTINGS}
    assert ASKS_NOTHING | NOT_SENT.keys() <= methods().keys()


def test_what_is_asked_in_a_workspace_is_asked_without_one_too() -> None:
    met: dict[str, set[bool]] = defaultdict(set)
    for case in CASES:
        for sent in case.sent:
            if sent.path.startswith("/api/query/"):
                met[sent.path].add("workspace_id" in sent.query)
    assert {path for path, ways in met.items() if ways != {True, False}} == {
        # Always with more than the least.
        "/api/query/segmentation/numeric",
        "/api/query/segmentation/sum",
        "/api/query/segmentation/average",
    }


def test_every_place_that_asks_is_met_by_a_case() -> None:
    lines = set[tuple[str, int]]().union(*(record(case).lines for case in CASES))
    places = {f"{file}:{call.lineno} {ast.unparse(call)}": (file, call) for file, call in sending_calls()}
    unmet = {
        place
        for place, (file, call) in places.items()
        if not any((file, line) in lines for line in range(call.lineno, (call.end_lineno or 0) + 1))
    }
    assert unmet == set()
    assert {file for file, _ in places.values()} >= {"client.py", "reports.py", "discovery.py", "listings.py"}


def test_nothing_but_the_client_speaks_http() -> None:
    speaking = {
        file
        for file, tree in sources()
        for node in ast.walk(tree)
        for module in (
            [name.name for name in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        if module != "http.server" and (module in HTTP_LIBRARIES or module.split(".")[0] in HTTP_LIBRARIES)
    }
    assert speaking == MAY_SPEAK_HTTP


def sources() -> Iterator[tuple[str, ast.Module]]:
    """The product but for its sandbox, which answers."""
    for path in sorted(PRODUCT.rglob("*.py")):
        file = path.relative_to(PRODUCT)
        if file.parts[0] != "sandbox":
            yield str(file), ast.parse(Path(path).read_text("utf-8"))


def sending_calls() -> Iterator[tuple[str, ast.Call]]:
    for file, tree in sources():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr in SENDERS and "UnaskedReports()" not in ast.unparse(node):  # these ask nobody
                yield file, node


def case_of(asks: str, given: str) -> Case:
    return next(case for case in CASES if (case.asks, case.given) == (asks, given))


# --- the sandbox takes them


@pytest.fixture(scope="module")
def filled() -> Iterator[SandboxServer]:
    with SandboxServer(filled_sandbox(page_size=1)) as server:
        yield server


@pytest.mark.parametrize(
    "case",
    # Which asks three hosts, and the sandbox is one.
    [case for case in CASES if case.asks != "Loads.find_region"],
    ids=str,
)
def test_the_sandbox_answers_whatever_the_product_asks(
    case: Case, filled: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.sandbox.forget_requests()
    monkeypatch.setenv("MP_BASE_URL", filled.url)
    ask(case)
    assert {request.status for request in filled.sandbox.requests} == {200}
