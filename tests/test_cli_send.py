"""What ``amqpws send`` makes of outcomes that a broker seldom gives, and of a broker that goes away."""

from __future__ import annotations

import json
from typing import Any

import pytest

import amqpws_async as amqp
from amqpws_async.cli.failures import ExitStatus, complain, status_of
from amqpws_async.cli.tally import Tally


def tally(*outcomes: Any) -> Tally:
    made = Tally()
    for number, outcome in enumerate(outcomes, 1):
        made.sent += 1
        made.count(number, outcome)
    made.stop()
    return made


@pytest.mark.parametrize(
    ("outcome", "name", "failure"),
    [
        (amqp.Rejected(), "rejected", "message 2: rejected: no reason given"),
        (amqp.Rejected(amqp.ErrorCondition("amqp:x", "why")), "rejected", "message 2: rejected: amqp:x: why"),
        (amqp.Released(), "released", "message 2: released"),
        (amqp.Modified(delivery_failed=True), "modified", "message 2: modified"),
    ],
)
def test_every_outcome_but_accepted_is_a_failure(outcome: Any, name: str, failure: str) -> None:
    """It is counted by its name, told with its reason, and the status is 1."""
    made = tally(amqp.Accepted(), outcome)
    assert made.failures == [failure]
    assert made.as_json()[name] == 1
    assert made.as_json()["unknown"] == 0
    assert "failed 1" in made.progress()
    assert f"1 {name}" in made.summary()
    assert made.status() is ExitStatus.FAILED


def test_settled_by_the_peer_without_an_outcome_is_unknown() -> None:
    """Nobody can say whether it was taken, so it does not count as accepted."""
    made = tally(amqp.NoOutcome())
    assert made.as_json()["unknown"] == 1
    assert made.status() is ExitStatus.FAILED


def test_sent_settled_is_no_failure() -> None:
    """Fire and forget is what was asked for."""
    made = tally(None, None)
    assert (made.as_json()["settled"], made.failures, made.status()) == (2, [], ExitStatus.OK)
    assert "failed" not in made.progress()


def test_messages_without_outcome_are_in_doubt() -> None:
    """What ended the sending decides the status."""
    made = tally(amqp.Accepted())
    made.sent += 2
    made.error = amqp.DeliveryUnknown(b"", amqp.StopReason("connection", "transport"))
    assert "2 in doubt" in made.summary()
    assert json.loads(json.dumps(made.as_json()))["unknown"] == 2
    assert made.status() is ExitStatus.LOST
    made.error = TimeoutError("no outcome")
    assert made.status() is ExitStatus.TIMED_OUT


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (amqp.HandshakeError("x"), ExitStatus.CANNOT_CONNECT),
        (amqp.TokenError("x"), ExitStatus.CANNOT_CONNECT),
        (amqp.AttachError("x"), ExitStatus.REFUSED),
        (amqp.SettlementLost(amqp.StopReason("link", "remote")), ExitStatus.LOST),
        (TimeoutError("x"), ExitStatus.LOST),
        (KeyError("x"), ExitStatus.FAILED),
    ],
)
def test_every_error_has_a_status(error: BaseException, status: ExitStatus) -> None:
    """Those of the help text; what nobody foresaw is 1."""
    assert status_of(error) is status


def test_complaint_is_one_printable_line(capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever a peer puts into its description; unforeseen errors say how to learn more."""
    complain("a\nb\x1b[31m\x9b")
    complain(KeyError("x"))
    complain(TimeoutError())
    assert capfd.readouterr().err.splitlines() == [
        "amqpws: a b\\x1b[31m\\x9b",
        "amqpws: unexpected KeyError: 'x' (--verbose shows where)",
        "amqpws: TimeoutError",
    ]
