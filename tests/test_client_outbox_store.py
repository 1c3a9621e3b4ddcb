"""The outbox on disk: what was reported stored is there, what was not is reported, and nobody else gets at it."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import amqpws_async as amqp
from amqpws_async.client.outbox import Outbox, database, disk
from amqpws_async.client.outbox.database import Database
from amqpws_async.client.outbox.disk import DiskStore
from amqpws_async.client.outbox.ledger import Ledger
from amqpws_async.client.outbox.store import Contents, Entry, PoisonedEntry
from amqpws_async.errors import OutboxError

from .chaos import outbox_kill
from .outbox_desk import HOLD, Desk, no_thread_is_left, opened, stored, until
from .test_cancellation import interrupted
from .test_promises import soon, turns

assert no_thread_is_left

MESSAGE = amqp.Message(b"one")


class Told:
    """A listener that notes what it is told."""

    def __init__(self) -> None:
        self.stored: list[int] = []
        self.returned: list[int] = []
        self.discarded: list[tuple[int, int]] = []
        self.not_stored: list[tuple[int, Exception]] = []
        self.broken: list[Exception] = []

    def on_stored(self, entries: Sequence[Entry]) -> None:
        self.stored += [entry.sequence for entry in entries]

    def on_not_stored(self, entries: Sequence[Entry], error: Exception) -> None:
        self.not_stored += [(entry.sequence, error) for entry in entries]

    def on_returned(self, entries: Sequence[Entry]) -> None:
        self.returned += [entry.sequence for entry in entries]

    def on_discarded(self, count: int, size: int) -> None:
        self.discarded.append((count, size))

    def on_broken(self, error: Exception) -> None:
        self.broken.append(error)


class SmallOutbox(Outbox):
    """An outbox on a disk of a few pages."""

    def _make_store(self, ledger: Ledger) -> DiskStore:
        assert self.path is not None
        return DiskStore(ledger, self.path, "normal", self.address, max_pages=30)


def entry(sequence: int, size: int = 100) -> Entry:
    return Entry(sequence, amqp.Message(bytes(size)).encode(), time.time())


def full(*_: object) -> None:
    """Stands for an operation for which the disk has no room."""
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error


def broken(*_: object) -> None:
    """Stands for an operation at which the disk fails."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
    raise error


# --- killed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["normal", "full"])
async def test_a_killed_process_loses_what_was_acknowledged(durability: str) -> None:
    """SIGKILL at random moments: all that was acknowledged arrives, under one message-id, in order."""
    tally = await outbox_kill.main(3, seed=6, durability=durability)
    assert not tally.failed, f"{tally}: {sorted(tally.lost)[:5]}, {tally.renamed[:5]}, {tally.disordered[:5]}"
    assert len(tally.acknowledged) > 100


def test_the_kill_counts_wrongly() -> None:
    """The check sees what is lost, renamed, or out of order."""
    tally = outbox_kill.Tally(acknowledged={"a.1", "a.2", "a.3", "a.4"})
    tally.count(
        amqp.Message(b"", subject=name, message_id=message_id)
        for name, message_id in (("a.1", "1"), ("a.3", "3"), ("a.2", "2"), ("a.2", "other"), ("a.1", "1"), ("b.1", "3"))
    )
    assert tally.lost == {"a.4"}
    assert sorted(tally.renamed) == ["a.2", "a.3", "b.1"]
    assert tally.disordered == ["a.2"]
    assert tally.failed
    assert outbox_kill.Tally().failed


# --- nobody else ---------------------------------------------------------------------------------


async def test_two_outboxes_have_one_file(tmp_path: Path) -> None:
    """The second is told so, in the same process and in another; the first goes on, and then the file is free."""
    path = tmp_path / "o"
    desk = Desk()
    async with opened(desk, path) as outbox:
        for _ in range(2):  # also a failed attempt leaves the lock where it is
            second = Outbox(Desk(), path)
            with pytest.raises(OutboxError, match="in use by another outbox or process"):
                await second.open()
            assert second.state is amqp.EndpointState.CLOSED
        other = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", f"import sqlite3; sqlite3.connect({str(path)!r}).execute('BEGIN')"]
        )
        assert other.returncode == 0  # BEGIN alone looks at nothing
        program = f"import sqlite3; sqlite3.connect({str(path)!r}, timeout=0).execute('SELECT * FROM message')"
        other = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program], capture_output=True)
        assert b"database is locked" in other.stderr
        await outbox.send(MESSAGE, wait="settled")
    assert await stored(path) == []


