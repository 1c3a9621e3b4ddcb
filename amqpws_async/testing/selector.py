r"""Selectors: the conditions of JMS on a message's properties, compiled to a function.

::

    color = 'red' AND (weight > 3 OR NOT fragile) AND size BETWEEN 1 AND 10
    country IN ('DE', 'FR') AND name LIKE 'A\_%' ESCAPE '\' AND note IS NOT NULL

Names are application properties; those that begin with JMS are fields of header and properties (`_FIELDS`). A
condition is true, false or unknown (of a property that is missing, or of another type), and only true selects, as in
SQL.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any, Final, NoReturn

from ..message import Message

__all__ = ["SelectorError", "compile_selector"]

#: Computes a value; None is null, or unknown.
Term = Callable[[Message], Any]

_TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)[lLdDfF]?(?![\w$])
      | (?P<name>[A-Za-z_$][\w$.]*)
      | (?P<string>'(?:[^']|'')*')
      | (?P<symbol><>|<=|>=|[=<>()+\-*/,])
    )""",
    re.VERBOSE,
)
_KEYWORDS: Final = frozenset(["AND", "OR", "NOT", "BETWEEN", "IN", "LIKE", "ESCAPE", "IS", "NULL", "TRUE", "FALSE"])
_COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_COMPUTE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda a, b: a / b if b else None,
}
_FIELDS: Final[dict[str, Term]] = {
    "JMSMessageID": lambda message: _text(message.message_id),
    "JMSCorrelationID": lambda message: _text(message.correlation_id),
    "JMSDestination": lambda message: message.to,
    "JMSReplyTo": lambda message: message.reply_to,
    "JMSType": lambda message: message.subject,
    "JMSPriority": lambda message: message.priority,
    "JMSDeliveryMode": lambda message: "PERSISTENT" if message.durable else "NON_PERSISTENT",
    "JMSTimestamp": lambda message: message.creation_time,
    "JMSXGroupID": lambda message: message.group_id,
    "JMSXGroupSeq": lambda message: message.group_sequence,
    "JMSXUserID": lambda message: message.user_id.decode(errors="replace") if message.user_id else None,
    "JMSXDeliveryCount": lambda message: message.delivery_count + 1,
}
_MAX_DEPTH: Final = 50  # of parentheses and NOTs: conditions come from clients, and each level takes Python frames


class SelectorError(ValueError):
    """A selector that cannot be understood."""


def compile_selector(expression: str) -> Callable[[Message], bool]:
    """Compile a selector.

    Args:
        expression: The condition.

    Returns:
        A function that tells whether a message is selected.

    Raises:
        SelectorError: The expression is malformed.
    """
    condition = _Parser(expression).parse()
    return lambda message: condition(message) is True


