"""The nodes of the embedded broker: who gets which message, and what becomes of it, without any I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from amqpws_async.codec import symbol
from amqpws_async.errors import DecodeError, ErrorCondition
from amqpws_async.message import ACCEPTED, RELEASED, Message, Modified, NoOutcome, Outcome, Rejected
from amqpws_async.terminus import Source
from amqpws_async.testing.nodes import DEAD_LETTER, Nodes, Topic
from amqpws_async.testing.queues import Consumer, Entry, Queue

KIB = 1024


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Taker(Consumer):
    """A consumer that keeps what it gets."""

    def __init__(
        self,
        queue: Queue,
        credit: int = 0,
        name: str = "taker",
        *,
        selector: Callable[[Message], bool] | None = None,
        browsing: bool = False,
        settled: bool = False,
        max_message_size: int | None = None,
    ) -> None:
        super().__init__(
            ("container", name),
            selector=selector,
            browsing=browsing,
            settled=settled,
            max_message_size=max_message_size,
        )
        self.queue = queue
        self.entries: list[Entry] = []
        self.unsettled: list[Entry] = []
        self.raws: list[bytes] = []
        self.evicted: list[ErrorCondition] = []
        queue.join(self)
        self.flow(credit)

    def flow(self, credit: int) -> None:
        self.credit += credit
        self.queue.feed(self)

    def deliver(self, entry: Entry) -> None:
        assert self.credit > 0, "a message without credit"
        self.credit -= 1
        self.entries.append(entry)
        if not self.settled and not self.browsing:
            self.unsettled.append(entry)
        self.raws.append(entry.raw)

    def evict(self, error: ErrorCondition, *, closed: bool = True) -> None:
        self.evicted.append(error)
        self.leave()

    def leave(self) -> None:
        self.queue.leave(self, self.unsettled)

    def settle(self, outcome: Outcome, index: int = -1) -> None:
        entry = self.entries[index]
        self.unsettled.remove(entry)
        entry.queue.settle(entry, outcome)

    @property
    def messages(self) -> list[Message]:
        return [Message.decode(raw) for raw in self.raws]

    @property
    def bodies(self) -> list[object]:
        return [message.body for message in self.messages]


class Waiter:
    """A publisher that counts its calls."""

    def __init__(self) -> None:
        self.unblocked = 0
        self.evicted: list[ErrorCondition] = []

    def unblock(self) -> None:
        self.unblocked += 1

    def evict(self, error: ErrorCondition) -> None:
        self.evicted.append(error)


def make(limit: int = KIB * KIB, count: int | None = None) -> tuple[Nodes, Clock]:
    clock = Clock()
    return Nodes(limit, count, clock), clock


def queue_of(nodes: Nodes, address: str = "q") -> Queue:
    node = nodes.find(address)
    assert isinstance(node, Queue)
    return node


def topic_of(nodes: Nodes, address: str = "topic:t") -> Topic:
    node = nodes.find(address)
    assert isinstance(node, Topic)
    return node


def fill(queue: Queue, bodies: Sequence[bytes], **fields: bool) -> None:
    for body in bodies:
        queue.put(Message(body, **fields).encode())  # type: ignore[arg-type]


# --- who gets it ------------------------------------------------------------------------


def test_no_message_without_credit() -> None:
    """Credit bounds deliveries, and what has none to go to waits in order."""
    queue = queue_of(make()[0])
    taker = Taker(queue, 1)
    fill(queue, [b"1", b"2", b"3"])
    assert taker.bodies == [b"1"]
    taker.flow(5)
    assert taker.bodies == [b"1", b"2", b"3"]
    assert taker.credit == 3


def test_consumers_take_turns() -> None:
    """New messages go round among the consumers that have credit, and pass over one that has none."""
    queue = queue_of(make()[0])
    one, two, none = Taker(queue, 10, "1"), Taker(queue, 10, "2"), Taker(queue, 0, "3")
    fill(queue, [b"%d" % number for number in range(6)])
    assert one.bodies == [b"0", b"2", b"4"]
    assert two.bodies == [b"1", b"3", b"5"]
    assert none.bodies == []


def test_a_consumer_that_used_its_credit_comes_back_into_the_round() -> None:
    """Credit that runs out and comes again makes a consumer wait again, once."""
    queue = queue_of(make()[0])
    one, two = Taker(queue, 1, "1"), Taker(queue, 10, "2")
    fill(queue, [b"0", b"1", b"2"])
    one.flow(1)
    one.flow(1)
    fill(queue, [b"3", b"4", b"5", b"6"])
    assert len(one.bodies) == 3
    assert one.credit == 0
    assert sorted(str(body) for body in one.bodies + two.bodies) == [str(b"%d" % number) for number in range(7)]


def test_a_selector_picks_and_leaves_the_rest_in_order() -> None:
    """A consumer with a selector gets what fits, ready or new; others get the rest in order."""
    queue = queue_of(make()[0])
    fill(queue, [b"a1", b"b1", b"a2", b"b2"])
    picky = Taker(queue, 10, "picky", selector=lambda message: bytes(message.body or b"")[:1] == b"a")  # type: ignore[arg-type]
    assert picky.bodies == [b"a1", b"a2"]
    fill(queue, [b"b3", b"a3"])
    assert picky.bodies == [b"a1", b"a2", b"a3"]
    rest = Taker(queue, 10, "rest")
    assert rest.bodies == [b"b1", b"b2", b"b3"]


def test_a_selector_never_takes_a_malformed_message() -> None:
    """Properties that cannot be decoded select nothing, and break nothing."""
    queue = queue_of(make()[0])
    Taker(queue, 10, selector=lambda message: message.subject is None)
    queue.put(b"\x00\x53\x73\xc0\x03\x05\x55\x01")
    assert queue.statistics().depth == 1


def test_a_message_over_the_consumers_limit_goes_to_another() -> None:
    """What a consumer announced as max-message-size is heeded message by message."""
    queue = queue_of(make()[0])
    small, big = Taker(queue, 10, "small", max_message_size=50), Taker(queue, 10, "big")
    fill(queue, [b"x" * 100, b"y" * 100, b"z"])
    assert [len(str(body)) for body in big.bodies] == [103, 103]
    assert small.bodies == [b"z"]


def test_a_presettled_delivery_is_done() -> None:
    """A consumer whose deliveries are settled leaves nothing behind."""
    queue = queue_of(make()[0])
    Taker(queue, 10, settled=True)
    fill(queue, [b"1"])
    statistics = queue.statistics()
    assert (statistics.acknowledged, statistics.unsettled, statistics.bytes) == (1, 0, 0)


def test_browsing_takes_nothing_and_shows_everything_once() -> None:
    """Whoever browses sees each ready message once, also those that come later, and they stay for others."""
    queue = queue_of(make()[0])
    fill(queue, [b"1", b"2"])
    browser = Taker(queue, 1, "browser", browsing=True)
    assert browser.bodies == [b"1"]
    browser.flow(10)
    fill(queue, [b"3"])
    assert browser.bodies == [b"1", b"2", b"3"]
    taker = Taker(queue, 10, "taker")
    assert taker.bodies == [b"1", b"2", b"3"]
    for index in range(3):
        taker.settle(RELEASED, index)
    assert len(browser.bodies) == 3


@pytest.mark.parametrize("number", [2, 20])
def test_browsing_sees_what_comes_back(number: int) -> None:
    """A message that somebody had while the browser looked is shown when it comes back, in small numbers and large."""
    queue = queue_of(make()[0])
    taker = Taker(queue, number, "taker")
    fill(queue, [b"x"] * number)
    browser = Taker(queue, 100, "browser", browsing=True)
    assert browser.bodies == []
    taker.leave()
    assert len(browser.bodies) == number


# --- what becomes of it -------------------------------------------------------------------


def test_accepted_is_gone() -> None:
    """An accepted message leaves the queue, its bytes too."""
    queue = queue_of(make()[0])
    taker = Taker(queue, 1)
    fill(queue, [b"1"])
    assert queue.statistics().unsettled == 1
    assert queue.statistics().bytes == len(taker.raws[0])
    taker.settle(ACCEPTED)
    statistics = queue.statistics()
    assert (statistics.acknowledged, statistics.depth, statistics.unsettled, statistics.bytes) == (1, 0, 0, 0)


@pytest.mark.parametrize("outcome", [RELEASED, NoOutcome(), Modified()])
def test_released_comes_back_byte_for_byte(outcome: Outcome) -> None:
    """A message nobody tried to process goes out again as it came."""
    queue = queue_of(make()[0])
    taker = Taker(queue, 2)
    fill(queue, [b"1"])
    taker.settle(outcome)
    assert taker.raws[0] == taker.raws[1]
    assert queue.statistics().redelivered == 1


def test_first_acquirer_is_true_once() -> None:
    """The second consumer is not told that it is the first (3.2.1)."""
    queue = queue_of(make()[0])
    taker = Taker(queue, 2)
    fill(queue, [b"1"], first_acquirer=True, durable=True)
    taker.settle(RELEASED)
    first, second = taker.messages
    assert (first.first_acquirer, second.first_acquirer) == (True, False)
    assert (second.durable, second.delivery_count, second.body) == (True, 0, b"1")


def test_a_failed_delivery_is_counted() -> None:
    """Modified with delivery-failed raises the delivery-count, on top of what the message came with."""
    queue = queue_of(make()[0])
    taker = Taker(queue, 3)
    queue.put(Message(b"1", delivery_count=5, subject="s", footer={"f": 1}).encode())
    taker.settle(Modified(delivery_failed=True))
    taker.settle(Modified(delivery_failed=True))
    assert [message.delivery_count for message in taker.messages] == [5, 6, 7]
    assert taker.messages[2].subject == "s"
    assert taker.messages[2].footer == {"f": 1}


def test_undeliverable_here_never_comes_here_again() -> None:
    """A barred consumer is passed over, on redelivery and when it gets credit; its message goes to another."""
    queue = queue_of(make()[0])
    one = Taker(queue, 5, "1")
    fill(queue, [b"1", b"2"])
    one.settle(Modified(undeliverable_here=True), 0)
    one.flow(5)
    assert one.bodies == [b"1", b"2"]
    assert queue.statistics().depth == 1
    fill(queue, [b"3"])
    assert one.bodies == [b"1", b"2", b"3"]
    other = Taker(queue, 5, "2")
    assert other.bodies == [b"1"]
    other.settle(Modified(undeliverable_here=True))
    one.leave()
    again = Taker(queue, 5, "1")
    assert again.bodies == []
    assert Taker(queue, 5, "3").bodies == [b"1"]


def test_annotations_of_modified_are_merged() -> None:
    """Entries of a modified outcome replace and join the message's own annotations (3.4.5)."""
    queue = queue_of(make()[0])
    taker = Taker(queue, 2)
    queue.put(Message(b"1", message_annotations={"x-a": 1, "x-b": 2}).encode())
    taker.settle(Modified(message_annotations={symbol("x-b"): 3, symbol("x-c"): "new"}))
    assert taker.messages[1].message_annotations == {"x-a": 1, "x-b": 3, "x-c": "new"}
    assert taker.messages[1].delivery_count == 0
    assert queue.statistics().bytes == len(taker.raws[1])