async def test_others_read_the_messages(tmp_path: Path) -> None:
    """The file and what sqlite puts beside it are for their owner alone, whatever the umask."""
    path = tmp_path / "o"
    before = os.umask(0)
    try:
        async with opened(Desk(lambda _: HOLD), path) as outbox:
            await outbox.send(MESSAGE)
            files = sorted(tmp_path.iterdir())
            assert [file.name for file in files] == ["o", "o-wal"]
            assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600, 0o600]
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("CREATE TABLE theirs (x)", "a database of something else: choose another path"),
        ("PRAGMA application_id = 7", "a database of something else: choose another path"),
        (f"PRAGMA application_id = {database.APPLICATION_ID}; PRAGMA user_version = 99", "version 99 of the schema"),
        (b"no database at all, but long enough to be looked at, as sqlite wants a hundred bytes " * 2, "not an outbox"),
    ],
    ids=["tables", "application", "newer", "garbage"],
)
async def test_a_file_of_something_else_is_written(tmp_path: Path, content: str | bytes, says: str) -> None:
    """It is left as it is, and the error says what to do; the sender is closed."""
    path = tmp_path / "o"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        theirs = sqlite3.connect(path)
        theirs.executescript(content)
        theirs.close()
    before = path.read_bytes()
    desk = Desk()
    with pytest.raises(OutboxError, match=says):
        await Outbox(desk, path).open()
    assert path.read_bytes() == before
    assert desk.closed == ["close"]


async def test_messages_go_to_another_address(tmp_path: Path) -> None:
    """A file with messages is for the address it was made for; an empty one is for any."""
    path = tmp_path / "o"
    async with opened(Desk(lambda _: HOLD), path) as outbox:
        await outbox.send(MESSAGE)
    other = Desk()
    other.address = "invoices"
    with pytest.raises(OutboxError, match=r"holds messages for 'orders', not for 'invoices'"):
        await Outbox(other, path).open()
    assert await stored(path) == [b"one"]
    assert await stored(path, "invoices") == []


@pytest.mark.parametrize(
    ("where", "says"), [("missing/o", "its folder does not exist"), (".", "is it a file")], ids=["folder", "directory"]
)
async def test_a_path_that_cannot_be_is_puzzling(tmp_path: Path, where: str, says: str) -> None:
    """The error says what is wrong with the path."""
    with pytest.raises(OutboxError, match=says):
        await Outbox(Desk(), tmp_path / where).open()


def test_errors_are_puzzling() -> None:
    """Each error of sqlite and of the system says what to do, and has its cause."""
    for code, hint in database._HINTS.items():
        error = sqlite3.OperationalError("so it is")
        error.sqlite_errorcode = code | 0x300  # an extended code
        made = database.outbox_error(Path("o"), error)
        assert str(made) == f"outbox o: {hint} (so it is)"
        assert made.__cause__ is error
    made = database.outbox_error(Path("o"), OSError(errno.EROFS, "read-only"))
    assert "file system is read-only" in str(made)
    assert str(database.outbox_error(Path("o"), OSError("odd"))) == "outbox o: odd"


# --- the disk fails ------------------------------------------------------------------------------


async def test_a_full_disk_loses_messages_in_silence(tmp_path: Path) -> None:
    """Who could not store is told; what was stored is there; and when there is room again it goes on."""
    desk = Desk()
    desk.starve()
    outbox = SmallOutbox(desk, tmp_path / "o", close_timeout=0.2)
    acknowledged: list[int] = []
    async with outbox:
        with pytest.raises(OutboxError, match="the disk is full, so nothing more is stored") as caught:
            for number in range(100):
                await outbox.send(amqp.Message(bytes(3000), subject=str(number)))
                acknowledged.append(number)
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert 5 < len(acknowledged) < 30
        with pytest.raises(OutboxError, match="disk is full"):
            await outbox.send(amqp.Message(bytes(9000)), wait="settled")
        both = await asyncio.gather(*(outbox.send(amqp.Message(bytes(9000))) for _ in range(2)), return_exceptions=True)
        assert both[0] is not both[1], "each has an error of its own"
        assert outbox.statistics.stored == len(acknowledged)
        desk.feed()
        await soon(outbox.flush())
        await outbox.send(amqp.Message(bytes(3000), subject="after"), wait="settled")
    assert [fate.message.subject for fate in desk.fates] == [*map(str, acknowledged), "after"]
    assert await stored(tmp_path / "o") == []


