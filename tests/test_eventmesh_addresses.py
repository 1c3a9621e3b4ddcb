"""Event Mesh's names: what is taken, and what is refused with which reason."""

from __future__ import annotations

import pytest

from amqpws_async.eventmesh.addresses import (
    check_namespace,
    check_queue_name,
    check_source,
    check_subscription,
    check_target,
    check_topic,
    expand,
)

LONG_TOPIC = "a/" + "b" * 148


def test_the_namespace_is_filled_in_wherever_it_stands() -> None:
    """`${namespace}` may stand in an address, a queue's name or a topic, more than once."""
    assert expand("topic:${namespace}/ce/orders", "example/shop/1") == "topic:example/shop/1/ce/orders"
    assert expand("${namespace}/a/${namespace}", "x/y/z") == "x/y/z/a/x/y/z"
    assert expand("queue:other/app/1/orders", None) == "queue:other/app/1/orders"


def test_a_namespace_that_is_not_known_is_asked_for() -> None:
    """A key without a namespace cannot fill one in: the error says how to give it."""
    with pytest.raises(ValueError, match="namespace="):
        expand("topic:${namespace}/orders", None)
    with pytest.raises(ValueError, match="not bytes"):
        expand(b"topic:a/b", None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "address",
    [
        "topic:a/b",
        "topic:example/shop/1/ce/orders/created-now_v1.0",
        "queue:example/shop/1/orders",
        "queue:single",
        "topic:" + LONG_TOPIC,
        "topic:" + "/".join("a" * 20),
        "queue:" + "q" * 164,
    ],
)
def test_addresses_to_send_to(address: str) -> None:
    """What the rules allow goes through as it is, for sending and for receiving."""
    assert check_target(address) == address
    assert check_source(address) == address


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("orders", "'queue:orders' or 'topic:orders'"),
        ("", "say what it is"),
        ("queue://orders", "'queue:orders'"),
        ("topic://a/b", "'topic:a/b'"),
        ("Topic:a/b", "say what it is"),
        ("queue:", "not empty"),
        ("topic:", "not empty"),
        ("topic:orders", "lack the namespace"),
        ("topic:" + LONG_TOPIC + "b", "151 characters, and 150"),
        ("topic:" + "/".join("a" * 21), "has 21"),
        ("topic:a//b", "a segment is empty"),
        ("topic:/a/b", "a segment is empty"),
        ("queue:a/", "a segment is empty"),
        ("topic:a/b c", "'b c' has more than"),
        ("topic:a/bä", "has more than"),
        ("topic:a/b#", "has more than"),
        ("topic:a/b\n", "has more than"),
        ("queue:a>b", "has more than"),
        ("queue:" + "q" * 165, "165 characters, and 164"),
    ],
)
def test_addresses_that_break_a_rule(address: str, reason: str) -> None:
    """Each is refused, with what is wrong and, where it can be known, what was meant."""
    for check in (check_target, check_source):
        with pytest.raises(ValueError, match=r"address|queue|topic") as caught:
            check(address)
        assert reason in str(caught.value)


@pytest.mark.parametrize("name", ["a/*", "a/+/b", "+/+", "+/*", "a/b", "example/shop/1/ce/+/created"])
def test_wildcards_are_for_subscriptions(name: str) -> None:
    """A queue may subscribe to a pattern; nothing is published to one."""
    assert check_subscription(name) == name
    assert check_source(f"topic:{name}") == f"topic:{name}"
    if "*" in name or "+" in name:
        with pytest.raises(ValueError, match="wildcards are for subscriptions"):
            check_topic(name)


@pytest.mark.parametrize("name", ["a/*/b", "*/a", "a/b*", "a/+b", "*", "+", "a/#", "a/**"])
def test_patterns_that_mean_nothing(name: str) -> None:
    """`+` is one whole segment, `*` stands alone at the end."""
    with pytest.raises(ValueError, match="topic"):
        check_subscription(name)


def test_a_namespace_has_three_segments() -> None:
    """As SAP's descriptor demands; 63 characters at most."""
    assert check_namespace("example/shop/1") == "example/shop/1"
    for wrong in ("", "a/b", "a/b/c/d", "a//c", "a/b/c c", "a/b/" + "c" * 60):
        with pytest.raises(ValueError, match="namespace"):
            check_namespace(wrong)


def test_a_queue_may_have_a_single_segment() -> None:
    """Only topics need two."""
    assert check_queue_name("orders") == "orders"
    with pytest.raises(ValueError, match="not empty, not None"):
        check_queue_name(None)  # type: ignore[arg-type]
