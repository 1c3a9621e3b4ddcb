"""The file of an outbox on disk: synchronous, and used by the store's thread alone.

Its rules:

* One process and one outbox at a time: the file is locked exclusively as long as it is open, which also spares sqlite
  the shared memory that a write-ahead log otherwise needs. The lock is the kernel's, and goes with the process.
* What is not ours is left as it is: a file with another application id, a newer schema, or for another address.
* Few statements do much. Around each step sqlite3 gives up the interpreter's lock, and while the event loop is busy it
  gets it back only after milliseconds (``sys.getswitchinterval()``): a statement for each message would wait so for
  each. So rows go in by the hundred and out by the range.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

from ...errors import OutboxError
from .options import Durability
from .store import Contents, Entry, PoisonedEntry

__all__ = ["Database", "outbox_error"]

APPLICATION_ID: Final = 0x414D514F  # "AMQO", in the file's header, where file(1) looks as well
SCHEMA_VERSION: Final = 1

# A sequence orders both tables, and is never used twice while anything is left.
SCHEMA: Final = (
    "CREATE TABLE outbox (address TEXT)",
    "CREATE TABLE message (sequence INTEGER PRIMARY KEY, stored_at REAL NOT NULL, attempts INTEGER NOT NULL, "
    "raw BLOB NOT NULL)",
    "CREATE TABLE poisoned (sequence INTEGER PRIMARY KEY, stored_at REAL NOT NULL, attempts INTEGER NOT NULL, "
    "raw BLOB NOT NULL, reason TEXT NOT NULL, poisoned_at REAL NOT NULL)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)

ROWS: Final = (128, 32, 8, 1)  # of one INSERT: few kinds, so that sqlite3 keeps them prepared
INSERTS: Final = {count: "INSERT INTO message VALUES " + ", ".join(["(?, ?, ?, ?)"] * count) for count in ROWS}


class Database:
    """The open file.

    Args:
        path: Where it is; made if it is not there.
        durability: How it is synchronized, see `OutboxOptions`.
        address: Where its messages go, or None for the anonymous terminus.
        max_pages: Its size at most, in pages of 4 KiB, for tests; None for no limit.

    Raises:
        OutboxError: It cannot be used, and why.
    """

    def __init__(self, path: Path, durability: Durability, address: str | None, max_pages: int | None = None) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        try:
            _create(path, durability)
            # Absolute, since sqlite has names of its own, such as ":memory:".
            connection = self._connection = sqlite3.connect(path.absolute(), timeout=0, isolation_level=None)
            self._configure(connection, durability, address, max_pages)
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise outbox_error(path, error) from error
        except BaseException:
            self.close()
            raise

    def _configure(
        self, connection: sqlite3.Connection, durability: Durability, address: str | None, max_pages: int | None
    ) -> None:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # before all else: from the first lock on
        connection.execute("BEGIN EXCLUSIVE")
        version = self._check(connection)
        if version == 0:
            for statement in SCHEMA:
                connection.execute(statement)
            connection.execute("INSERT INTO outbox VALUES (?)", (address,))
        else:
            self._check_address(connection, address)
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {durability.upper()}")
        if durability == "full":  # macOS: a plain fsync leaves the data in the drive's cache
            connection.execute("PRAGMA fullfsync = ON")
            connection.execute("PRAGMA checkpoint_fullfsync = ON")
        if max_pages is not None:
            connection.execute(f"PRAGMA max_page_count = {max_pages:d}")

    def _check(self, connection: sqlite3.Connection) -> int:
        """The version of the schema, 0 for a file that is new."""
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID:
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if application or version or tables:
                raise OutboxError(f"outbox {self.path} is a database of something else: choose another path")
            return 0
        if version != SCHEMA_VERSION:
            raise OutboxError(
                f"outbox {self.path} has version {version} of the schema, and this release knows {SCHEMA_VERSION}: "
                "send what is in it with the release that wrote it"
            )
        return int(version)

    def _check_address(self, connection: sqlite3.Connection, address: str | None) -> None:
        (before,) = connection.execute("SELECT address FROM outbox").fetchone()
        if before == address:
            return
        (used,) = connection.execute(
            "SELECT EXISTS (SELECT 1 FROM message) OR EXISTS (SELECT 1 FROM poisoned)"
        ).fetchone()
        if used:
            raise OutboxError(
                f"outbox {self.path} holds messages for {before!r}, not for {address!r}: open it for that address "
                "until they are sent, or choose another path"
            )
        connection.execute("UPDATE outbox SET address = ?", (address,))

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection, while it is open."""
        assert self._connection is not None
        return self._connection

    def close(self) -> None:
        """Close the file; the write-ahead log goes into it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # --- writing, within a transaction ----------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """One transaction: all of it or, if anything fails, nothing."""
        connection = self.connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # some errors have rolled it back already
                connection.execute("ROLLBACK")
            raise

    def add(self, entries: Sequence[Entry]) -> None:
        """Store messages."""
        connection = self.connection
        start = 0
        for count in ROWS:
            while len(entries) - start >= count:
                values: list[object] = []
                for entry in entries[start : start + count]:
                    values += (entry.sequence, entry.stored_at, entry.attempts, entry.raw)
                connection.execute(INSERTS[count], values)
                start += count

    def remove(self, sequences: Sequence[int]) -> None:
        """Delete messages."""
        connection = self.connection
        for first, last in _ranges(sorted(sequences)):
            connection.execute("DELETE FROM message WHERE sequence BETWEEN ? AND ?", (first, last))

    def attempted(self, attempts: dict[int, int]) -> None:
        """Note how often each of these was given back."""
        rows = [(count, sequence) for sequence, count in attempts.items()]
        self.connection.executemany("UPDATE message SET attempts = ? WHERE sequence = ?", rows)

    def poison(self, poisoned: Sequence[PoisonedEntry]) -> None:
        """Set messages aside."""
        for entry in poisoned:
            self.connection.execute(
                "INSERT INTO poisoned VALUES (?, ?, ?, ?, ?, ?)",
                (entry.sequence, entry.stored_at, entry.attempts, entry.raw, entry.reason, entry.poisoned_at),
            )
            self.connection.execute("DELETE FROM message WHERE sequence = ?", (entry.sequence,))

    def retry(self, sequences: Collection[int] | None, first: int) -> list[Entry]:
        """Move poison to the end; return the new entries."""
        chosen = self._chosen(sequences)
        entries = [Entry(first + index, entry.raw, entry.stored_at) for index, entry in enumerate(chosen)]
        self.add(entries)
        self.discard(sequences)
        return entries

    def discard(self, sequences: Collection[int] | None) -> tuple[int, int]:
        """Delete poison; return how many and their size."""
        connection = self.connection
        chosen = self._chosen(sequences)
        for entry in chosen:
            connection.execute("DELETE FROM poisoned WHERE sequence = ?", (entry.sequence,))
        return len(chosen), sum(len(entry.raw) for entry in chosen)

    def _chosen(self, sequences: Collection[int] | None) -> list[PoisonedEntry]:
        found = self.poisoned(0, -1)
        return found if sequences is None else [entry for entry in found if entry.sequence in sequences]

    # --- reading --------------------------------------------------------------------------

    def contents(self) -> Contents:
        """Count what is in the file."""
        query = "SELECT count(*), coalesce(sum(length(raw)), 0), coalesce(max(sequence), 0) FROM "
        messages, size, last = self.connection.execute(query + "message").fetchone()
        poisoned, poisoned_size, last_poisoned = self.connection.execute(query + "poisoned").fetchone()
        return Contents(max(last, last_poisoned), messages, size, poisoned, poisoned_size)

    def read(self, after: int, count: int, size: int) -> list[Entry]:
        """Read messages behind a sequence, up to a count and (but for the first) a size in bytes."""
        entries = []
        query = "SELECT sequence, stored_at, attempts, raw FROM message WHERE sequence > ? ORDER BY sequence LIMIT ?"
        with contextlib.closing(self.connection.execute(query, (after, count))) as rows:
            for sequence, stored_at, attempts, raw in rows:
                entries.append(Entry(sequence, raw, stored_at, attempts))
                size -= len(raw)
                if size <= 0:
                    break
        return entries

    def poisoned(self, after: int, count: int) -> list[PoisonedEntry]:
        """Read what was set aside, behind a sequence; a count below 0 is all."""
        query = (
            "SELECT sequence, raw, stored_at, attempts, reason, poisoned_at FROM poisoned WHERE sequence > ? "
            "ORDER BY sequence LIMIT ?"
        )
        return [PoisonedEntry(*row) for row in self.connection.execute(query, (after, count))]


def _create(path: Path, durability: Durability) -> None:
    """Make the file, for us alone to read: messages may be confidential. What sqlite makes beside it gets the same."""
    try:
        # Only if it is not there: closing any descriptor of a file gives up all of a process' locks on it.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    os.close(descriptor)
    if durability == "full":  # the name, too, must survive a power loss
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _ranges(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The runs of consecutive numbers in a sorted sequence, as first and last."""
    first = last = None
    for number in numbers:
        if last is not None and number == last + 1:
            last = number
            continue
        if first is not None and last is not None:
            yield first, last
        first = last = number
    if first is not None and last is not None:
        yield first, last