def test_annotations_that_cannot_be_encoded_change_nothing() -> None:
    """A consumer cannot break a message by what it modifies."""
    queue = queue_of(make()[0])
    taker = Taker(queue, 2)
    fill(queue, [b"1"])
    taker.settle(Modified(message_annotations={3.5: 1}))
    assert taker.raws[0] == taker.raws[1]


@pytest.mark.parametrize("number", [3, 30])
def test_what_a_consumer_leaves_behind_goes_back_to_its_place(number: int) -> None:
    """Unsettled messages of a link that ended are delivered again first, in order, their delivery-count raised."""
    queue = queue_of(make()[0])
    one = Taker(queue, number, "1")
    fill(queue, [b"%d" % index for index in range(number + 2)])
    one.settle(ACCEPTED, 1)
    one.leave()
    other = Taker(queue, 100, "2")
    expected = [b"%d" % index for index in range(number + 2) if index != 1]
    assert other.bodies == expected
    assert [message.delivery_count for message in other.messages] == [1] * (number - 1) + [0, 0]


@pytest.mark.parametrize("number", [2, 30])
def test_what_a_consumer_leaves_behind_goes_to_who_waits(number: int) -> None:
    """A consumer that has credit gets the unsettled messages of one that ended at once."""
    queue = queue_of(make()[0])
    one = Taker(queue, number, "1")
    fill(queue, [b"%d" % index for index in range(number)])
    other = Taker(queue, 100, "2")
    one.leave()
    assert other.bodies == [b"%d" % index for index in range(number)]
    assert queue.statistics().unsettled == number


