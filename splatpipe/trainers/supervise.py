"""One attempt from request to verdict: start the child, watch it, end it if it must be, judge what it left."""

from __future__ import annotations

import math
import select
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from splatpipe.errors import ConfigError, EnvironmentProblem, SceneError, SplatpipeError
from splatpipe.failures.classes import FailureClass
from splatpipe.failures.classify import Catalogue, EndedBy, Evidence, classify, default_catalogue, warnings
from splatpipe.files import write_json
from splatpipe.health.sinks import Sinks
from splatpipe.layout import AttemptLayout
from splatpipe.machine import memory_limit
from splatpipe.trainers.base import Attempt, Attendant, AttendedTrainer, CollectProblem, Trainer, TrainRequest
from splatpipe.trainers.holdout import judge_holdout
from splatpipe.trainers.output import CollapsedSplat, NonFiniteSplat, check_alive, check_splat
from splatpipe.trainers.process import RECORD, ChildProcess, end_recorded, kernel_oom_kills
from splatpipe.trainers.progress import Progress
from splatpipe.trainers.standby import Standby
from splatpipe.trainers.tail import BoundedLog, EventTail, LineMemory, LineSplitter, append_event

POLL_S = 0.1
SAMPLE_S = 0.5
UNKILLABLE_S = 60.0  # after SIGKILL; a process in uninterruptible sleep must not hold the run for ever
NEAR_LIMIT = 0.9  # share of the memory limit from which a SIGKILL is taken for the kernel's

OnEvent = Callable[[dict[str, Any]], None]


def run_attempt(
    trainer: Trainer,
    request: TrainRequest,
    *,
    on_event: OnEvent,
    stop: threading.Event,
    catalogue: Catalogue | None = None,
    standby: Standby | None = None,
) -> Attempt:
    """Train once, in a child process, and say how it went.

    Blocks until the child and everything it started are gone. Every event of the child (docs/contracts.md)
    goes to `on_event`, in this thread. When `stop` is set the child gets SIGTERM, `limits.grace_s`, then
    SIGKILL, and the attempt is `interrupted`. An attempt folder that was interrupted may be run again: log and
    events are appended to. `standby` becomes the child if it suits and still lives. Failures of the attempt are
    returned, never raised; what `on_event` raises ends the child and is passed on.
    """
    started, begun = time.time(), time.monotonic()
    try:
        attendant = trainer.attend(request) if isinstance(trainer, AttendedTrainer) else None
        _prepare(request)
        events = EventTail(request.files.events)  # at its present end, before the child can write
        child = _start(trainer, request, standby)
    except SplatpipeError as error:
        return _never_started(request, started, error)
    watch = Watch(child, trainer, request, on_event, stop, attendant, catalogue or default_catalogue(), events)
    try:
        watch.run()
    finally:
        watch.finish()
    watch.collect()
    watch.evaluate()
    return judge(request, watch, started, started + time.monotonic() - begun)  # whatever becomes of the clock


def end_orphan(attempt: AttemptLayout) -> bool:
    """End a child that a killed splatpipe may have left in this attempt folder; whether there was one."""
    return end_recorded(attempt.root)


def recover(trainer: Trainer, request: TrainRequest) -> Attempt | None:
    """The attempt as a success, if its child finished whole while nobody was left to record it; else None."""
    files = request.files
    progress = Progress()
    for event in EventTail(files.events, from_start=True).read():
        progress.add(event)
    for line in _lines_of(files):
        parsed = trainer.parse_line(line)
        if parsed is not None:
            progress.add(parsed)
    if _output_problem(request, progress) is not None:
        return None
    written = files.splat.stat().st_mtime
    started = float((progress.start or {}).get("t", written))
    return _attempt(request, progress, started, written, exit_status=None, warnings=("recovered from its files",))


def _lines_of(files: AttemptLayout) -> list[str]:
    try:
        return files.log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _prepare(request: TrainRequest) -> None:
    """Make the attempt's folder, with the request in it; EnvironmentProblem when that cannot be done."""
    files = request.files
    try:
        files.root.mkdir(parents=True, exist_ok=True)
        write_json(files.request, request.to_json())
        files.splat.unlink(missing_ok=True)  # from here on its existence says that this run made it
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {files.root}: {error.strerror or error}.") from error


def _start(trainer: Trainer, request: TrainRequest, standby: Standby | None) -> ChildProcess:
    """The child; SplatpipeError when it cannot be started."""
    waiting = standby.go(request) if standby else None
    return waiting or ChildProcess(trainer.command(request), request.files.root)