# --- what errors mean -----------------------------------------------------------------------

_HINTS: Final = {
    sqlite3.SQLITE_BUSY: "it is in use by another outbox or process, and only one can have it at a time",
    sqlite3.SQLITE_LOCKED: "it is in use by another outbox or process, and only one can have it at a time",
    sqlite3.SQLITE_FULL: "the disk is full, so nothing more is stored: free some space",
    sqlite3.SQLITE_READONLY: "it is read-only: give this user the right to write it, and to make files beside it",
    sqlite3.SQLITE_PERM: "it is read-only: give this user the right to write it, and to make files beside it",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: is it a file, and may this user write it and its folder?",
    sqlite3.SQLITE_NOTADB: "it is not an outbox: choose another path",
    sqlite3.SQLITE_CORRUPT: "it is damaged: move it away to start anew, and `sqlite3 FILE .recover` may save messages",
    sqlite3.SQLITE_IOERR: "reading or writing failed: look at the disk; what is in the file is sent at the next start",
    sqlite3.SQLITE_TOOBIG: "the message is larger than sqlite takes",
}

_OS_HINTS: Final = {
    errno.ENOENT: "its folder does not exist: make it first",
    errno.ENOTDIR: "its folder does not exist: make it first",
    errno.EACCES: "this user may not make files in its folder",
    errno.EPERM: "this user may not make files in its folder",
    errno.EROFS: "its file system is read-only",
    errno.ENOSPC: _HINTS[sqlite3.SQLITE_FULL],
}

_BREAKING: Final = frozenset(
    (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
)


def _code(error: BaseException) -> int:
    """The primary result code of an error of sqlite, or 0."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def outbox_error(path: Path, error: BaseException) -> OutboxError:
    """Say what an error of sqlite or of the system means for an outbox; the caller chains it."""
    hint = _OS_HINTS.get(error.errno or 0) if isinstance(error, OSError) else _HINTS.get(_code(error))
    made = OutboxError(f"outbox {path}: {hint} ({error})" if hint else f"outbox {path}: {error}")
    made.__cause__ = error
    return made


def is_breaking(error: BaseException) -> bool:
    """Whether the file cannot be relied on after this: what the disk holds is not known any more."""
    return _code(error) in _BREAKING or not isinstance(error, sqlite3.Error)