def test_a_released_message_goes_back_between_its_neighbours() -> None:
    """One message that comes back finds its place among those that are ready."""
    queue = queue_of(make()[0])
    one = Taker(queue, 4, "1")
    fill(queue, [b"0", b"1", b"2", b"3"])
    for index in (3, 0, 2):
        one.settle(RELEASED, index)
    assert Taker(queue, 10, "2").bodies == [b"0", b"2", b"3"]


def test_rejected_goes_to_the_dead_letters_with_its_reason() -> None:
    """A rejected message is in the dead-letter queue, whole, and says where it came from and why."""
    nodes, _ = make()
    queue = queue_of(nodes)
    taker = Taker(queue, 2)
    queue.put(Message(b"1", message_id="m", message_annotations={"x-mine": 1}).encode())
    taker.settle(Rejected(ErrorCondition("app:broken", "no such order")))
    assert queue.statistics().dead_lettered == 1
    assert queue.statistics().bytes == 0
    dead = Taker(queue_of(nodes, DEAD_LETTER), 1)
    (message,) = dead.messages
    assert (message.body, message.message_id) == (b"1", "m")
    assert message.message_annotations == {
        "x-mine": 1,
        "x-opt-dead-letter-source": "q",
        "x-opt-dead-letter-condition": "app:broken",
        "x-opt-dead-letter-description": "no such order",
    }


