"""One bad stream: how it is made, kept in a file, and given to an engine."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cproton_ffi import lib

from .mutate import cuts, mutate
from .party import PROFILES, Party, pump
from .wire import pieces

CRASHES = Path(__file__).parent / "crashes"
SUFFIX = ".stream"

MAX_OUTPUT = 16 * 2**20  # octets that one engine may say in answer to one stream


class Finding(AssertionError):
    """The engine did what it promises not to do."""


@dataclass(frozen=True)
class Stream:
    """Octets for an engine.

    Attributes:
        data: The octets.
        cuts: Where each read ends.
        server: Whether they are for a server's engine.
        profile: Which of `PROFILES` the engine has.
        eof: Whether the end of the octets is told; otherwise the engine is given up in the middle of whatever it does.
    """

    data: bytes
    cuts: list[int]
    server: bool
    profile: int
    eof: bool = True

    def reads(self) -> Iterator[bytes]:
        """The octets read by read."""
        start = 0
        for end in self.cuts:
            yield self.data[start:end]
            start = end

    def dump(self) -> bytes:
        """What a file of it holds: a line of JSON, then the octets."""
        head = {"server": self.server, "profile": self.profile, "eof": self.eof, "cuts": self.cuts}
        return json.dumps(head).encode() + b"\n" + self.data

    @staticmethod
    def load(content: bytes) -> Stream:
        """The stream in a file."""
        head, _, data = content.partition(b"\n")
        return Stream(data, **json.loads(head))


@cache
def recordings(server: bool) -> list[list[bytes]]:
    """What a server's (or client's) engine heard in one conversation of each profile, in pieces."""
    heard = []
    for profile in PROFILES:
        parties = Party(profile, server=False), Party(profile, server=True)
        said = pump(*parties)
        assert all(party.ends == ["closed"] for party in parties), "a conversation that is no conversation"
        for party in parties:
            party.engine.free()
        heard.append(pieces(said[0 if server else 1]))
    return heard


def make(seed: int, number: int) -> Stream:
    """Stream `number` of a seed."""
    rng = random.Random(f"{seed}:{number}")
    server = number % 2 == 1
    profile = rng.randrange(len(PROFILES))
    others = recordings(server)
    data = mutate(rng, others[profile], others)
    return Stream(data, cuts(rng, len(data)), server, profile, eof=rng.random() < 0.7)


def run(stream: Stream) -> None:
    """Gives a stream to a fresh engine.

    Raises:
        Finding: It said too much, or did not notice the end.
        Exception: Whatever the engine let out; nothing should.
    """
    party = Party(PROFILES[stream.profile], server=stream.server)
    engine = party.engine
    now = 1.0
    said = _drain(party, now)
    for data in stream.reads():
        engine.receive_data(data)
        now += 0.01
        said += _drain(party, now)
    if lib.pn_transport_capacity(engine._t) < 0 and not party.ends:
        raise Finding("it has stopped listening, and nobody was told")
    if stream.eof:
        said += _drain(party, now + 1000.0)
        engine.receive_eof()
        said += _drain(party, now + 1001.0)
    if said > MAX_OUTPUT:
        raise Finding(f"{said} octets in answer to {len(stream.data)}")
    if stream.eof and not party.ends:
        raise Finding("the stream is over, and nobody was told")
    engine.free()


def _drain(party: Party, now: float) -> int:
    deadline = party.engine.tick(now)
    if deadline is not None and deadline < 0:
        raise Finding(f"a deadline of {deadline}")
    said = 0
    while data := party.engine.data_to_send(32768):
        said += len(data)
        if said > MAX_OUTPUT:
            break
    return said


def main(paths: list[str]) -> None:
    """Runs recorded streams, in a process that may well die of it."""
    for path in paths:
        run(Stream.load(Path(path).read_bytes()))


if __name__ == "__main__":
    main(sys.argv[1:])
