"""A few persistent threads that share the chunks of one parallel loop at a time.

Kernels release the GIL, so plain Python threads suffice. Work is cut into chunks whose number does not
depend on the number of threads, and every chunk writes only its own part of the output: whoever takes
a chunk, the result is the same to the last bit.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections.abc import Callable

Task = Callable[[int], None]


def usable_cores() -> int:
    """Cores this process may run on: the affinity mask where there is one, else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Loop:
    """One parallel loop: chunks are handed out in order, the first exception is kept."""

    def __init__(self, task: Task, chunks: int) -> None:
        self.task, self.chunks = task, chunks
        self.next_chunk = itertools.count()
        self.failure: BaseException | None = None

    def work(self) -> None:
        try:
            while (chunk := next(self.next_chunk)) < self.chunks and self.failure is None:
                self.task(chunk)
        except BaseException as failure:  # handed to the thread that asked for the loop
            self.failure = failure


class Pool:
    """`threads - 1` waiting threads; the caller of `run` is the last one."""

    def __init__(self, threads: int) -> None:
        self.threads, self.process = threads, os.getpid()
        self._busy = threading.Lock()
        self._inboxes = [queue.SimpleQueue[_Loop | None]() for _ in range(threads - 1)]
        self._finished: queue.SimpleQueue[None] = queue.SimpleQueue()
        for number, inbox in enumerate(self._inboxes):
            threading.Thread(target=self._serve, args=(inbox,), name=f"splat-{number}", daemon=True).start()

    def _serve(self, inbox: queue.SimpleQueue[_Loop | None]) -> None:
        while (loop := inbox.get()) is not None:
            loop.work()
            self._finished.put(None)

    def run(self, task: Task, chunks: int) -> None:
        """Call `task(chunk)` for every chunk below `chunks`, and return when all are done.

        Raises what a task raised; chunks not yet begun are then skipped.
        """
        helpers = self._inboxes[: chunks - 1]
        loop = _Loop(task, chunks)
        if not helpers or not self._busy.acquire(blocking=False):  # nested, or used by another thread
            loop.work()
        else:
            try:
                self._share(loop, helpers)
            finally:
                self._busy.release()
        if loop.failure is not None:
            raise loop.failure

    def _share(self, loop: _Loop, helpers: list[queue.SimpleQueue[_Loop | None]]) -> None:
        for inbox in helpers:
            inbox.put(loop)
        loop.work()
        for _ in helpers:
            self._finished.get()

    def close(self) -> None:
        """Let the threads end; the pool must not be used afterwards."""
        for inbox in self._inboxes:
            inbox.put(None)


_pool: Pool | None = None
_wanted: int | None = None


def set_threads(count: int) -> None:
    """Use `count` threads from now on; 0 means all usable cores. Results do not depend on it.

    Raises ValueError for a negative count.
    """
    global _wanted
    if count < 0:
        raise ValueError(f"threads must be 0 or more, not {count}")
    _wanted = count or None


def threads() -> int:
    """How many threads the kernels use."""
    return _wanted or usable_cores()


def _current() -> Pool:
    global _pool
    if _pool is None or _pool.process != os.getpid() or _pool.threads != threads():
        if _pool is not None and _pool.process == os.getpid():
            _pool.close()
        _pool = Pool(threads())  # a forked child has none of its parent's threads
    return _pool


def run(task: Task, chunks: int) -> None:
    """`Pool.run` on the process's pool, which is made on first use."""
    if chunks > 0:
        _current().run(task, chunks)


def spans(count: int, chunks: int) -> list[tuple[int, int]]:
    """`count` things cut into at most `chunks` nearly equal ranges (start, stop), in order, none empty."""
    chunks = max(1, min(chunks, count))
    edges = [count * k // chunks for k in range(chunks + 1)]
    return [(a, b) for a, b in itertools.pairwise(edges) if b > a]
