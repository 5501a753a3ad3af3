"""Mixpanel's expression language, for `where` and `on`.

Grammar and rules: Mixpanel docs, Segmentation Expressions. Strings compare by their order too, as clients rely on for
`$last_seen`. `any` and a single `=` are in Mixpanel's own export script (Mixpanel docs: Hot Shard Limits); `behaviors`
in those of clients that query profiles. Left out: `has_prefix`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from .lines import MS_FROM

Properties = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """What an expression speaks of: an event or a profile, the profile of the event's user, what `any` has bound, how
    often the profile's user did what each of the `behaviors` names."""

    properties: Properties
    user: Callable[[], Properties] = dict
    bound: Mapping[str, Any] = field(default_factory=dict)
    behaviors: Mapping[str, int] = field(default_factory=dict)


Expression = Callable[[Row], Any]


class ExpressionError(ValueError):
    """The expression cannot be parsed, or cannot be worked out."""


class _Undefined:
    """No value: a property that is not there, or a sum that makes no sense."""


UNDEFINED = _Undefined()

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
      | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<name>[A-Za-z_]\w*)
      | (?P<sign>==|!=|<=|>=|[-+*/%<>=()\[\],])
    )""",
    re.VERBOSE | re.DOTALL,
)
_WORDS = {"and", "or", "not", "in"}
_CONSTANTS: dict[str, Any] = {"true": True, "false": False, "null": None, "undefined": UNDEFINED}


def parse(text: str) -> Callable[[Row], bool]:
    """A test for rows: true only where the expression itself is true."""
    expression = _Parser(text).whole()
    return lambda row: expression(row) is True


def parse_value(text: str) -> Expression:
    """What the expression is for a row; UNDEFINED where it has no value."""
    return _Parser(text).whole()


class _Parser:
    """Recursive descent, one method a level of precedence, loosest first."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._at = 0
        self._bound: list[str] = []

    def whole(self) -> Expression:
        expression = self._or()
        if self._at < len(self._tokens):
            raise ExpressionError(f"unexpected {self._tokens[self._at][1]!r}")
        return expression

    def _or(self) -> Expression:
        left = self._and()
        while self._take("or"):
            left = _either(left, self._and())
        return left

    def _and(self) -> Expression:
        left = self._not()
        while self._take("and"):
            left = _both(left, self._not())
        return left

    def _not(self) -> Expression:
        if self._take("not"):
            operand = self._not()
            return lambda row: _negated(operand(row))
        return self._comparison()

    def _comparison(self) -> Expression:
        left = self._sum()
        while sign := self._take("==", "=", "!=", "<", "<=", ">", ">=", "in"):
            left = _binary(_COMPARISONS[sign], left, self._sum())
        return left

    def _sum(self) -> Expression:
        left = self._product()
        while sign := self._take("+", "-"):
            left = _binary(_ARITHMETIC[sign], left, self._product())
        return left

    def _product(self) -> Expression:
        left = self._unary()
        while sign := self._take("*", "/", "%"):
            left = _binary(_ARITHMETIC[sign], left, self._unary())
        return left

    def _unary(self) -> Expression:
        if self._take("-"):
            return _binary(_ARITHMETIC["-"], lambda _: 0, self._unary())
        return self._primary()

    def _primary(self) -> Expression:
        if self._take("("):
            inside = self._or()
            self._need(")")
            return inside
        if self._take("["):
            items = self._list("]")
            return lambda row: [item(row) for item in items]
        kind, text = self._tokens[self._at] if self._at < len(self._tokens) else ("end", "the end")
        self._at += 1
        if kind == "number":
            number = float(text) if re.search(r"[.eE]", text) else int(text)
            return lambda _: number
        if kind == "string":
            string = re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)
            return lambda _: string
        if kind == "name":
            return self._name(text)
        raise ExpressionError(f"unexpected {text!r}")

    def _name(self, name: str) -> Expression:
        if name.lower() in _CONSTANTS:
            constant = _CONSTANTS[name.lower()]
            return lambda _: constant
        if name in self._bound:
            return lambda row: row.bound[name]
        if name in _REFERENCES:
            look_up = _REFERENCES[name]
            self._need("[")
            key = self._or()
            self._need("]")
            return lambda row: look_up(row, key(row))
        if name == "any":
            return self._any()
        function = _FUNCTIONS.get(name)
        if function is None:
            raise ExpressionError(f"unknown name {name!r}")
        self._need("(")
        arguments = self._list(")")
        if not 1 <= len(arguments) <= (2 if name == "string" else 1):
            raise ExpressionError(f"{name} does not take {len(arguments)} arguments")
        return lambda row: function(*(argument(row) for argument in arguments))

    def _any(self) -> Expression:
        """any(X, list, test): whether the test holds for an item, under the name X."""
        self._need("(")
        kind, name = self._tokens[self._at] if self._at < len(self._tokens) else ("end", "the end")
        if kind != "name":
            raise ExpressionError(f"any needs a name, not {name!r}")
        self._at += 1
        self._need(",")
        items = self._or()
        self._need(",")
        self._bound.append(name)
        test = self._or()
        self._bound.pop()
        self._need(")")

        def apply(row: Row) -> Any:
            found = items(row)
            if not isinstance(found, list):
                return UNDEFINED
            return any(_as_boolean(test(replace(row, bound={**row.bound, name: item}))) for item in found)

        return apply

    def _list(self, end: str) -> list[Expression]:
        items: list[Expression] = []
        if self._take(end):
            return items
        items.append(self._or())
        while self._take(","):
            items.append(self._or())
        self._need(end)
        return items

    def _take(self, *wanted: str) -> str | None:
        if self._at < len(self._tokens):
            kind, text = self._tokens[self._at]
            if kind in ("sign", "word") and text in wanted:
                self._at += 1
                return text
        return None

    def _need(self, sign: str) -> None:
        if not self._take(sign):
            raise ExpressionError(f"expected {sign!r}")


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens = []
    at, end = 0, len(text.rstrip())
    while at < end:
        found = _TOKEN.match(text, at)
        if found is None:
            raise ExpressionError(f"cannot read {text[at : at + 20]!r}")
        kind, token = str(found.lastgroup), found[str(found.lastgroup)]
        if kind == "name" and token.lower() in _WORDS:
            kind, token = "word", token.lower()
        tokens.append((kind, token))
        at = found.end()
    return tokens


