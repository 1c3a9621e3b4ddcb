"""The store on disk: everything that touches the file runs on one thread that the store owns.

Group commit, in the loop's own time::

    add, remove, ... -> `_batch` -> [one turn; while a transaction runs, for as long as that] -> the thread: one
    transaction -> `_on_done`: the listener, the waiting calls -> the next batch

* At most one batch is under way. What is asked meanwhile is the next one, so the busier it is the larger they are.
* What only says how messages ended waits `LAG` for something to ride along with: it is not worth a flush of its own.
* A transaction that fails is undone as a whole. The settlements in it are tried again alone, as they make room, and
  kept for later if that fails; entries and requests fail with the reason.
* Nothing that is under way is undone by cancelling who waits for it: its result goes to the listener all the same.
* The thread knows its queue and its loop, not the store; so a store that is dropped ends it, and it is a daemon,
  since an interpreter that ends must not wait for it: what was committed is safe.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import weakref
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from ...endpoint import Waiters
from ...errors import OutboxError
from .database import Database, is_breaking, outbox_error
from .options import Durability
from .store import Contents, Entry, Listener, PoisonedEntry

__all__ = ["DiskStore"]

logger = logging.getLogger(__name__)

LAG: Final = 0.05  # seconds: what a crash may send again, and what a message that comes soon pays for
REPEAT: Final = 1.0  # seconds before settlements that could not be written are tried again

T = TypeVar("T")


class _Request(Generic[T]):
    """Something asked of the file, with an answer."""

    __slots__ = ("answer", "ask", "error", "on_answer", "waiter", "writes")

    answer: T

    def __init__(self, ask: Callable[[Database], T], on_answer: Callable[[T], None] | None, writes: bool) -> None:
        self.ask = ask
        self.on_answer = on_answer
        self.writes = writes
        self.error: Exception | None = None
        self.waiter: asyncio.Future[None] | None = None


class _Batch:
    """What is done in one transaction; reads come behind it."""

    def __init__(self) -> None:
        self.added: list[Entry] = []
        self.removed: list[int] = []
        self.attempts: dict[int, int] = {}
        self.poisoned: list[PoisonedEntry] = []
        self.requests: list[_Request[Any]] = []
        self.error: Exception | None = None  # of what was asked
        self.settling_error: Exception | None = None
        self.committed = False

    @property
    def settles(self) -> bool:
        return bool(self.removed or self.attempts or self.poisoned)

    @property
    def asks(self) -> bool:
        return bool(self.added or self.requests)

    def run(self, database: Database) -> None:
        """On the thread: do it all; no error gets out of here."""
        writes = [request for request in self.requests if request.writes]
        if self.settles or self.added or writes:
            try:
                with database.transaction():
                    self._settle(database)
                    database.add(self.added)
                    for request in writes:
                        request.answer = request.ask(database)
                self.committed = True
            except Exception as error:
                self.error = error
                self._settle_alone(database)
        for request in self.requests:
            if request.writes:
                request.error = self.error
            else:
                try:
                    request.answer = request.ask(database)
                except Exception as error:
                    request.error = error

    def _settle(self, database: Database) -> None:
        if self.attempts:
            database.attempted(self.attempts)
        if self.poisoned:
            database.poison(self.poisoned)
        if self.removed:
            database.remove(self.removed)

    def _settle_alone(self, database: Database) -> None:
        if not self.asks:
            self.settling_error = self.error
        elif self.settles:
            try:
                with database.transaction():
                    self._settle(database)
            except Exception as error:
                self.settling_error = error

    def take_settlements(self, other: _Batch) -> None:
        """Take over what another batch, the one before, could not write."""
        self.removed = other.removed + self.removed
        self.attempts = other.attempts | self.attempts
        self.poisoned = other.poisoned + self.poisoned


class DiskStore:
    """Keeps messages in a file."""

    volatile = False

    def __init__(
        self,
        listener: Listener,
        path: Path,
        durability: Durability,
        address: str | None,
        *,
        max_pages: int | None = None,
    ) -> None:
        self._listener = listener
        self._path = path
        self._arguments = (path, durability, address, max_pages)
        self._loop = asyncio.get_running_loop()
        self._changed = Waiters(self._loop)
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._batch = _Batch()
        self._running = False
        self._due: asyncio.Handle | None = None  # the call that hands the batch over
        self._soon = False  # whether that is in this turn
        self._stopping = False
        self._ended = False  # the thread has closed the file
        self._contents: Contents | None = None
        self._error: OutboxError | None = None  # of opening, or of settlements that are not written
        self.commits = 0

    # --- opening and closing ----------------------------------------------------------------

    async def open(self) -> Contents:
        """Start the thread and open the file.

        Raises:
            OutboxError: It cannot be used, and why.
        """
        self._running = True
        name = f"outbox {self._path.name}"
        work = (weakref.ref(self), self._arguments, self._jobs, self._loop)
        thread = threading.Thread(target=_serve, args=work, name=name, daemon=True)
        thread.start()
        self._thread = thread
        while self._contents is None and self._error is None:
            await self._changed.wait()
        if self._contents is None:
            await self._wait_ended()
            assert self._error is not None
            raise self._error
        return self._contents

    def _on_opened(self, contents: Contents | None, error: Exception | None) -> None:
        self._running = False
        self._contents = contents
        if error is not None:
            self._error = error if isinstance(error, OutboxError) else outbox_error(self._path, error)
        if self._stopping:
            self._hand_over()
        self._changed.wake_all()

    def stop(self) -> None:
        """Write what was asked, then end; idempotent."""
        if not self._stopping and self._thread is not None:
            self._stopping = True
            if not self._running:
                self._hand_over()

    async def close(self) -> None:
        """The same, and wait for it. Cancelling ends the wait alone.

        Raises:
            OutboxError: What became of some messages could not be written, so that they will be sent again.
        """
        self.stop()
        await self._wait_ended()
        if self._error is not None:
            raise self._error

    async def _wait_ended(self) -> None:
        thread = self._thread
        if thread is not None:
            while not self._ended:
                await self._changed.wait()
            while thread.is_alive():  # noqa: ASYNC110 - its last call was to us, so it is a matter of microseconds
                await asyncio.sleep(0)

    def _on_ended(self) -> None:
        self._ended = True
        self._changed.wake_all()

    def __del__(self) -> None:
        if self._thread is not None and not self._stopping:
            self._jobs.put(None)

    # --- asking -------------------------------------------------------------------------------

    def add(self, entry: Entry) -> None:
        """Store an entry."""
        self._batch.added.append(entry)
        self._ask()

    def remove(self, sequence: int) -> None:
        """Forget an entry."""
        self._batch.removed.append(sequence)
        self._ask_later(LAG)

    def attempted(self, entry: Entry) -> None:
        """Note how often an entry was given back."""
        self._batch.attempts[entry.sequence] = entry.attempts
        self._ask_later(LAG)

    def poison(self, poisoned: PoisonedEntry) -> None:
        """Set an entry aside."""
        self._batch.poisoned.append(poisoned)
        self._ask_later(LAG)

    async def read(self, after: int, count: int, size: int) -> list[Entry]:
        """Read entries."""
        return await self._request(lambda database: database.read(after, count, size))

    async def poisoned(self, after: int, count: int) -> list[PoisonedEntry]:
        """Read what was set aside, also what is being set aside now."""
        return await self._request(lambda database: database.poisoned(after, count))

    async def retry(self, sequences: Collection[int] | None, first: int) -> int:
        """Move poison to the end."""
        entries = await self._request(
            lambda database: database.retry(sequences, first), self._listener.on_returned, True
        )
        return len(entries)

    async def discard(self, sequences: Collection[int] | None) -> int:
        """Delete poison."""
        count, _ = await self._request(
            lambda database: database.discard(sequences), lambda answer: self._listener.on_discarded(*answer), True
        )
        return count

    async def _request(
        self, ask: Callable[[Database], T], on_answer: Callable[[T], None] | None = None, writes: bool = False
    ) -> T:
        if self._stopping:
            raise OutboxError(f"outbox {self._path} is closed")
        request = _Request(ask, on_answer, writes)
        request.waiter = waiter = self._loop.create_future()
        self._batch.requests.append(request)
        self._ask()
        await waiter
        if request.error is not None:
            raise outbox_error(self._path, request.error)
        return request.answer

    # --- batches --------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Hand the batch over at the end of this turn, or when the one before it is done."""
        if not self._running and not self._soon:
            if self._due is not None:
                self._due.cancel()
            self._soon = True
            self._due = self._loop.call_soon(self._hand_over)

    def _ask_later(self, seconds: float) -> None:
        if not self._running and self._due is None:
            self._due = self._loop.call_later(seconds, self._hand_over)

    def _hand_over(self) -> None:
        """Give the batch to the thread; if there is none and we stop, tell it to end."""
        if self._due is not None:
            self._due.cancel()
        self._due = None
        self._soon = False
        batch = self._batch
        if batch.asks or batch.settles:
            self._batch = _Batch()
            self._running = True
            self._jobs.put((batch.run, lambda: self._on_done(batch)))
        elif self._stopping:
            self._jobs.put(None)

    def _on_done(self, batch: _Batch) -> None:
        self._running = False
        self._report(batch)
        if self._batch.asks or (self._stopping and batch.settling_error is None):
            self._hand_over()
        elif self._stopping:
            self._jobs.put(None)
        elif batch.settling_error is not None:
            self._ask_later(REPEAT)
        elif self._batch.settles:
            self._ask_later(LAG)

    def _report(self, batch: _Batch) -> None:
        """Tell everybody what became of a batch."""
        if batch.settling_error is not None:
            self._on_settling_failed(batch, batch.settling_error)
        elif batch.settles:
            self._error = None
        self.commits += batch.committed
        if batch.added:
            if batch.error is None:
                self._listener.on_stored(batch.added)
            else:
                self._listener.on_not_stored(batch.added, outbox_error(self._path, batch.error))
        broken = batch.error
        for request in batch.requests:
            broken = broken or request.error
            if request.error is None and request.on_answer is not None:
                request.on_answer(request.answer)
            if request.waiter is not None and not request.waiter.done():
                request.waiter.set_result(None)
        if broken is not None and is_breaking(broken):
            self._listener.on_broken(outbox_error(self._path, broken))

    def _on_settling_failed(self, batch: _Batch, error: Exception) -> None:
        self._batch.take_settlements(batch)
        if self._error is None:
            logger.warning(
                "! outbox %s: it cannot be written which messages were sent, and they would be sent again after "
                "a restart; trying again every %g s: %s",
                self._path,
                REPEAT,
                error,
            )
        self._error = outbox_error(self._path, error)


def _serve(
    store: weakref.ref[DiskStore],
    arguments: tuple[Path, Durability, str | None, int | None],
    jobs: queue.SimpleQueue[Any],
    loop: asyncio.AbstractEventLoop,
) -> None:
    """The thread: opens the file, does one job after the other, closes it."""

    def call(function: Callable[..., None], *values: object) -> bool:
        try:
            loop.call_soon_threadsafe(function, *values)
        except RuntimeError:  # the loop is closed: there is nobody to work for
            return False
        return True

    database = None
    try:
        try:
            database = Database(*arguments)
            contents = database.contents()
        except Exception as error:
            call(_opened, store, None, error)
            return
        going = call(_opened, store, contents, None)
        while going and (job := jobs.get()) is not None:
            work, done = job
            work(database)
            going = call(done)
            del job, work, done  # they know the store, see the rules above
    finally:
        if database is not None:
            database.close()
        call(_ended, store)


def _opened(store: weakref.ref[DiskStore], contents: Contents | None, error: Exception | None) -> None:
    if (there := store()) is not None:
        there._on_opened(contents, error)


def _ended(store: weakref.ref[DiskStore]) -> None:
    if (there := store()) is not None:
        there._on_ended()