def test_rejected_without_a_reason() -> None:
    """A rejection need not say why."""
    nodes, _ = make()
    taker = Taker(queue_of(nodes), 1)
    fill(taker.queue, [b"1"])
    taker.settle(Rejected())
    (message,) = Taker(queue_of(nodes, DEAD_LETTER), 1).messages
    assert message.message_annotations["x-opt-dead-letter-condition"] == "amqp:rejected"


def test_a_rejected_dead_letter_is_dropped() -> None:
    """There is no second place for what is rejected there too."""
    nodes, _ = make()
    dead = queue_of(nodes, DEAD_LETTER)
    taker = Taker(dead, 5)
    fill(dead, [b"1"])
    taker.settle(Rejected())
    assert len(taker.bodies) == 1
    assert dead.statistics().bytes == 0


def test_full_dead_letters_lose_the_oldest() -> None:
    """The dead letters are bounded like any queue, and as nobody can be held back, the oldest go."""
    nodes, _ = make(limit=4 * KIB)
    taker = Taker(queue_of(nodes), 20)
    fill(taker.queue, [b"%d" % number + b"x" * 500 for number in range(10)])
    for index in range(10):
        taker.settle(Rejected(), index)
    statistics = queue_of(nodes, DEAD_LETTER).statistics()
    assert statistics.discarded > 0
    assert statistics.depth + statistics.discarded == 10
    assert statistics.bytes < 4 * KIB
    last = Taker(queue_of(nodes, DEAD_LETTER), 20).bodies[-1]
    assert isinstance(last, bytes)
    assert last.startswith(b"9")


@pytest.mark.parametrize("number", [1, 20])
def test_too_many_failures_make_a_dead_letter(number: int) -> None:
    """At max_delivery_count failed deliveries a message is tried no more, whether it failed alone or with its link."""
    nodes, _ = make(count=2)
    queue = queue_of(nodes)
    fill(queue, [b"x"] * number)
    for _ in range(2):
        assert queue.statistics().depth == number
        Taker(queue, 100).leave()
    assert queue.statistics().depth == 0
    assert queue.statistics().dead_lettered == number
    (message, *_) = Taker(queue_of(nodes, DEAD_LETTER), 100).messages
    assert message.message_annotations["x-opt-dead-letter-condition"] == "amqp:resource-limit-exceeded"


