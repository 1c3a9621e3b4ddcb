"""Names and patterns of the embedded Event Mesh, against the rules as they are documented, without I/O."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amqpws_async.errors import ErrorCondition
from amqpws_async.message import Message
from amqpws_async.testing.event_mesh.names import check_namespace, check_pattern, check_queue, check_topic, covers
from amqpws_async.testing.event_mesh.nodes import MeshNodes
from amqpws_async.testing.nodes import Topic

WORDS = ("a", "b")
TOPICS = ["/".join(words) for size in range(1, 5) for words in itertools.product(WORDS, repeat=size)]
"""Every topic of one to four segments: enough to tell two short patterns apart."""

topics = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map("/".join)
patterns = st.builds(
    lambda segments, end: "/".join([*segments, *end]),
    st.lists(st.sampled_from((*WORDS, "+")), min_size=1, max_size=3),
    st.sampled_from(([], ["*"])),
) | st.just("*")


def stands_for(pattern: str, topic: str) -> bool:
    """What the documentation says, one sentence after the other, and nothing clever."""
    if pattern == "*":
        return True
    if pattern.endswith("/*"):
        head = pattern.removesuffix("/*")
        size = head.count("/") + 1
        segments = topic.split("/")
        return len(segments) > size and stands_for(head, "/".join(segments[:size]))
    pairs = itertools.zip_longest(pattern.split("/"), topic.split("/"))
    return all(topic_segment and pattern_segment in ("+", topic_segment) for pattern_segment, topic_segment in pairs)


@given(pattern=patterns, topic=topics)
def test_a_pattern_covers_the_topics_it_stands_for(pattern: str, topic: str) -> None:
    """`+` is one segment, `*` one or more to the end, and all else is itself."""
    assert covers(pattern, topic) == stands_for(pattern, topic)


@given(pattern=patterns, other=patterns)
def test_a_pattern_covers_another_if_it_has_all_its_topics(pattern: str, other: str) -> None:
    """A rule allows a subscription only if it allows every topic in it, with whatever words."""
    # A word that is in no pattern stands for all the others.
    every = [*TOPICS, *(topic.replace("a", "c") for topic in TOPICS)]
    everything = all(stands_for(pattern, topic) for topic in every if stands_for(other, topic))
    assert covers(pattern, other) == everything


@pytest.mark.parametrize("name", ["a", "a/b", "a.b-c_d/E9", "/".join("a" * 20), "q" * 164])
def test_names_of_queues(name: str) -> None:
    """The longest, and every kind of character."""
    check_queue(name)


@pytest.mark.parametrize(
    "name", ["", "/", "a/", "/a", "a//b", "a b", "a/+", "a/*", "ä", "a\n", "a%2Fb", "/".join("a" * 21), "q" * 165]
)
def test_no_names_of_queues(name: str) -> None:
    """Empty segments, wildcards, foreign characters, and too much of anything."""
    with pytest.raises(ValueError, match="queue"):
        check_queue(name)


@pytest.mark.parametrize("name", ["a/b", "/".join("a" * 20), "a/" + "t" * 148])
def test_names_of_topics(name: str) -> None:
    """A topic is a pattern as well."""
    check_topic(name)
    check_pattern(name)


@pytest.mark.parametrize("name", ["", "a", "a/", "a//b", "a/b c", "/".join("a" * 21), "a/" + "t" * 149, "a/b+", "a/b*"])
def test_no_names_of_topics(name: str) -> None:
    """Nor are they patterns: wildcards are whole segments."""
    for check in (check_topic, check_pattern):
        with pytest.raises(ValueError, match="topic"):
            check(name)


@pytest.mark.parametrize("name", ["a/+", "+/+", "+/b/*", "a/*", "/".join("+" * 20)])
def test_patterns_are_no_topics(name: str) -> None:
    """Wildcards are for subscriptions."""
    check_pattern(name)
    with pytest.raises(ValueError, match="topic"):
        check_topic(name)


@pytest.mark.parametrize("name", ["*/a", "a/*/b", "a/**", "*", "+"])
def test_no_patterns(name: str) -> None:
    """`*` is for the end, and a pattern has two segments as a topic has."""
    with pytest.raises(ValueError, match="topic"):
        check_pattern(name)


def test_namespaces() -> None:
    """Three segments, 63 characters."""
    check_namespace("example/shop/1")
    check_namespace("a/b/" + "c" * 59)
    for name in ("", "a/b", "a/b/c/d", "a/b/", "a/b/*", "a/b/" + "c" * 60):
        with pytest.raises(ValueError, match="namespace"):
            check_namespace(name)


# --- nodes -----------------------------------------------------------------------------------------


def test_nodes_are_found_by_their_whole_address() -> None:
    """A queue is there if it was created, a topic always, and a name without its kind is nothing."""
    nodes = MeshNodes(4096)
    made = nodes.create_queue("a/b", {})
    assert nodes.find("queue:a/b") is made
    assert nodes.find("queue:a/c") is None
    assert nodes.find("a/b") is None
    assert nodes.find("a/b", topic=True) is None
    assert isinstance(nodes.find("topic:a/b"), Topic)
    assert nodes.find("topic:a/b") is nodes.find("topic:a/b")


@given(
    subscribed=st.lists(st.tuples(st.sampled_from(("q/1", "q/2")), patterns), max_size=6),
    used=st.lists(topics, max_size=3),
    published=topics,
    data=st.data(),
)
def test_topics_follow_what_is_subscribed_and_what_is_not_any_more(
    subscribed: list[tuple[str, str]], used: list[str], published: str, data: st.DataObject
) -> None:
    """Whether a topic was used before a subscription came or went makes no difference."""
    nodes = MeshNodes(2**20)
    queues = {name: nodes.create_queue(name, {}) for name in ("q/1", "q/2")}
    for topic in used:
        nodes.find(f"topic:{topic}")
    for name, pattern in subscribed:
        nodes.subscribe(queues[name], pattern)
    left = set(subscribed)
    for item in data.draw(st.lists(st.sampled_from(sorted(left)), unique=True) if left else st.just([])):
        nodes.unsubscribe(queues[item[0]], item[1])
        left.remove(item)
    node = nodes.find(f"topic:{published}")
    assert node is not None
    node.put(Message(b"1").encode())
    depths = {name: queue.statistics().depth for name, queue in queues.items()}
    assert depths == {name: int(any(q == name and stands_for(p, published) for q, p in left)) for name in queues}


def test_a_full_dead_message_queue_loses_its_oldest() -> None:
    """Nobody waits for room there, so it cannot grow for ever."""
    nodes = MeshNodes(4096)
    nodes.create_queue("dead", {})
    made = nodes.create_queue("orders", {"deadMsgQueue": "dead"})
    for _ in range(20):
        nodes.bury(Message(bytes(512)).encode(), made, ErrorCondition("amqp:rejected"))
    dead = nodes.by_name["dead"].statistics()
    assert dead.enqueued == 20
    assert dead.bytes <= 4096
    assert dead.discarded == 20 - dead.depth > 0