def _binary(function: Callable[[Any, Any], Any], left: Expression, right: Expression) -> Expression:
    return lambda row: function(left(row), right(row))


def _both(left: Expression, right: Expression) -> Expression:
    return lambda row: _as_boolean(left(row)) and _as_boolean(right(row))


def _either(left: Expression, right: Expression) -> Expression:
    return lambda row: _as_boolean(left(row)) or _as_boolean(right(row))


def _as_boolean(value: Any) -> bool:
    if value is UNDEFINED:
        return False
    if not isinstance(value, bool):
        raise ExpressionError("and / or between values that are not boolean")
    return value


def _negated(value: Any) -> Any:
    if value is UNDEFINED:
        return True
    return not value if isinstance(value, bool) else UNDEFINED


def _property(properties: Properties, key: Any) -> Any:
    return properties.get(key, UNDEFINED) if isinstance(key, str) else UNDEFINED


def _own_property(row: Row, key: Any) -> Any:
    """A property, or the event's time and id under the names that Mixpanel's own pages give them."""
    if key == "$time" and key not in row.properties:
        return _event_field(row, key)
    if key == "$distinct_id" and key not in row.properties:
        return _property(row.properties, "distinct_id")
    return _property(row.properties, key)


def _event_field(row: Row, key: Any) -> Any:
    """event["$time"], in epoch seconds: what `datetime` gives."""
    time = _property(row.properties, "time")
    if key != "$time" or _type(time) != "number":
        return UNDEFINED
    return time / 1000 if abs(time) > MS_FROM else time


_REFERENCES: dict[str, Callable[[Row, Any], Any]] = {
    "properties": _own_property,
    "event": _event_field,
    "user": lambda row, key: _property(row.user(), key),
    "behaviors": lambda row, key: _property(row.behaviors, key),
}


def _type(value: Any) -> str:
    """The type in the language's own terms: true is no number, and 1 and 1.0 are of one type."""
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else type(value).__name__


def _equal(left: Any, right: Any) -> bool:
    return _type(left) == _type(right) and bool(left == right)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], Any]:
    def apply(left: Any, right: Any) -> Any:
        comparable = _type(left) == _type(right) and _type(left) in ("number", "str")
        return compare(left, right) if comparable else UNDEFINED

    return apply


def _in(left: Any, right: Any) -> Any:
    if isinstance(right, list):
        return any(_equal(left, item) for item in right)
    return left in right if isinstance(left, str) and isinstance(right, str) else UNDEFINED


_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "==": _equal,
    "=": _equal,
    "!=": lambda left, right: not _equal(left, right),
    "<": _ordered(lambda left, right: left < right),
    "<=": _ordered(lambda left, right: left <= right),
    ">": _ordered(lambda left, right: left > right),
    ">=": _ordered(lambda left, right: left >= right),
    "in": _in,
}


def _numeric(apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def checked(left: Any, right: Any) -> Any:
        return apply(left, right) if _type(left) == _type(right) == "number" else UNDEFINED

    return checked


def _plus(left: Any, right: Any) -> Any:
    return left + right if _type(left) == _type(right) and _type(left) in ("number", "str") else UNDEFINED


_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": _plus,
    "-": _numeric(lambda left, right: left - right),
    "*": _numeric(lambda left, right: left * right),
    "/": _numeric(lambda left, right: left / right if right else UNDEFINED),
    "%": _numeric(lambda left, right: math.fmod(left, right) if right else UNDEFINED),
}


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            pass
        try:
            return float(value)
        except ValueError:
            return UNDEFINED
    return value if _type(value) == "number" else UNDEFINED


def _string(value: Any, default: Any = UNDEFINED) -> Any:
    if value is UNDEFINED:
        return default
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _boolean(value: Any) -> Any:
    return False if value is UNDEFINED else bool(value)


def _datetime(value: Any) -> Any:
    """Epoch seconds, from either form that is in use: an ISO text (Mixpanel docs) or epoch seconds (other clients)."""
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value).replace(tzinfo=UTC).timestamp()
        except ValueError:
            return UNDEFINED
    return value if _type(value) == "number" else UNDEFINED


def _rounding(apply: Callable[[float], int]) -> Callable[[Any], Any]:
    return lambda value: apply(value) if _type(value) == "number" else UNDEFINED


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "defined": lambda value: value is not UNDEFINED,
    "number": _number,
    "string": _string,
    "boolean": _boolean,
    "datetime": _datetime,
    "floor": _rounding(math.floor),
    "ceil": _rounding(math.ceil),
    "round": _rounding(round),
}