def test_what_has_expired_is_not_delivered() -> None:
    """A message whose ttl is over is dropped when its turn comes, and is not shown to those who browse."""
    nodes, clock = make()
    queue = queue_of(nodes)
    raw = Message(b"1", ttl=10.0).encode()
    queue.put(raw, nodes.expiry(raw))
    fill(queue, [b"2"])
    clock.now += 11
    assert Taker(queue, 5, "browser", browsing=True).bodies == [b"2"]
    assert Taker(queue, 5).bodies == [b"2"]
    assert queue.statistics().expired == 1


def test_the_expiry_comes_from_the_header() -> None:
    """Without a ttl, or with one of 0, a message does not expire."""
    nodes, clock = make()
    assert nodes.expiry(Message(b"1").encode()) is None
    assert nodes.expiry(Message(b"1", durable=True).encode()) is None
    assert nodes.expiry(b"\x00\x53\x70\xc0\x05\x03\x40\x40\x52\x00\x00\x53\x75\xa0\x00") is None
    assert nodes.expiry(Message(b"1", ttl=1.5).encode()) == clock.now + 1.5


@pytest.mark.parametrize("raw", [b"", b"hello", b"\x00\x53\x70\xc0\x7f\x05"])
def test_bytes_that_are_no_message_are_refused(raw: bytes) -> None:
    """What does not begin like a message never gets into a queue."""
    with pytest.raises(DecodeError):
        make()[0].expiry(raw)


# --- bounded memory -----------------------------------------------------------------------


def test_a_full_queue_tells_its_publishers_when_half_is_free() -> None:
    """Publishers wait while a queue is full, unsettled messages included, and are told once, in order."""
    queue = queue_of(make(limit=8 * KIB)[0])
    taker = Taker(queue, 100)
    while queue.room > 0:
        fill(queue, [b"x" * 1000])
    waiter = Waiter()
    queue.blocked[waiter] = None
    held = len(taker.entries)
    for index in range(held):
        taker.settle(ACCEPTED, index)
        assert waiter.unblocked == (1 if queue.room >= 4 * KIB else 0)
    assert waiter.unblocked == 1
    assert queue.room == 8 * KIB


def test_empty_messages_fill_a_queue_too() -> None:
    """The objects around a message count, so that a queue of tiny messages is bounded as well."""
    queue = queue_of(make(limit=8 * KIB)[0])
    fill(queue, [b""] * 40)
    assert queue.room <= 0


def test_a_topic_is_as_full_as_its_fullest_subscription() -> None:
    """One slow subscriber holds the publishers of a topic back, rather than losing messages or eating memory."""
    nodes, _ = make(limit=2 * KIB)
    topic = topic_of(nodes)
    assert topic.room == 2 * KIB
    assert topic.fullest() is None
    fast, slow = topic.subscribe("fast"), topic.subscribe("slow")
    Taker(fast, 100, settled=True)
    while topic.room > 0:
        topic.put(Message(b"x" * 500).encode())
    assert fast.room == 2 * KIB
    assert topic.fullest() is slow


# --- topics -------------------------------------------------------------------------------


def test_a_topic_gives_every_subscription_its_own_copy() -> None:
    """Every subscription of the moment gets each message; one that comes later gets none of those."""
    topic = topic_of(make()[0])
    early = [Taker(topic.subscribe(number), 10, str(number)) for number in range(3)]
    topic.put(Message(b"1").encode())
    late = Taker(topic.subscribe("late"), 10, "late")
    topic.put(Message(b"2").encode())
    assert [taker.bodies for taker in early] == [[b"1", b"2"]] * 3
    assert late.bodies == [b"2"]
    early[0].settle(RELEASED)
    assert [len(taker.bodies) for taker in early] == [3, 2, 2]
    assert topic.statistics().published == 2
    assert len(topic.statistics().subscriptions) == 4


def test_a_subscription_keeps_only_what_its_selector_takes() -> None:
    """What a subscriber does not want never takes room in its subscription."""
    topic = topic_of(make()[0])
    queue = topic.subscribe("s", lambda message: message.subject == "yes")
    topic.put(Message(b"1", subject="no").encode())
    topic.put(Message(b"2", subject="yes").encode())
    assert Taker(queue, 10).bodies == [b"2"]
    assert queue.statistics().enqueued == 1