async def test_what_was_sent_is_sent_again_because_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Removals that fail are tried again, also beside messages that are stored, and are in time for the close."""
    monkeypatch.setattr(disk, "REPEAT", 0.01)
    async with opened(Desk(), tmp_path / "o") as outbox:
        with monkeypatch.context() as failing:
            failing.setattr(Database, "remove", full)
            await outbox.send(MESSAGE, wait="settled")
            await until(lambda: "it cannot be written which messages were sent" in caplog.text)
            with pytest.raises(OutboxError, match="disk is full"):
                await outbox.send(MESSAGE)
            await asyncio.sleep(0.05)
        assert caplog.text.count("cannot be written") == 1
    assert await stored(tmp_path / "o") == []


async def test_a_close_hides_that_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written at the end is an error of the close, which closes all the same; nothing is lost."""
    desk = Desk()
    outbox = await Outbox(desk, tmp_path / "o").open()
    with monkeypatch.context() as failing:
        failing.setattr(Database, "remove", full)
        await outbox.send(MESSAGE, wait="settled")
        with pytest.raises(OutboxError, match="disk is full"):
            await outbox.close()
    assert outbox.state is amqp.EndpointState.CLOSED
    assert desk.closed == ["close"]
    assert await stored(tmp_path / "o") == [b"one"]


async def test_a_full_disk_holds_up_the_room_that_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sent is removed even where the message that rode along cannot be stored."""
    told = Told()
    store = DiskStore(told, tmp_path / "o", "normal", "orders")
    await store.open()
    store.add(entry(1))
    await until(lambda: told.stored)
    monkeypatch.setattr(Database, "add", full)
    store.remove(1)
    store.add(entry(2))
    await until(lambda: told.not_stored)
    assert await store.read(0, 10, 1000) == []
    await store.close()


async def test_a_broken_disk_is_written_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an I/O error nobody knows what is on the disk: the outbox ends, and everybody is told why."""
    desk = Desk()
    desk.starve()
    outbox = await Outbox(desk, tmp_path / "o").open()
    settled = asyncio.create_task(outbox.send(MESSAGE, wait="settled"))
    await until(lambda: desk.waiting)
    monkeypatch.setattr(Database, "add", broken)
    with pytest.raises(OutboxError, match="look at the disk"):
        await outbox.send(MESSAGE)
    with pytest.raises(OutboxError, match="look at the disk") as caught:
        await soon(settled)
    assert "is sent when that is opened again" in caught.value.__notes__[0]
    with pytest.raises(OutboxError, match="look at the disk"):
        await outbox.send(MESSAGE)
    with pytest.raises(OutboxError, match="look at the disk"):
        await outbox.flush()
    assert isinstance(outbox.error, OutboxError)
    monkeypatch.undo()
    assert await outbox.close() == 1
    assert await stored(tmp_path / "o") == [b"one"]


async def test_a_file_that_cannot_be_read_hides_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for what was set aside gets the error of the file."""
    async with opened(Desk(), tmp_path / "o") as outbox:
        monkeypatch.setattr(Database, "poisoned", full)
        with pytest.raises(OutboxError, match="disk is full"):
            await outbox.poisoned()
        with pytest.raises(OutboxError, match="disk is full"):
            await outbox.discard_poisoned()
        monkeypatch.undo()
        assert await outbox.poisoned() == []


# --- one thread ----------------------------------------------------------------------------------


async def test_each_message_is_a_transaction(tmp_path: Path) -> None:
    """What was asked in one turn is one transaction, and what is asked while it runs is the next one."""
    async with opened(Desk(lambda _: HOLD), tmp_path / "o", durability="full") as outbox:
        await asyncio.gather(*(outbox.send(MESSAGE) for _ in range(700)))
        assert outbox.statistics.commits == 1
        await outbox.send(MESSAGE)
        assert outbox.statistics.commits == 2
        assert outbox.statistics.stored == 701


async def test_removals_have_transactions_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sent is removed together with the next message that is stored."""
    monkeypatch.setattr(disk, "LAG", 3600.0)
    async with opened(Desk(), tmp_path / "o") as outbox:
        for count in range(1, 20):
            await outbox.send(MESSAGE, wait="settled")
            assert outbox.statistics.commits == count
    assert await stored(tmp_path / "o") == []


