"""An SQLite file that several threads write and several processes read, with errors as sentences."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from splatpipe.errors import EnvironmentProblem, LedgerDamaged, RunFolderError, SplatpipeError
from splatpipe.storage.filesystem import is_network

APPLICATION = 0x53504C54  # "SPLT": marks the file as ours
BUSY_S = 30.0

Read = Callable[..., list[sqlite3.Row]]


class Database:
    """One connection behind one lock; WAL where the file system can, every write on disk when it returns.

    RunFolderError for a file that is damaged, foreign or newer than `schema`; EnvironmentProblem where the
    disk is full or read-only.
    """

    def __init__(self, path: Path, tables: str, schema: int, read_only: bool = False) -> None:
        """Open `path`; `tables` are the statements that make a new file."""
        self.path = path
        self._schema = schema
        self._lock = threading.RLock()
        with self._told():
            self._db = _connect(path, read_only)
            try:
                self._open(tables, read_only)
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def read(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        """The rows of one query."""
        with self._told(), self._lock:
            return self._db.execute(sql, values).fetchall()

    def quick_check(self) -> str:
        """SQLite's own verdict on the file's pages: "ok", or what is wrong first."""
        return str(self.read("PRAGMA quick_check(1)")[0][0])

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is on disk when the block ends, and never happened when it raises.

        Inside another one of the same thread it is a part of that.
        """
        with self._told(), self._lock:
            if self._db.in_transaction:
                yield self._db
                return
            with self._transaction("BEGIN IMMEDIATE"):
                yield self._db

    @contextlib.contextmanager
    def moment(self) -> Iterator[Read]:
        """Several queries that see the same moment."""
        with self._told(), self._lock, self._transaction("BEGIN"):
            yield self.read

    @contextlib.contextmanager
    def decoding(self) -> Iterator[None]:
        """Around the reading of rows: one that is not as we wrote it means that the file is damaged."""
        try:
            yield
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, OverflowError) as error:
            raise damaged(self.path, f"{type(error).__name__}: {error}") from error

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        self._db.execute(begin)
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    def _open(self, tables: str, read_only: bool) -> None:
        """Check that the file is ours and that we understand it; make its tables if it is new."""
        empty = not self._tables()
        if not empty and self._pragma("application_id") != APPLICATION:
            raise RunFolderError(f"{self.path}: not a ledger of splatpipe; choose another run folder with --out.")
        if self._pragma("user_version") > self._schema:
            raise RunFolderError(f"{self.path}: written by a newer splatpipe; update splatpipe to use this run.")
        if not empty and self._pragma("user_version") < self._schema:
            raise RunFolderError(f"{self.path}: written by an older splatpipe; choose another run folder with --out.")
        if read_only:
            if empty:
                raise RunFolderError(f"{self.path}: this ledger is empty; nothing has run here yet.")
            return
        # WAL needs memory that all readers share, which machines on a network file system do not.
        journal = "DELETE" if is_network(self.path) else "WAL"
        with contextlib.suppress(sqlite3.OperationalError):  # where that cannot be, the rollback journal stays
            self._db.execute(f"PRAGMA journal_mode = {journal}")
        self._db.execute("PRAGMA synchronous = FULL")
        if empty:
            self._create(tables)

    def _create(self, tables: str) -> None:
        """Make the tables in one transaction, unless another process just did."""
        with self._transaction("BEGIN IMMEDIATE"):
            if self._tables():
                return
            for statement in filter(str.strip, tables.split(";")):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id = {APPLICATION}")
            self._db.execute(f"PRAGMA user_version = {self._schema}")

    def _tables(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what SQLite raises into a sentence."""
        try:
            yield
        except sqlite3.Error as error:
            raise _sentence(self.path, error) from error
        except UnicodeDecodeError as error:  # SQLite's own message quotes a damaged name
            raise damaged(self.path, error) from error


def _connect(path: Path, read_only: bool) -> sqlite3.Connection:
    """A connection in autocommit mode with rows by name; transactions are begun by hand."""
    if read_only and not path.exists():
        raise RunFolderError(f"{path}: there is no ledger here; is {path.parent} the folder of a run?")
    try:
        if not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentProblem(f"{path.parent}: cannot be made ({error.strerror}).") from error
    uri = path.absolute().as_uri() + (_reading(path) if read_only else "")
    db = sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    db.row_factory = sqlite3.Row
    return db


def _reading(path: Path) -> str:
    """How to open for reading: where nobody can write, SQLite must be told so, or it wants to make its WAL files."""
    frozen = not os.access(path.parent, os.W_OK) and not path.with_name(path.name + "-wal").exists()
    return "?mode=ro&immutable=1" if frozen else "?mode=ro"


def damaged(path: Path, what: object) -> LedgerDamaged:
    """The sentence for a file with damaged contents."""
    return LedgerDamaged(
        f"{path}: the ledger is damaged ({what}); splatpipe run on this folder makes it anew from its attempts."
    )


def _sentence(path: Path, error: sqlite3.Error) -> SplatpipeError:
    text = str(error)
    if any(word in text for word in ("full", "readonly", "unable to open", "disk I/O", "permission")):
        return EnvironmentProblem(f"{path}: cannot be written or read ({text}); check free space and permissions.")
    if "locked" in text or "busy" in text:
        return RunFolderError(f"{path}: another process has held the ledger for {BUSY_S:.0f} s; end it and try again.")
    if any(word in text for word in ("not a database", "malformed", "Could not decode", "file format", "no such")):
        return damaged(path, text)
    return RunFolderError(f"{path}: the ledger cannot be used ({text}).")