def test_a_durable_subscription_waits_for_its_subscriber() -> None:
    """Messages that come while nobody is there are kept, and the same container and link find them."""
    nodes, _ = make()
    topic, key = topic_of(nodes), ("container", "link")
    queue = nodes.subscribe_durably(key, topic, Source("topic:t"), None, None)
    taker = Taker(queue, 10)
    taker.leave()
    topic.put(Message(b"1").encode())
    assert nodes.subscribe_durably(key, topic, Source("topic:t"), None, None) is queue
    assert Taker(queue, 10).bodies == [b"1"]
    nodes.unsubscribe_durably(key)
    nodes.unsubscribe_durably(key)
    assert topic.statistics().subscriptions == ()


def test_a_durable_subscription_that_is_attached_again_is_stolen() -> None:
    """The link that was there before is told, and the subscription lives on."""
    nodes, _ = make()
    topic, key = topic_of(nodes), ("container", "link")
    queue = nodes.subscribe_durably(key, topic, Source("topic:t"), None, None)
    first = Taker(queue, 10)
    assert nodes.subscribe_durably(key, topic, Source("topic:t"), None, None) is queue
    assert [error.condition for error in first.evicted] == ["amqp:link:stolen"]


def test_a_durable_subscription_to_something_else_is_a_new_one() -> None:
    """Another topic or selector under the same name replaces the subscription, as JMS has it."""
    nodes, _ = make()
    topic, key = topic_of(nodes), ("container", "link")
    first = nodes.subscribe_durably(key, topic, Source("topic:t"), None, None)
    taker = Taker(first, 10)
    second = nodes.subscribe_durably(key, topic, Source("topic:t"), "a = 1", lambda message: True)
    assert second is not first
    assert [error.condition for error in taker.evicted] == ["amqp:resource-deleted"]
    other = topic_of(nodes, "topic:other")
    third = nodes.subscribe_durably(key, other, Source("topic:other"), "a = 1", None)
    assert list(other.subscriptions.values()) == [third]
    assert topic.subscriptions == {}


# --- addresses ------------------------------------------------------------------------------


def test_addresses() -> None:
    """`queue:NAME` and NAME are one queue, `topic:NAME` is a topic, and so is NAME with the capability."""
    nodes, _ = make()
    assert nodes.find("queue:a") is nodes.find("a") is nodes.find("a")
    assert nodes.find("topic:a") is nodes.find("a", topic=True) is not nodes.find("a")
    assert nodes.find("queue:a", topic=True) is nodes.find("a")
    assert nodes.find("queue:topic:a") is nodes.find("queue:topic:a")
    assert nodes.find("") is nodes.find("queue:") is nodes.find("topic:") is None
    assert dict(nodes.queues()).keys() >= {"a"}
    assert dict(nodes.topics()).keys() == {"a"}


@pytest.mark.parametrize("topic", [False, True])
def test_a_dynamic_node_is_there_until_it_is_deleted(topic: bool) -> None:
    """The address of a deleted dynamic node is not to be had again, and who used it is told."""
    nodes, _ = make()
    address, node = nodes.create_dynamic(topic=topic)
    assert nodes.find(address) is node
    queue = node.subscribe("s") if isinstance(node, Topic) else node
    taker, publisher = Taker(queue, 10), Waiter()
    node.publishers[publisher] = None
    fill(queue, [b"1", b"2"])
    nodes.delete(node)
    assert nodes.find(address) is None
    assert [error.condition for error in taker.evicted] == ["amqp:resource-deleted"]
    assert [error.condition for error in publisher.evicted] == ["amqp:resource-deleted"]
    assert queue.statistics().discarded == 2
    assert queue.statistics().bytes == 0


def test_deleting_a_full_subscription_lets_the_publishers_go_on() -> None:
    """Publishers of a topic that waited for one subscription are told when it is gone."""
    nodes, _ = make(limit=1 * KIB)
    topic = topic_of(nodes)
    queue, waiter = topic.subscribe("s"), Waiter()
    while topic.room > 0:
        topic.put(Message(b"x" * 500).encode())
    queue.blocked[waiter] = None
    topic.unsubscribe("s")
    topic.unsubscribe("s")
    assert waiter.unblocked == 1
    assert topic.room == 1 * KIB
