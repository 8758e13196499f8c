"""One child process with everything it starts: its output as bytes, its memory, its end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from splatpipe.errors import EnvironmentProblem
from splatpipe.files import read_json, write_json
from splatpipe.trainers import launch
from splatpipe.trainers.base import Command

MARKER = "SPLATPIPE_ATTEMPT"  # in the environment of every process of an attempt: which one it was started for
READ_BYTES = 1 << 16
RECORD = "child.json"
GONE_S = 5.0  # a killed process may take a moment to give back its memory


class ChildProcess:
    """A running child in a session of its own; the guardian in `launch.py` is the session's leader."""

    def __init__(self, command: Command, attempt: Path, waits: bool = False) -> None:
        """Start `command`; EnvironmentProblem when it cannot be.

        With `waits` it can be told things (`tell`), and belongs to no attempt until `belongs_to` says so.
        """
        self._marker = str(attempt.resolve())
        environment = {**os.environ, "PYTHONFAULTHANDLER": "1", **command.env, MARKER: self._marker}
        program = _executable(command, environment)
        watched, self._lifeline = os.pipe()
        guardian = [sys.executable, "-I", "-S", launch.__file__, str(watched), str(os.getpid())]
        try:
            self._popen = subprocess.Popen(
                [*guardian, program, *command.argv[1:]],
                env=environment,
                cwd=command.cwd,
                stdin=subprocess.PIPE if waits else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(watched,),
                bufsize=0,
            )
        except OSError as error:
            os.close(self._lifeline)
            raise EnvironmentProblem(f"cannot start {command.argv[0]}: {error.strerror or error}.") from error
        finally:
            os.close(watched)
        assert self._popen.stdout is not None
        self._output = self._popen.stdout.fileno()
        os.set_blocking(self._output, False)
        self.pid = self._popen.pid
        self.peak_rss = 0
        self.peak_vram = 0
        self.output_ended = False
        self._seen: set[psutil.Process] = set()
        if not waits:
            self.belongs_to(attempt)

    def tell(self, line: str, last: bool = False) -> bool:
        """Write a line to the child's standard input, and end that after the `last` one; False when nobody reads."""
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write(line.encode() + b"\n")
            if last:
                self._popen.stdin.close()
        except OSError:
            return False
        return True

    def belongs_to(self, attempt: Path) -> None:
        """Note who the child is, for a later run to end it; a full disk must not end the attempt."""
        with contextlib.suppress(psutil.Error, OSError):
            created, ours = psutil.Process(self.pid).create_time(), {"parent": os.getpid(), "marker": self._marker}
            write_json(attempt / RECORD, {"pid": self.pid, "create_time": created, **ours})

    @property
    def exit_status(self) -> int | None:
        """As subprocess gives it: negative is a signal; None until `reap`."""
        return self._popen.returncode

    def read(self) -> bytes:
        """What the child has written since the last call, up to 64 KiB; empty if nothing."""
        if self.output_ended:
            return b""
        try:
            data = os.read(self._output, READ_BYTES)
        except BlockingIOError:
            return b""
        self.output_ended = not data
        return data

    @property
    def output(self) -> int:
        """The file descriptor to wait on for output."""
        return self._output

    def has_exited(self) -> bool:
        """Whether the child is done; it is not reaped yet, so its process group id cannot be reused."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to every process of the group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """SIGKILL for the group and for descendants that left it."""
        self._tree()
        self.signal_group(signal.SIGKILL)
        for process in self._seen:
            with contextlib.suppress(psutil.Error):  # psutil compares creation times: a reused id is safe
                process.kill()

    def clear(self) -> None:
        """Kill what an exited child left behind, and wait until it is gone; to be called before `reap`."""
        self.kill()
        deadline = time.monotonic() + GONE_S
        while any(map(_lives, (*self._seen, *self._group()))) and time.monotonic() < deadline:
            time.sleep(0.01)

    def reap(self) -> None:
        """Collect the exit status of a child that has exited, and the peak memory that the kernel kept."""
        _, status, usage = os.wait4(self.pid, 0)
        self._popen.returncode = os.waitstatus_to_exitcode(status)
        unit = 1 if sys.platform == "darwin" else 1024
        self.peak_rss = max(self.peak_rss, usage.ru_maxrss * unit)

    def close(self) -> None:
        """Let go of the pipes; the guardian kills whatever is left of the group."""
        os.close(self._lifeline)
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def sample(self) -> None:
        """Update the peaks of resident and device memory, summed over the tree, in bytes."""
        tree = self._tree()
        total = 0
        for process in tree:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        self.peak_rss = max(self.peak_rss, total)
        self.peak_vram = max(self.peak_vram, _vram({process.pid for process in tree}))

    def _tree(self) -> list[psutil.Process]:
        """The guardian and its descendants now; they are remembered, because an orphan leaves the tree."""
        try:
            leader = psutil.Process(self.pid)
            tree = [leader, *leader.children(recursive=True)]
        except psutil.Error:
            return []
        self._seen.update(tree)
        return tree

    def _group(self) -> list[psutil.Process]:
        """Everything in the child's process group, orphans included."""
        found = []
        for pid in psutil.pids():
            with contextlib.suppress(psutil.Error, OSError):
                if os.getpgid(pid) == self.pid:
                    found.append(psutil.Process(pid))
        return found


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False


def _executable(command: Command, environment: dict[str, str]) -> str:
    """The full path of the command's program; EnvironmentProblem in words a user can act on."""
    name = command.argv[0]
    found = shutil.which(name, path=environment.get("PATH"))
    if found:
        return found
    path = Path(name)
    if path.is_dir():
        raise EnvironmentProblem(f"cannot start {name}: it is a folder, not a program.")
    if path.exists():
        raise EnvironmentProblem(f"cannot start {name}: it is not executable; run chmod +x on it.")
    raise EnvironmentProblem(f"cannot start {name}: there is no such program; install it or correct its path.")


def _vram(pids: set[int]) -> int:
    """Device memory that the given processes hold, bytes; 0 without NVML."""
    try:
        import pynvml
    except ImportError:
        return 0
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        running = [process for handle in handles for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)]
        return sum(process.usedGpuMemory or 0 for process in running if process.pid in pids)
    except pynvml.NVMLError:
        return 0


def end_recorded(attempt: Path, wait_s: float = 10.0) -> bool:
    """Kill what an earlier, killed splatpipe left running in the attempt folder; whether there was anything.

    A process is only touched when it is the recorded one (pid and creation time), or belongs to its
    session and carries the recorded marker in its environment: process ids are reused.
    """
    record = attempt / RECORD
    try:
        noted = read_json(record)
        marker = str(noted.get("marker", attempt.resolve()))
        found = _survivors(marker, int(noted["pid"]), float(noted["create_time"]))
    except (OSError, ValueError, KeyError, TypeError):
        return False
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(found, timeout=wait_s)
    record.unlink(missing_ok=True)
    return bool(found)


def _survivors(marker: str, session: int, created: float) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) != session or process.status() == psutil.STATUS_ZOMBIE:
                continue
            same = process.pid == session and abs(process.create_time() - created) < 0.05
            # A clock that was set since has moved the creation time, so the marker counts for the leader as well.
            ours = same or process.environ().get(MARKER) == marker
        except (psutil.Error, OSError):
            continue
        if ours:
            found.append(process)
    return found


def kernel_oom_kills() -> int:
    """How often the kernel has killed a process for memory since boot; 0 where it does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