@pytest.mark.parametrize("woken", [False, True], ids=["waiting", "woken"])
async def test_cancelled_at_every_await_a_store_stays_open(tmp_path: Path, woken: bool) -> None:
    """Cancelled at each await of opening, asking and closing, the thread ends, and the listener knows all."""
    raw = amqp.Message(b"x").encode()
    for point in range(100):
        told = Told()
        store = DiskStore(told, tmp_path / "o", "normal", "orders")

        async def operation(store: DiskStore = store, point: int = point) -> None:
            contents = await store.open()
            store.poison(PoisonedEntry(contents.last + 1, raw, 1.0, 2, "why", 3.0))
            await store.poisoned(0, 10)
            await store.retry({contents.last + 1}, contents.last + 2)
            await store.discard(None)
            await store.read(0, 10, 1000)
            await store.close()

        task = asyncio.current_task()
        assert task is not None
        running = asyncio.create_task(_cancelled(operation(), point, woken))
        await asyncio.wait([running])
        await store.close()
        assert not told.not_stored
        assert not told.broken
        if not running.cancelled():
            running.result()
            assert point > 4
            assert len(told.returned) == 1
            assert told.discarded == [(0, 0)]
            return
    raise AssertionError


async def _cancelled(coroutine: Any, point: int, woken: bool) -> None:
    task = asyncio.current_task()
    assert task is not None
    await interrupted(coroutine, point, task.cancel, woken)


async def test_a_dropped_store_keeps_its_thread(tmp_path: Path) -> None:
    """A store that nobody closes ends its thread when it is collected."""
    store = DiskStore(Told(), tmp_path / "o", "normal", "orders")
    await store.open()
    thread = store._thread
    assert thread is not None
    del store
    gc.collect()
    await until(lambda: not thread.is_alive())


def test_a_closed_loop_keeps_the_thread(tmp_path: Path) -> None:
    """The thread ends when it has nobody left to tell."""
    told = Told()

    async def leave() -> DiskStore:
        store = DiskStore(told, tmp_path / "o", "normal", "orders")
        await store.open()
        store.add(entry(1))
        await turns(2)
        return store

    store = asyncio.run(leave())
    assert store._thread is not None
    store._jobs.put((lambda _: None, lambda: None))
    store._thread.join(5)
    assert not store._thread.is_alive()


# --- what is in the file -------------------------------------------------------------------------


def test_rows_are_lost_between_statements(tmp_path: Path) -> None:
    """Whatever their number, messages are stored, read in portions, and removed by ranges."""
    file = Database(tmp_path / "o", "full", "orders")
    for count in (1, 7, 8, 31, 33, 127, 128, 129, 300):
        entries = [entry(sequence) for sequence in range(1, count + 1)]
        with file.transaction():
            file.add(entries)
        assert [one.sequence for one in file.read(0, 1000, 2**20)] == list(range(1, count + 1))
        assert [one.sequence for one in file.read(0, 3, 2**20)] == list(range(1, min(count, 3) + 1))
        assert [one.sequence for one in file.read(count - 1, 1000, 1)] == [count], "at least one"
        odd = [sequence for sequence in range(1, count + 1) if sequence % 3]
        with file.transaction():
            file.remove(odd)
        assert [one.sequence for one in file.read(0, 1000, 2**20)] == [n for n in range(1, count + 1) if n % 3 == 0]
        assert file.contents().messages == count // 3
        with file.transaction():
            file.remove(range(1, count + 1))
    assert file.contents() == Contents()
    file.close()


def test_a_failed_transaction_leaves_half(tmp_path: Path) -> None:
    """All of it or nothing, and the next one works."""
    file = Database(tmp_path / "o", "normal", None)
    with pytest.raises(sqlite3.IntegrityError), file.transaction():
        file.add([entry(1)])
        file.add([entry(1)])
    assert file.contents() == Contents()
    with file.transaction():
        file.add([entry(1)])
    file.close()
    again = Database(tmp_path / "o", "normal", None)
    assert again.contents().messages == 1
    again.close()


def test_the_name_of_a_file_is_taken_for_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is a path, also where sqlite would take it for a name of its own."""
    monkeypatch.chdir(tmp_path)
    for name in (":memory:", "file:o?mode=memory"):
        Database(Path(name), "full", None).close()
        assert (tmp_path / name).exists()
