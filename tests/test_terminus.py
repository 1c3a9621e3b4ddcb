"""Source, target and selector: what may be asked for, and that nothing changes under a link's feet."""

from __future__ import annotations

from typing import Any

import pytest

from amqpws_async.codec import Described, symbol
from amqpws_async.terminus import (
    DistributionMode,
    ExpiryPolicy,
    Source,
    Target,
    TerminusDurability,
    as_source,
    as_target,
    selector,
)


def test_the_defaults_are_those_of_the_specification() -> None:
    """Nothing durable, forgotten at once when the session ends, moved rather than copied only if the node says so."""
    source = Source("q")
    assert (source.durable, source.expiry_policy, source.timeout) == (
        TerminusDurability.NONE,
        ExpiryPolicy.SESSION_END,
        0.0,
    )
    assert source.distribution_mode is None
    assert Target().address is None


def test_later_changes_to_the_callers_maps_change_nothing() -> None:
    """A link is attached again with what was given at first, whatever the caller did to the dictionary since."""
    filters: dict[str, Any] = selector("a = 1")
    source = Source("q", filter=filters, capabilities=["queue"])  # type: ignore[arg-type]
    filters.clear()
    assert source.filter is not None
    assert list(source.filter) == ["apache.org:selector-filter:string"]
    assert source.capabilities == ("queue",)
    with pytest.raises(TypeError):
        source.filter["x"] = 1  # type: ignore[index]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("address", 7),
        ("timeout", -1),
        ("timeout", 2**32),
        ("timeout", True),
        ("timeout", float("nan")),
        ("durable", 1),
        ("expiry_policy", "never"),
        ("distribution_mode", "copy"),
        ("filter", "color = 'red'"),
        ("filter", {1: 2}),
        ("dynamic_node_properties", []),
        ("capabilities", "queue"),
        ("capabilities", 7),
        ("capabilities", [7]),
        ("outcomes", "amqp:accepted:list"),
    ],
)
def test_a_wrong_value_is_refused_by_name(field: str, value: object) -> None:
    """The error begins with the field, so that a long call needs no debugger."""
    with pytest.raises(ValueError, match=f"^{field}:"):
        Source(**{field: value})  # type: ignore[arg-type]


def test_an_address_for_a_dynamic_node_is_refused_in_a_request_and_read_in_an_answer() -> None:
    """Specification 3.5.3: a request MUST NOT have one, the peer's answer MUST."""
    answer = Source("generated", dynamic=True)
    with pytest.raises(ValueError, match="chooses the address"):
        as_source(answer)
    assert as_source(Source(dynamic=True)).address is None


def test_node_properties_without_a_dynamic_node_are_refused() -> None:
    """They would be ignored in silence."""
    with pytest.raises(ValueError, match="dynamic must be True"):
        as_target(Target("q", dynamic_node_properties={"lifetime-policy": None}))


def test_capabilities_that_are_no_symbols_are_refused_in_a_request() -> None:
    """Symbols are ASCII (specification 1.6.21)."""
    with pytest.raises(ValueError, match="ASCII"):
        as_source(Source("q", capabilities=("größe",)))


def test_addresses_termini_and_none_are_taken() -> None:
    """None is a terminus without an address, and the empty string stays what it is: brokers tell them apart."""
    assert as_source("q") == Source("q")
    assert as_target(None) == Target(None)
    assert as_target("") == Target("") != Target(None)
    source = Source("q", distribution_mode=DistributionMode.COPY)
    assert as_source(source) is source
    target = Target("q")
    assert as_target(target) is target


def test_the_wrong_end_is_refused() -> None:
    """A Source where a Target belongs is a slip that would attach to nowhere."""
    with pytest.raises(TypeError, match="Target"):
        as_target(Source("q"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Source"):
        as_source(Target("q"))  # type: ignore[arg-type]


def test_selector_builds_the_registered_filter() -> None:
    """The key and the descriptor are the registered symbol, the value is the expression."""
    assert selector("color = 'red'") == {
        "apache.org:selector-filter:string": Described(symbol("apache.org:selector-filter:string"), "color = 'red'")
    }


def test_an_empty_selector_is_refused() -> None:
    """Brokers differ in what an empty one means: everything, nothing, or an error."""
    with pytest.raises(ValueError, match="empty"):
        selector("  ")
