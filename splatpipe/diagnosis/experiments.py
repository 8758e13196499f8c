"""One short training that answers one question, run through the real supervisor and recorded when it has ended."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from splatpipe.executors.base import Slot
from splatpipe.failures.classes import FailureClass
from splatpipe.failures.classify import Catalogue
from splatpipe.files import read_json, write_json
from splatpipe.layout import PatchLayout, RunLayout
from splatpipe.trainers.base import Attempt, Trainer, TrainRequest
from splatpipe.trainers.supervise import run_attempt

Kind = Literal["baseline", "cure", "swap", "half", "grid"]
Build = Callable[[PatchLayout], None]


@dataclass(frozen=True)
class Experiment:
    """`change` alters the patch's own request; `build` writes the data set, the patch's own when None."""

    name: str  # as a folder
    kind: Kind
    question: str  # as a person would ask
    change: Callable[[TrainRequest], TrainRequest]
    build: Build | None = None


@dataclass(frozen=True)
class Result:
    """How an experiment ended. It trained when `failure` is None."""

    name: str
    kind: str
    question: str
    failure: str | None  # a failure class
    line: str | None  # the line that decided it
    step: int
    init_scaling: float
    means_lr: float
    psnr: float | None  # of the fixed training view at the end, dB
    loss: float | None
    blind: int  # cameras that saw no Gaussian
    verdicts: tuple[str, ...]  # rules that fired, notes left out
    seconds: float
    log: str  # relative to the run folder

    @property
    def trained(self) -> bool:
        return self.failure is None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        """Raises KeyError, TypeError for something else."""
        values = {item.name: data[item.name] for item in fields(cls)}
        return cls(**values | {"verdicts": tuple(values["verdicts"])})


class Laboratory:
    """Runs the experiments of one diagnosis below `root`; what has ended once is read back, not run again."""

    def __init__(
        self, root: Path, run: RunLayout, base: TrainRequest, trainer: Trainer, catalogue: Catalogue, key: str
    ) -> None:
        """`key` identifies the base request and its data; results of another one are not read back."""
        self.root, self.run_layout, self.base = root, run, base
        self._trainer, self._catalogue, self._key = trainer, catalogue, key

    def known(self, experiment: Experiment) -> Result | None:
        """The result of an earlier call of splatpipe."""
        try:
            data = read_json(self._record(experiment))
            return Result.from_json(data) if data.get("key") == self._key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def run(self, experiment: Experiment, slot: Slot, stop: threading.Event, deadline: float) -> Result | None:
        """Train; None when it was stopped or the time was up, in which case it goes on in the next call.

        `deadline`: as `time.monotonic`.
        """
        layout = RunLayout(self.root / experiment.name)
        request = self._request(experiment, layout, slot)
        left = deadline - time.monotonic()
        if left <= 0 or stop.is_set():
            return None
        attempt = run_attempt(
            self._trainer,
            request,
            on_event=lambda event: None,
            stop=_Deadline(stop, deadline),
            catalogue=self._catalogue,
        )
        if attempt.failure is FailureClass.INTERRUPTED:
            return None
        result = self._result(experiment, attempt)
        write_json(self._record(experiment), result.to_json() | {"key": self._key})
        for folder in (attempt.request.files.checkpoints, layout.patches):
            shutil.rmtree(folder, ignore_errors=True)
        attempt.request.files.splat.unlink(missing_ok=True)
        return result

    def _record(self, experiment: Experiment) -> Path:
        return self.root / experiment.name / "result.json"

    def _request(self, experiment: Experiment, layout: RunLayout, slot: Slot) -> TrainRequest:
        base, patch = self.base, self.base.patch_id
        dataset = base.dataset
        if experiment.build is not None:
            place = layout.patch(patch)
            if not place.sparse.is_dir():
                experiment.build(place)
            dataset = place.root
        placed = replace(base, attempt=1, out=layout.attempt(patch, 1).root, dataset=dataset)
        return experiment.change(replace(placed, device=slot.device, threads=slot.threads))

    def _result(self, experiment: Experiment, attempt: Attempt) -> Result:
        health, request = attempt.health, attempt.request
        verdicts = [v["rule"] for v in health.get("verdicts") or () if v["severity"] != "note"]
        return Result(
            name=experiment.name,
            kind=experiment.kind,
            question=experiment.question,
            failure=attempt.failure.value if attempt.failure else None,
            line=attempt.line,
            step=attempt.last_step,
            init_scaling=request.init_scaling,
            means_lr=request.settings.means_lr,
            psnr=health.get("view_psnr"),
            loss=health.get("loss"),
            blind=len(health.get("blind_cameras") or ()),
            verdicts=tuple(verdicts),
            seconds=round(attempt.seconds, 1),
            log=request.files.log.relative_to(self.run_layout.root).as_posix(),
        )


class _Deadline(threading.Event):
    """Set when another event is, or when its time has come."""

    def __init__(self, other: threading.Event, deadline: float) -> None:
        super().__init__()
        self._other, self._deadline = other, deadline

    def is_set(self) -> bool:
        return self._other.is_set() or time.monotonic() > self._deadline