class _Parser:
    """Recursive descent, a method for each level of precedence, the loosest first."""

    def __init__(self, expression: str) -> None:
        self._expression = expression
        self._tokens: list[tuple[str, Any]] = []
        self._next = 0
        self._depth = 0
        position, end = 0, len(expression.rstrip())
        while position < end:
            match = _TOKEN.match(expression, position)
            if match is None:
                raise SelectorError(f"selector: cannot read {expression[position : position + 20]!r}")
            position = match.end()
            kind = str(match.lastgroup)
            text = match[kind]
            if kind == "number":
                self._tokens.append(("value", _number(text)))
            elif kind == "string":
                self._tokens.append(("value", text[1:-1].replace("''", "'")))
            elif text.upper() in _KEYWORDS:
                self._tokens.append((text.upper(), None))
            else:
                self._tokens.append((kind if kind == "name" else text, text))

    def parse(self) -> Term:
        term = self._or()
        if self._next < len(self._tokens):
            self._fail("the end of the expression")
        return term

    def _accept(self, *kinds: str) -> str | None:
        if self._next < len(self._tokens) and self._tokens[self._next][0] in kinds:
            self._next += 1
            return self._tokens[self._next - 1][0]
        return None

    def _expect(self, kind: str) -> Any:
        if self._accept(kind) is None:
            self._fail(f"a {kind}" if kind.islower() else kind)
        return self._tokens[self._next - 1][1]

    def _string(self) -> str:
        value = self._expect("value")
        if not isinstance(value, str):
            self._fail("a string")
        return value

    def _fail(self, wanted: str) -> NoReturn:
        where = f"token {self._next + 1}" if self._next < len(self._tokens) else "the end"
        raise SelectorError(f"selector {self._expression[:100]!r}: expected {wanted} at {where}")

    def _or(self) -> Term:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise SelectorError(f"selector: nested more than {_MAX_DEPTH} deep")
        terms = [self._and()]
        while self._accept("OR"):
            terms.append(self._and())
        self._depth -= 1
        return terms[0] if len(terms) == 1 else _any(terms)

    def _and(self) -> Term:
        terms = [self._not()]
        while self._accept("AND"):
            terms.append(self._not())
        return terms[0] if len(terms) == 1 else _all(terms)

    def _not(self) -> Term:
        negated = False
        while self._accept("NOT"):
            negated = not negated
        term = self._comparison()
        return _negate(term) if negated else term

    def _comparison(self) -> Term:
        left = self._sum()
        if symbol := self._accept(*_COMPARE):
            return _compare(symbol, left, self._sum())
        if self._accept("IS"):
            wanted = self._accept("NOT") is None
            self._expect("NULL")
            return lambda message: (left(message) is None) is wanted
        negated = self._accept("NOT") is not None
        if self._accept("BETWEEN"):
            low = self._sum()
            self._expect("AND")
            term = _all([_compare(">=", left, low), _compare("<=", left, self._sum())])
        elif self._accept("IN"):
            term = self._in(left)
        elif self._accept("LIKE"):
            term = _like(left, self._string(), self._string() if self._accept("ESCAPE") else None)
        elif negated:
            self._fail("BETWEEN, IN or LIKE")
        else:
            return left
        return _negate(term) if negated else term

    def _in(self, left: Term) -> Term:
        self._expect("(")
        values = {self._string()}
        while self._accept(","):
            values.add(self._string())
        self._expect(")")

        def contained(message: Message) -> bool | None:
            value = left(message)
            return value in values if isinstance(value, str) else None

        return contained

    def _sum(self) -> Term:
        left = self._product()
        while symbol := self._accept("+", "-"):
            left = _compute(symbol, left, self._product())
        return left

    def _product(self) -> Term:
        left = self._unary()
        while symbol := self._accept("*", "/"):
            left = _compute(symbol, left, self._unary())
        return left

    def _unary(self) -> Term:
        negative = False
        while symbol := self._accept("+", "-"):
            negative ^= symbol == "-"
        term = self._primary()
        return _compute("-", lambda message: 0, term) if negative else term

    def _primary(self) -> Term:
        if self._accept("("):
            term = self._or()
            self._expect(")")
            return term
        if self._accept("TRUE"):
            return lambda message: True
        if self._accept("FALSE"):
            return lambda message: False
        if self._accept("value"):
            value = self._tokens[self._next - 1][1]
            return lambda message: value
        name: str = self._expect("name")
        if name in _FIELDS:
            return _FIELDS[name]
        return lambda message: _plain(message.application_properties.get(name))


# --- three-valued logic ---------------------------------------------------------------


def _truth(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _negate(term: Term) -> Term:
    def negated(message: Message) -> bool | None:
        value = _truth(term(message))
        return None if value is None else not value

    return negated


def _all(terms: list[Term]) -> Term:
    def conjunction(message: Message) -> bool | None:
        result: bool | None = True
        for term in terms:
            value = _truth(term(message))
            if value is False:
                return False
            if value is None:
                result = None
        return result

    return conjunction


def _any(terms: list[Term]) -> Term:
    def disjunction(message: Message) -> bool | None:
        result: bool | None = False
        for term in terms:
            value = _truth(term(message))
            if value is True:
                return True
            if value is None:
                result = None
        return result

    return disjunction


def _compare(symbol: str, left: Term, right: Term) -> Term:
    apply = _COMPARE[symbol]
    ordered = symbol not in ("=", "<>")

    def comparison(message: Message) -> bool | None:
        one, other = left(message), right(message)
        if _is_number(one) and _is_number(other):
            return apply(one, other)
        # Text and truth values know equality alone.
        alike = (isinstance(one, str) and isinstance(other, str)) or (isinstance(one, bool) and isinstance(other, bool))
        return apply(one, other) if alike and not ordered else None

    return comparison


def _compute(symbol: str, left: Term, right: Term) -> Term:
    apply = _COMPUTE[symbol]

    def computed(message: Message) -> Any:
        one, other = left(message), right(message)
        if not (_is_number(one) and _is_number(other)):
            return None
        try:
            return apply(one, other)
        except OverflowError:
            return None

    return computed


def _like(left: Term, pattern: str, escape: str | None) -> Term:
    if escape is not None and len(escape) != 1:
        raise SelectorError("selector: ESCAPE takes one character")
    parts: list[str] = []
    characters = iter(pattern)
    for character in characters:
        if character == escape:
            parts.append(re.escape(next(characters, "")))
        else:
            parts.append({"%": ".*", "_": "."}.get(character) or re.escape(character))
    fits = re.compile("".join(parts), re.DOTALL).fullmatch

    def like(message: Message) -> bool | None:
        value = left(message)
        return fits(value) is not None if isinstance(value, str) else None

    return like


# --- values of a message ----------------------------------------------------------------


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(text: str) -> int | float:
    # Python refuses to read an int of thousands of digits; nothing that long is exact in AMQP either.
    return int(text) if text.isdigit() and len(text) < 30 else float(text)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float)) else None


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return None if value is None else str(int(value) if isinstance(value, int) else value)
