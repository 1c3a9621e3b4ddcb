"""One bad stream: how it is made, kept in a file, and given to an engine."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cproton_ffi import lib

from .mutate import cuts, mutate
from .party import PROFILES, Party, pump
from .wire import pieces

CRASHES = Path(__file__).parent / "crashes"
SUFFIX = ".stream"

MAX_SENT = 500  # pieces of at most 32 KiB that an engine may say in answer to one read
MAX_READ = 2**16  # octets of a damaged read in a live conversation
MAX_READS = 100  # of a live conversation; the longest undamaged one has about 40


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


def attempt(seed: int, number: int, note: Callable[[Stream], None]) -> None:
    """Gives stream `number` of a seed to a fresh engine: a damaged recording, or a live conversation that is damaged.

    Args:
        seed: The seed.
        number: Odd ones are for a server's engine.
        note: Told the stream before the engine hears it, or more of it.

    Raises:
        Finding: It said too much, or did not notice the end.
        Exception: Whatever the engine let out; nothing should.
    """
    rng = random.Random(f"{seed}:{number}")
    server = number % 2 == 1
    profile = rng.randrange(len(PROFILES))
    eof = rng.random() < 0.7
    if number % 8 >= 6:  # these take several times as long
        _converse(rng, server, profile, eof, note)
        return
    others = recordings(server)
    data = mutate(rng, others[profile], others)
    stream = Stream(data, cuts(rng, len(data)), server, profile, eof)
    note(stream)
    run(stream)


def run(stream: Stream) -> None:
    """Gives a stream to a fresh engine; raises as `attempt` does."""
    trial = _Trial(stream.server, stream.profile)
    for data in stream.reads():
        trial.read(data)
    trial.finish(stream.eof)


def _converse(rng: random.Random, server: bool, profile: int, eof: bool, note: Callable[[Stream], None]) -> None:
    """Lets an engine talk to a good peer, a part of whose words is damaged on the way."""
    trial = _Trial(server, profile)
    peer = Party(PROFILES[profile], server=not server)
    others = recordings(server)
    heard, ends = b"", [0]
    good = rng.randrange(40)
    limit = rng.choice((200, 2000, 65536))
    answer = trial.said
    while len(ends) < MAX_READS:
        peer.engine.receive_data(answer)
        peer.engine.tick(trial.now)
        data = peer.engine.data_to_send(limit)
        if not data:
            break
        good -= 1
        if good < 0 and rng.random() < 0.4:
            data = mutate(rng, pieces(data), others)[:MAX_READ]
        heard += data
        ends.append(len(heard))
        note(Stream(heard, ends[1:], server, profile, eof))
        before = len(trial.said)
        trial.read(data)
        answer = trial.said[before:]
    trial.finish(eof)
    peer.engine.free()


class _Trial:
    """An engine that hears something, and what is expected of it."""

    def __init__(self, server: bool, profile: int) -> None:
        self.party = Party(PROFILES[profile], server=server)
        self.said = b""
        self.now = 1.0
        self._speak()

    def read(self, data: bytes) -> None:
        self.party.engine.receive_data(data)
        self.now += 0.01
        self._speak()

    def finish(self, eof: bool) -> None:
        party, engine = self.party, self.party.engine
        if lib.pn_transport_capacity(engine._t) < 0 and not party.ends:
            raise Finding("it has stopped listening, and nobody was told")
        if eof:
            self.now += 1000.0
            self._speak()
            engine.receive_eof()
            self._speak()
            if not party.ends:
                raise Finding("the stream is over, and nobody was told")
        engine.free()

    def _speak(self) -> None:
        deadline = self.party.engine.tick(self.now)
        if deadline is not None and deadline < 0:
            raise Finding(f"a deadline of {deadline}")
        said = []
        while data := self.party.engine.data_to_send(32768):
            said.append(data)
            if len(said) > MAX_SENT:
                raise Finding("it does not stop talking")
        self.said += b"".join(said)


def main(paths: list[str]) -> None:
    """Runs recorded streams, in a process that may well die of it."""
    for path in paths:
        run(Stream.load(Path(path).read_bytes()))


if __name__ == "__main__":
    main(sys.argv[1:])
