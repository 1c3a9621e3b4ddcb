"""Selectors: what they select, what they never select, and what is no selector."""

from __future__ import annotations

import random

import pytest

from amqpws_async.message import Message
from amqpws_async.testing.selector import SelectorError, compile_selector

MESSAGE = Message(
    b"body",
    message_id="id-1",
    correlation_id=7,
    to="queue:a",
    subject="order",
    group_id="g",
    user_id=b"me",
    priority=7,
    durable=True,
    delivery_count=2,
    application_properties={
        "color": "red",
        "weight": 10,
        "price": 2.5,
        "fragile": True,
        "sold": False,
        "quote": "it's 100%_done\n",
        "nothing": None,
        "blob": b"x",
        "a.b": "dotted",
        "$x": 1,
    },
)


@pytest.mark.parametrize(
    "expression",
    [
        "color = 'red'",
        "color <> 'blue'",
        "  color='red'  ",
        "'red' = color",
        "weight = 10 AND price = 2.5",
        "weight = 10.0",
        "weight > 9 and weight >= 10 and weight < 11 and weight <= 10",
        "weight <> 11",
        "weight = 1e1",
        "price = .25E1",
        "weight = 10L and price = 2.5f",
        "fragile",
        "fragile = TRUE and sold = false",
        "NOT sold",
        "not not fragile",
        "color = 'blue' OR weight = 10",
        "color = 'blue' OR color = 'green' OR fragile",
        "(color = 'blue' OR fragile) AND NOT (sold OR weight = 3)",
        # AND binds tighter than OR, NOT tighter than AND
        "fragile OR sold AND sold",
        "NOT sold AND fragile",
        "weight BETWEEN 10 AND 10",
        "weight between 1 and 20 and fragile",
        "weight NOT BETWEEN 11 AND 20",
        "color IN ('blue', 'red')",
        "color NOT IN ('blue')",
        "color LIKE 'r%'",
        "color LIKE '_e_'",
        "color NOT LIKE 'b%'",
        "color LIKE '%'",
        r"quote LIKE '%100\%\_done_' ESCAPE '\'",
        "quote LIKE 'it''s%'",
        "missing IS NULL",
        "nothing IS NULL",
        "blob IS NULL",
        "color IS NOT NULL",
        "weight + 5 = 15 and weight - 5 = 5 and weight * 2 = 20 and weight / 4 = 2.5",
        "2 + 3 * 2 = 8 and (2 + 3) * 2 = 10",
        "10 - 3 - 2 = 5",
        "-weight = -10 and +weight = 10 and - -weight = 10",
        "a.b = 'dotted' and $x = 1",
        "JMSMessageID = 'id-1' and JMSCorrelationID = '7' and JMSType = 'order'",
        "JMSPriority > 6 and JMSDeliveryMode = 'PERSISTENT' and JMSXDeliveryCount = 3",
        "JMSXGroupID = 'g' and JMSXUserID = 'me' and JMSDestination = 'queue:a'",
        "JMSReplyTo IS NULL and JMSTimestamp IS NULL and JMSXGroupSeq IS NULL",
        "notable IS NULL and inner IS NULL and ORder IS NULL",
    ],
)
def test_selects(expression: str) -> None:
    """Conditions that are true of the message."""
    assert compile_selector(expression)(MESSAGE) is True


@pytest.mark.parametrize(
    "expression",
    [
        "color = 'blue'",
        "color = 'RED'",
        "Color = 'red'",
        "weight > 10",
        "color LIKE 'R%'",
        "color LIKE 're'",
        "color LIKE ''",
        "color IN ('green')",
        "sold",
        "color IS NULL",
        # unknown stays unknown when it is negated, and in every comparison
        "missing = 1",
        "NOT missing = 1",
        "missing <> 1",
        "missing BETWEEN 1 AND 2",
        "missing NOT BETWEEN 1 AND 2",
        "missing IN ('a')",
        "missing NOT IN ('a')",
        "missing LIKE '%'",
        "missing NOT LIKE '%'",
        "missing",
        "NOT missing",
        "missing = missing",
        "missing + 1 = 1",
        "missing AND fragile",
        "NOT (missing AND fragile)",
        "missing OR sold",
        # types are not mixed
        "color = 1",
        "color <> 1",
        "weight = '10'",
        "color > 'a'",
        "fragile = 1",
        "fragile = 'true'",
        "fragile > FALSE",
        "weight",
        "color",
        "color + 1 = 2",
        "weight / 0 = 1",
        "NOT weight / 0 = 1",
        "weight * 1e308 * 1e308 < 0",
        f"weight = {'9' * 10_000}",
        f"weight * 9999999999 * {' * '.join(['9999999999'] * 40)} / 3 = 1",
        "weight IN ('10')",
    ],
)
def test_does_not_select(expression: str) -> None:
    """Conditions that are false of the message, or unknown."""
    assert compile_selector(expression)(MESSAGE) is False


@pytest.mark.parametrize("expression", ["missing OR fragile", "NOT (missing AND sold)", "fragile OR missing"])
def test_unknown_does_not_always_matter(expression: str) -> None:
    """Where the other side decides, what is unknown is not asked for."""
    assert compile_selector(expression)(MESSAGE) is True


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "   ",
        "color =",
        "= 'red'",
        "color = 'red",
        "color == 'red'",
        'color = "red"',
        "color 'red'",
        "color = 'red' weight",
        "(color = 'red'",
        "color = 'red')",
        "color NOT = 'red'",
        "color NOT",
        "color IN",
        "color IN ()",
        "color IN ('a'",
        "color IN (1)",
        "color IN ('a',)",
        "color LIKE red",
        "color LIKE 1",
        "color LIKE 'a' ESCAPE 'ab'",
        "color LIKE 'a' ESCAPE ''",
        "color BETWEEN 1",
        "color BETWEEN 1 AND",
        "color IS 'red'",
        "IS NULL",
        "AND",
        "10abc = 1",
        "a ; b",
        "(" * 1000 + "a" + ")" * 1000,
        "(" * 60 + "a" + ")" * 60,
        "NOT " * 5000,
        "a = -",
    ],
)
def test_what_is_no_selector(expression: str) -> None:
    """A malformed condition is refused when it is made, never when a message comes."""
    with pytest.raises(SelectorError, match="selector"):
        compile_selector(expression)


@pytest.mark.parametrize("identity", [b"id-1", "id-1"])
def test_message_ids_are_compared_as_text(identity: str | bytes) -> None:
    """What AMQP has as bytes is text to a selector."""
    assert compile_selector("JMSMessageID = 'id-1'")(Message(b"", message_id=identity))


def test_ors_and_parentheses_side_by_side_are_not_deep() -> None:
    """Only nesting counts against the limit."""
    assert compile_selector(" OR ".join(["(color = 'x')"] * 500) + " OR fragile")(MESSAGE)


def test_random_expressions_raise_nothing_else() -> None:
    """Any mixture of words is either a selector that can be asked, or a SelectorError."""
    words = ["a", "color", "'s'", "1", "2.5", "(", ")", "AND", "OR", "NOT", "=", "<", "-", "*", "/", "IN", "LIKE", ","]
    words += ["BETWEEN", "IS", "NULL", "ESCAPE", "TRUE", "weight", "'%'"]
    source = random.Random(7)
    compiled = 0
    for _ in range(20_000):
        expression = " ".join(source.choices(words, k=source.randint(1, 8)))
        try:
            condition = compile_selector(expression)
        except SelectorError:
            continue
        compiled += 1
        assert condition(MESSAGE) in (True, False)
    assert compiled > 500
