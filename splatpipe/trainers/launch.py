"""A small guardian between the supervisor and a trainer, so that no trainer outlives splatpipe.

Run as `python -I -S launch.py FD PID ARGV...` at the head of a new session. It starts ARGV, waits, and ends the
way ARGV ended (same exit status, same signal). `FD` is the reading end of a pipe that only the supervisor can
write to, PID the supervisor: when it is gone, however it went, the pipe ends and the whole process group is killed.
A pipe rather than PR_SET_PDEATHSIG alone: that signal comes when the *thread* that forked ends, and it reaches
only one process. The child still asks for it, in case the guardian itself is killed.

Standard library only, and nothing of splatpipe: it must start within milliseconds.
"""

import os
import select
import signal
import sys

PR_SET_PDEATHSIG = 1
NOT_EXECUTABLE, NOT_FOUND = 126, 127  # the shell's exit statuses


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends; where that is unknown, do nothing."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass


def run_child(argv: list[str], guardian: int) -> None:
    """Become `argv`; never returns."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    die_with_parent()
    if os.getppid() != guardian:
        os._exit(NOT_EXECUTABLE)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        sys.stderr.write(f"cannot start {argv[0]}: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE)


def wait(child: int, lifeline: int, supervisor: int, wakeup: int) -> int:
    """The child's wait status; kills the whole group, this process included, when the supervisor is gone.

    The supervisor's pid is looked at too: a process that it forked without exec would keep the pipe open.
    """
    poll = select.poll()
    for pipe in (lifeline, wakeup):
        poll.register(pipe, select.POLLIN)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        ready = {pipe for pipe, _ in poll.poll(1000)}
        if wakeup in ready:
            os.read(wakeup, 64)
        if lifeline in ready or os.getppid() != supervisor:
            os.killpg(os.getpgrp(), signal.SIGKILL)


def end_like(status: int) -> None:
    """End this process as its child ended; a signal is raised again, without a second core dump."""
    if not os.WIFSIGNALED(status):
        os._exit(os.WEXITSTATUS(status))
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    number = os.WTERMSIG(status)
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def main() -> None:
    lifeline, supervisor, argv = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    os.set_inheritable(lifeline, False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are meant for the child, which gets them too
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(writing)
    guardian = os.getpid()
    child = os.fork()
    if child == 0:
        run_child(argv, guardian)
    os.close(1)
    os.close(2)
    end_like(wait(child, lifeline, supervisor, reading))


if __name__ == "__main__":
    main()