def _never_started(request: TrainRequest, started: float, error: SplatpipeError) -> Attempt:
    classes = {ConfigError: FailureClass.CONFIG_ERROR, SceneError: FailureClass.DATA_ERROR}
    failure = next((name for kind, name in classes.items() if isinstance(error, kind)), FailureClass.ENVIRONMENT)
    return Attempt(request, started, time.time(), None, failure, str(error), 0, None, 0, 0, None)


class Watch:
    """The time between a child's start and its end."""

    def __init__(
        self,
        child: ChildProcess,
        trainer: Trainer,
        request: TrainRequest,
        on_event: OnEvent,
        stop: threading.Event,
        attendant: Attendant | None,
        catalogue: Catalogue,
        events: EventTail,
    ) -> None:
        self.progress = Progress()
        self.catalogue = catalogue
        self.memory = LineMemory(catalogue.telling)
        self.log = BoundedLog(request.files.log)
        self.ended_by: EndedBy = ""
        self.oom_kills = kernel_oom_kills()
        self.child = child
        self._trainer, self._request, self._limits = trainer, request, request.limits
        self._on_event, self._stop = on_event, stop
        self._files = request.files
        self._record = request.files.root / RECORD
        self._splitter = LineSplitter()
        self.uncollected: OutputProblem | None = None
        self._attendant = attendant
        self._condemned = False
        self._events = events
        title = f"{request.patch_id}/{request.attempt:02d}"
        self._sinks = Sinks(request.health.sinks, request.files.root, title, self.progress.warnings.append)
        self._poll = select.poll()
        self._poll.register(child.output, select.POLLIN)
        self._begun = self._alive = time.monotonic()
        self._sampled = 0.0
        self._kill_at = math.inf
        self._give_up_at = math.inf

    def run(self) -> None:
        """Watch until the child is gone."""
        while not self.child.has_exited():
            self._wait()
            self._take()
            self._sample()
            self._enforce()
            if time.monotonic() > self._give_up_at:
                return
        self.child.clear()  # the leader is a zombie, so the group's id is still ours
        self.child.reap()
        while self._take():
            pass
        self._lines(self._splitter.flush())

    def finish(self) -> None:
        """Leave nothing running and nothing open, however `run` ended."""
        if self.child.exit_status is None:
            self.child.kill()
            deadline = time.monotonic() + 5.0
            while not self.child.has_exited() and time.monotonic() < deadline:
                time.sleep(0.02)
            if self.child.has_exited():
                self.child.clear()
                self.child.reap()
        self.child.close()
        self._sinks.close()
        if self.child.exit_status is not None:
            self._record.unlink(missing_ok=True)

    def collect(self) -> None:
        """Have an attendant make the splat of what the child left."""
        if self._attendant is None or self.child.exit_status is None:
            return
        try:
            for event in self._attendant.collect():
                self._attended(event)
        except CollectProblem as problem:
            self.uncollected = OutputProblem(problem.failure, str(problem))
        except OSError as error:
            sentence = f"the splat cannot be written: {error.strerror or error}."
            self.uncollected = OutputProblem(FailureClass.ENVIRONMENT, sentence)

    def evaluate(self) -> None:
        """Have the hold-out views rendered where the trainer does not do it itself and its splat is whole."""
        if self._attendant is None or self.uncollected is not None or self.progress.done is None:
            return
        for event in judge_holdout(self._request, self._stop):
            self._attended(event)

    def _wait(self) -> None:
        if self.child.output_ended:
            time.sleep(POLL_S)
        else:
            self._poll.poll(POLL_S * 1000)

    def _take(self) -> bool:
        """Take in new output and events; whether there was any.

        Output is read before events and handled after them: an event that was written before a line is then
        always seen before it.
        """
        data = self.child.read()
        events = self._events.read() if self._attendant is None else []
        for event in events:
            self._event(event)
        self._lines(self._splitter.feed(data))
        if data or events:
            self._alive = time.monotonic()
        return bool(data or events)

    def _lines(self, lines: list[str]) -> None:
        self.log.write(lines)
        for line in lines:
            self.memory.add(line)
            if self._attendant is not None:
                for event in self._attendant.read_line(line):
                    self._attended(event)
            elif parsed := self._trainer.parse_line(line):
                self._event({"t": time.time(), **parsed})

    def _attended(self, event: dict[str, Any]) -> None:
        """An event of an attendant: recorded here, because the child cannot, and an error ends the child."""
        self._condemned = self._condemned or event["event"] == "error"
        event = {"t": round(time.time(), 3), **event}
        append_event(self._files.events, event)
        self._event(event)

    def _event(self, event: dict[str, Any]) -> None:
        self.progress.add(event)
        self._sinks.add(event)
        self._on_event(event)

    def _sample(self) -> None:
        if time.monotonic() - self._sampled >= SAMPLE_S:
            self.child.sample()
            self._sampled = time.monotonic()

    def _enforce(self) -> None:
        """End the child when somebody asked for it or a limit has passed: SIGTERM first, SIGKILL later."""
        now = time.monotonic()
        if not self.ended_by:
            self.ended_by = self._reason_to_end(now)
            if self.ended_by:
                self.child.signal_group(signal.SIGTERM)
                self._kill_at = now + self._limits.grace_s
        elif now >= self._kill_at:
            self.child.kill()
            self._kill_at = math.inf
            self._give_up_at = now + UNKILLABLE_S

    def _reason_to_end(self, now: float) -> EndedBy:
        if self._stop.is_set():
            return "stop"
        if self._condemned:
            return "guard"
        if self._limits.wall_s and now - self._begun > self._limits.wall_s:
            return "wall"
        silence = self._limits.silence_s if self.progress.stepped else self._limits.startup_silence_s
        return "silence" if silence and now - self._alive > silence else ""


