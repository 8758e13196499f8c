"""One run at a time in a run folder, also where several machines see the folder and `flock` cannot be relied on.

Two things guard the folder. `run.lock` is held with flock: the kernel lets go of it however its holder ends.
`run.owner.json` says who holds it, and its time stamp is moved on every few seconds. On one machine flock decides.
An owner on another machine, or without flock, is believed for as long as its file's time stamp keeps moving;
no clock is asked what the time is, so clocks that jump or differ do no harm.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from splatpipe.errors import EnvironmentProblem, RunFolderError
from splatpipe.files import read_json, write_json
from splatpipe.layout import RunLayout
from splatpipe.storage.filesystem import is_network

BEAT_S = 4.0  # between two signs of life of an owner
WATCH_S = 15.0  # without one, after which an owner that cannot be asked is taken to be gone
WITHOUT_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class Owner:
    """The process that holds a run folder."""

    pid: int
    host: str
    started: float  # of the process, in the kernel's ticks since boot: tells it from a later one with the same number
    since: str

    @classmethod
    def me(cls) -> Owner:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(os.getpid(), machine(), start_of(os.getpid()), now)

    @property
    def here(self) -> bool:
        return self.host == machine()

    @property
    def alive(self) -> bool:
        """Whether it runs on this machine."""
        try:
            return start_of(self.pid) == self.started
        except (psutil.Error, OSError):
            return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host.partition('/')[0]} since {self.since}"


def start_of(pid: int) -> float:
    """When a process began: a number that no clock that is set changes, where the kernel tells one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return float(stat.rpartition(")")[2].split()[19])
    except (FileNotFoundError, IndexError):
        return float(psutil.Process(pid).create_time())


def _refused(layout: RunLayout, error: OSError) -> str:
    return (
        f"cannot write to the run folder {layout.root}: {error.strerror or error}; make it a folder that can be "
        "written, or choose another (run has --out)"
    )


def machine() -> str:
    """This machine's name, as far as it is one: containers of one image share it, so the name space is added."""
    try:
        space = f"/{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116  # a link that leads nowhere
    except OSError:
        space = ""
    return platform.node() + space


@contextlib.contextmanager
def run_lock(layout: RunLayout, say: Callable[[str], None] = lambda sentence: None) -> Iterator[None]:
    """Hold the run folder, which is made if it is not there.

    `say` is told when the owner before was found to be gone. Raises `RunFolderError` that names the owner when
    somebody holds the folder, `EnvironmentProblem` when it cannot be written.
    """
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        lock = _flock(layout)
    except OSError as error:
        raise EnvironmentProblem(_refused(layout, error)) from error
    try:
        _wait_for_owner(layout, lock is not None, say)
        _write_owner(layout)
        with _beating(layout.owner):
            yield
    finally:
        _drop_owner(layout.owner)
        if lock is not None:
            lock.release()


def in_use(layout: RunLayout) -> bool:
    """Whether a run seems to hold the folder now; an owner on another machine is believed."""
    owner = read_owner(layout.owner)
    return owner is not None and (not owner.here or owner.alive)


def _flock(layout: RunLayout) -> FileLock | None:
    """The lock file, held; None on a file system that has no locks."""
    lock = FileLock(layout.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise _in_use(layout, read_owner(layout.owner)) from None
    except NotImplementedError:
        return None
    except OSError as error:
        if error.errno not in WITHOUT_FLOCK:
            raise
        return None
    return lock


def _wait_for_owner(layout: RunLayout, have_flock: bool, say: Callable[[str], None]) -> None:
    """Return when the folder has no owner, or one that is gone; RunFolderError as soon as it shows a sign of life."""
    owner = read_owner(layout.owner)
    if owner is None:
        return
    if (have_flock and not is_network(layout.root)) or (owner.here and not owner.alive):
        say(f"{owner} had left {layout.root} without a word; taking it over")
        return
    if owner.here and not have_flock:
        raise _in_use(layout, owner)
    say(f"{layout.root} was in use by {owner}: waiting {WATCH_S:g} s for a sign of life")
    before, deadline = _stamp(layout.owner), time.monotonic() + WATCH_S
    while time.monotonic() < deadline:
        time.sleep(min(BEAT_S / 8, WATCH_S / 4))
        if _stamp(layout.owner) != before:
            if read_owner(layout.owner) is None:
                return
            raise _in_use(layout, read_owner(layout.owner))
    say(f"{owner} gives no sign of life; taking the folder over")


def _write_owner(layout: RunLayout) -> None:
    """Enter ourselves; where two do so at once without flock, the one whose name stands there afterwards wins."""
    me = Owner.me()
    try:
        write_json(layout.owner, asdict(me))
    except OSError as error:
        raise EnvironmentProblem(_refused(layout, error)) from error
    found = read_owner(layout.owner)
    if found is not None and (found.pid, found.host) != (me.pid, me.host):
        raise _in_use(layout, found)


@contextlib.contextmanager
def _beating(path: Path) -> Iterator[None]:
    """Move the file's time stamp on until the block ends. Needs no space, so a full disk does not end it."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, name="run-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _drop_owner(path: Path) -> None:
    """Remove our entry, and nobody else's."""
    found = read_owner(path)
    if found is not None and (found.pid, found.host) == (os.getpid(), machine()):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def read_owner(path: Path) -> Owner | None:
    """Who has entered itself; None when nobody has, or the entry cannot be read."""
    try:
        data = read_json(path)
        return Owner(int(data["pid"]), str(data["host"]), float(data["started"]), str(data["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _stamp(path: Path) -> int | None:
    """The file's time stamp as its server has it: opening a file makes an NFS client ask for it."""
    try:
        with path.open("rb") as handle:
            return os.fstat(handle.fileno()).st_mtime_ns
    except OSError:
        return None


def _in_use(layout: RunLayout, owner: Owner | None) -> RunFolderError:
    return RunFolderError(
        f"{layout.root} is in use by another run ({owner or 'owner unknown'}); wait for it, stop it, "
        "or choose another folder with --out"
    )
