"""What every trainer is asked and what comes back; see DESIGN.md, Contracts."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from splatpipe.failures.classes import FailureClass
from splatpipe.health.settings import HealthSettings
from splatpipe.layout import AttemptLayout, PatchLayout
from splatpipe.scene.arrays import Similarity
from splatpipe.splatting.settings import TrainSettings


@dataclass(frozen=True)
class Limits:
    """When the supervisor ends a child. Seconds; 0 means no limit."""

    __pydantic_config__ = {"extra": "forbid"}

    startup_silence_s: float = 900.0  # no event before the first step: compiling, decoding images
    silence_s: float = 180.0  # no event after it
    wall_s: float = 0.0
    grace_s: float = 30.0  # between SIGTERM and SIGKILL


@dataclass(frozen=True)
class TrainRequest:
    """One attempt, complete: the same request gives the same run."""

    patch_id: str
    attempt: int
    trainer: str  # "gsplat" or "lichtfeld"
    device: str  # "cpu", "cuda:0"
    dataset: Path  # PatchLayout.root; training coordinates
    out: Path  # AttemptLayout.root
    similarity: Similarity  # scene to training coordinates; splat.ply is written in scene coordinates
    init_scaling: float  # in the trainer's own meaning (trainers.md, A8)
    settings: TrainSettings  # schedule already scaled, cap already shared out
    skip_cameras: tuple[str, ...] = ()  # image names left out of this attempt (blind or weak cameras)
    continues: tuple[int, ...] = ()  # earlier attempts of the same training, whose checkpoints may be gone on from
    threads: int = 0  # CPU threads; 0: all
    limits: Limits = field(default_factory=Limits)
    health: HealthSettings = field(default_factory=HealthSettings)

    @property
    def patch(self) -> PatchLayout:
        return PatchLayout(self.dataset)

    @property
    def files(self) -> AttemptLayout:
        return AttemptLayout(self.out)

    @property
    def continued(self) -> tuple[AttemptLayout, ...]:
        """The files of the attempts that this one may go on from, the latest first."""
        return tuple(AttemptLayout(self.out.with_name(f"{n:02d}")) for n in reversed(self.continues))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; `from_json` gives the equal request back."""
        data = dataclasses.asdict(self)
        data["dataset"], data["out"] = str(self.dataset), str(self.out)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainRequest:
        values = dict(data)
        values["dataset"], values["out"] = Path(values["dataset"]), Path(values["out"])
        similarity = values["similarity"]
        values["similarity"] = Similarity(similarity["scale"], tuple(similarity["translation"]))
        values["settings"] = TrainSettings(**values["settings"])
        values["skip_cameras"] = tuple(values["skip_cameras"])
        values["continues"] = tuple(values.get("continues", ()))
        values["limits"] = Limits(**values["limits"])
        values["health"] = HealthSettings(**values.get("health", {}))
        return cls(**values)


@dataclass(frozen=True)
class Attempt:
    """How one attempt went. `failure` None means that a whole, checked splat is at `splat`."""

    request: TrainRequest
    started: float  # seconds since the epoch
    ended: float
    exit_status: int | None  # as subprocess gives it: negative is a signal; None if it never started
    failure: FailureClass | None
    line: str | None  # the line or event that decided `failure`
    last_step: int
    gaussians: int | None
    peak_rss_bytes: int
    peak_vram_bytes: int
    splat: Path | None
    health: dict[str, Any] = field(default_factory=dict)  # blind_cameras, relocated shares, loss, psnr, ssim ...
    warnings: tuple[str, ...] = ()
    spent: float = 0.0  # seconds before it was interrupted and resumed
    stalled: int = 0  # resumptions in a row that others ended before they got further than the one before

    @property
    def seconds(self) -> float:
        """Time trained, interruptions left out."""
        return self.spent + self.ended - self.started


@dataclass(frozen=True)
class TrainerInfo:
    """What `probe` found: is the trainer there, which version, what it can do, else what is missing."""

    name: str
    available: bool
    version: str
    detail: str  # one sentence: what was found, or what is missing and what to do
    capabilities: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Command:
    """How to start the child of a request."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path | None = None


class Trainer(Protocol):
    """A way to run one attempt. The supervisor starts and owns the process; a Trainer only describes it."""

    name: str
    ignored: frozenset[str]  # the TrainSettings that have no effect on it

    def probe(self) -> TrainerInfo:
        """Find out, once, whether this trainer can run here."""
        ...

    def command(self, request: TrainRequest) -> Command:
        """The child process for `request`; may stage files below `request.out`."""
        ...

    def parse_line(self, line: str) -> dict[str, Any] | None:
        """An event for one line of the child's output, or None. Our own child writes events itself."""
        ...


class CollectProblem(Exception):
    """What a finished child left is no result: the class of the failure and one sentence."""

    def __init__(self, failure: FailureClass, sentence: str) -> None:
        super().__init__(sentence)
        self.failure = failure


class Attendant(Protocol):
    """Reads one attempt of a program that is not ours; it may remember lines between calls."""

    def read_line(self, line: str) -> Sequence[dict[str, Any]]:
        """The events (docs/contracts.md) of one line of output. An `error` among them ends the child."""
        ...

    def collect(self) -> Sequence[dict[str, Any]]:
        """After the child's end: make `files.splat` of what it left; `done` is the last event returned.

        Raises CollectProblem when that is no result.
        """
        ...


@runtime_checkable
class PreparedTrainer(Trainer, Protocol):
    """A trainer with something to do once, before the first child starts."""

    def prepare(self, device: str, say: Callable[[str], None], stop: threading.Event) -> None:
        """Make ready to train on `device`, telling `say` what takes long; EnvironmentProblem when it cannot be.

        Interrupted soon after `stop` is set.
        """
        ...


@runtime_checkable
class StandbyTrainer(Trainer, Protocol):
    """A trainer whose child can be started before it is known what it will train."""

    def standby(self, request: TrainRequest) -> Command:
        """A child that gets ready for a request about like this one, taking nothing of its accelerator.

        It reads two lines from its standard input: a JSON object with `request` and `room`, bytes of main memory for
        photographs; later the path of the request that it is to train, from when on it is the child that `command`
        describes. It ends when its input ends.
        """
        ...


@runtime_checkable
class AttendedTrainer(Trainer, Protocol):
    """A trainer whose child neither writes events nor `splat.ply`; the supervisor records its events."""

    def attend(self, request: TrainRequest) -> Attendant:
        """An attendant for one start of `request`; SplatpipeError when its data set cannot be read."""
        ...