@dataclass(frozen=True)
class OutputProblem:
    """What is wrong with an attempt's output, and the class of that."""

    failure: FailureClass
    sentence: str


def _output_problem(request: TrainRequest, progress: Progress) -> OutputProblem | None:
    """What is missing for a success; None when a whole splat is there with the count that `done` announced."""
    try:
        count = check_splat(request.files.splat)
        check_alive(request.files.splat, request.settings.min_opacity)
    except CollapsedSplat as error:
        return OutputProblem(FailureClass.MCMC_COLLAPSE, str(error))
    except NonFiniteSplat as error:
        return OutputProblem(FailureClass.NAN_DIVERGENCE, str(error))
    except (ValueError, OSError) as error:
        return OutputProblem(FailureClass.EXPORT_MISSING, str(error))
    if progress.done is None:
        return OutputProblem(FailureClass.EXPORT_MISSING, "the child never said that it was done.")
    announced = progress.done.get("gaussians")
    if announced != count:
        sentence = f"{request.files.splat.name} holds {count} Gaussians, the child announced {announced}."
        return OutputProblem(FailureClass.EXPORT_MISSING, sentence)
    return None


def judge(request: TrainRequest, watch: Watch, started: float, ended: float) -> Attempt:
    """Success only with a `done` event and a whole, finite splat; else the class of the failure."""
    problem = watch.uncollected or _output_problem(request, watch.progress)
    status, lines = watch.child.exit_status, watch.memory.lines
    notes = [
        *warnings(lines, watch.catalogue),
        *watch.progress.warnings,
        *([watch.log.problem] if watch.log.problem else []),
    ]
    if problem is None and status != 0:
        notes.append(f"the child left with status {status} after its splat was whole")
    verdict = None
    if problem is not None:
        verdict = classify(_evidence(request, watch, problem), watch.catalogue)
    return _attempt(
        request,
        watch.progress,
        started,
        ended,
        exit_status=status,
        failure=verdict.failure if verdict else None,
        line=verdict.line if verdict else None,
        peaks=(watch.child.peak_rss, watch.child.peak_vram),
        ended_by=watch.ended_by,
        warnings=tuple(notes),
    )


def _evidence(request: TrainRequest, watch: Watch, problem: OutputProblem) -> Evidence:
    progress = watch.progress
    shares = progress.health.get("relocated_shares") or [0.0]
    starved = watch.child.peak_rss > NEAR_LIMIT * memory_limit() or kernel_oom_kills() > watch.oom_kills
    return Evidence(
        exit_status=watch.child.exit_status,
        lines=watch.memory.lines,
        errors=progress.errors,
        stepped=progress.stepped,
        last_step=progress.last_step,
        ended_by=watch.ended_by,
        refine_start=request.settings.refine_start,
        blind_cameras=len(progress.blind_cameras),
        relocated_share=shares[-1],
        oom_killer=starved,
        output_problem=problem.sentence,
        output_failure=problem.failure,
    )


def _attempt(
    request: TrainRequest,
    progress: Progress,
    started: float,
    ended: float,
    *,
    exit_status: int | None,
    failure: FailureClass | None = None,
    line: str | None = None,
    peaks: tuple[int, int] = (0, 0),
    ended_by: EndedBy = "",
    warnings: tuple[str, ...] = (),
) -> Attempt:
    health = progress.summary()
    if ended_by:
        health["ended_by"] = ended_by
    return Attempt(
        request=request,
        started=started,
        ended=ended,
        exit_status=exit_status,
        failure=failure,
        line=line,
        last_step=progress.last_step,
        gaussians=progress.gaussians,
        peak_rss_bytes=peaks[0],
        peak_vram_bytes=peaks[1],
        splat=request.files.splat if failure is None else None,
        health=health,
        warnings=warnings,
    )
