#!/usr/bin/env python3
"""A double of a trainer: a real child process that obeys the contract, trains nothing, and dies on demand.

As a program, `trainer_double.py REQUEST.json`, it is strict about what it is asked and tells of itself as our
own child does (docs/contracts.md): events, log lines, checkpoints, exit status, splat. How it behaves stands
in the environment variable TRAINER_DOUBLE as JSON: {"p007": {...}, "default": {...}}, fields of `Behaviour`.
As a class, `TrainerDouble`, it is a Trainer that the supervisor can run.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

import splatpipe
from splatpipe.trainers.base import Command, TrainerInfo, TrainRequest

VARIABLE = "TRAINER_DOUBLE"
ROOT = str(Path(splatpipe.__file__).parents[1])
EVENTS = 12  # step events of a whole run, unless `steps` says otherwise
ROW = 62  # x y z, normals, f_dc, 45 f_rest, opacity, scales, quaternion
SH_C0 = 0.28209479177387814


@dataclass(frozen=True)
class Behaviour:
    """How the double behaves for one patch. Without `fails` it trains."""

    fails: str = ""  # a name in LAST_WORDS or ENDINGS
    at: int = 20  # step of the failure; 0: before the first step
    at_from: tuple[float, int] | None = None  # (0.2, 100): from init_scaling 0.2 on, step 100
    below: float | None = None  # fails only with an init_scaling below this
    attempts: int | None = None  # fails only in attempts up to this number
    cured_by: tuple[str, str, float] | None = None  # ("downscale", ">=", 2): the request that does not fail
    status: int = 1  # exit status after last words
    steps: int = EVENTS  # step events
    step_s: float = 0.0  # seconds between them
    noise: bool = False  # progress bars with carriage returns, ANSI codes, bad UTF-8, half lines
    grandchild: bool = False  # starts a process of its own, which would live for ever
    stray: bool = False  # in a session of its own, too
    blind: tuple[str, ...] = ()  # cameras that see nothing, unless left out
    relocated: float = 0.02  # share of the Gaussians relocated at a refinement
    psnr: float = 25.0

    def step_of_failure(self, request: TrainRequest) -> int:
        if self.at_from is not None and request.init_scaling >= self.at_from[0]:
            return self.at_from[1]
        return self.at

    def fails_here(self, request: TrainRequest) -> bool:
        if not self.fails or (self.below is not None and request.init_scaling >= self.below):
            return False
        if self.attempts is not None and request.attempt > self.attempts:
            return False
        return self.cured_by is None or not _holds(request, *self.cured_by)


def _holds(request: TrainRequest, name: str, operator: str, bound: float) -> bool:
    values = {"init_scaling": request.init_scaling, "skip_cameras": len(request.skip_cameras)}
    value = values[name] if name in values else getattr(request.settings, name)
    return {"==": value == bound, ">=": value >= bound, "<=": value <= bound}[operator]


class TrainerDouble:
    """Runs this file as the child. `behaviours` maps patch ids, or "default", to fields of `Behaviour`."""

    def __init__(self, behaviours: Mapping[str, Mapping[str, Any]] | None = None, name: str = "gsplat") -> None:
        self.name = name
        self.ignored: frozenset[str] = frozenset()
        given = json.loads(os.environ.get(VARIABLE, "{}")) if behaviours is None else behaviours
        self._behaviours = json.dumps({patch: dict(behaviour) for patch, behaviour in given.items()})

    def probe(self) -> TrainerInfo:
        return TrainerInfo(self.name, True, "double", "a double: trains nothing", frozenset({"cpu", "cuda"}))

    def command(self, request: TrainRequest) -> Command:
        device = request.device.partition(":")[2] if request.device.startswith("cuda") else ""
        environment = {**os.environ, VARIABLE: self._behaviours, "CUDA_VISIBLE_DEVICES": device, "PYTHONPATH": ROOT}
        return Command((sys.executable, str(Path(__file__).resolve()), str(request.files.request)), environment)

    def parse_line(self, line: str) -> dict[str, Any] | None:
        return None


def refuse(sentence: str) -> NoReturn:
    """The supervisor or the pipeline broke the contract: say how, and leave."""
    print(f"trainer double refuses: {sentence}", file=sys.stderr, flush=True)
    sys.exit(2)


def read_request(argv: list[str]) -> TrainRequest:
    """The request, if it keeps every promise of the contract."""
    if len(argv) != 1:
        refuse(f"one argument, the request, not {argv}")
    try:
        request = TrainRequest.from_json(json.loads(Path(argv[0]).read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        refuse(f"{argv[0]} is no request ({error})")
    if request.files.request != Path(argv[0]):
        refuse(f"the request is {argv[0]}, but its attempt is {request.out}")
    if request.out.name != f"{request.attempt:02d}" or request.out.parent.name != request.patch_id:
        refuse(f"attempt {request.attempt} of {request.patch_id} in {request.out}")
    if not (request.patch.sparse / "points3D.bin").is_file():
        refuse(f"no data set in {request.dataset}")
    if not 0 < request.init_scaling <= 1 or request.similarity.scale <= 0 or request.threads < 0:
        refuse(f"init_scaling {request.init_scaling}, similarity {request.similarity}, threads {request.threads}")
    if len(set(request.skip_cameras)) != len(request.skip_cameras):
        refuse(f"a camera is skipped twice in {request.skip_cameras}")
    if request.settings.scale_schedule:
        refuse("the schedule is not scaled yet")
    if request.files.splat.exists():
        refuse(f"{request.files.splat} is there already")
    if os.environ.get("CUDA_VISIBLE_DEVICES") is None:
        refuse("CUDA_VISIBLE_DEVICES is not set")
    if os.getpgrp() == os.getsid(os.getppid()) != os.getsid(0):
        refuse("it shares the process group of its parent's session")
    return request


class Child:
    """One run of the double."""

    def __init__(self, request: TrainRequest, behaviour: Behaviour) -> None:
        self.request, self.behaviour = request, behaviour
        self.total = request.settings.iterations
        self.step = self._resume()
        self.means, self.colors = read_points(request)
        self._events = request.files.events.open("a", encoding="utf-8")
        signal.signal(signal.SIGTERM, self._stopped)
        signal.signal(signal.SIGINT, self._stopped)

    def run(self) -> int:
        """Train, or fail as told; the exit status."""
        failing = self.behaviour.fails_here(self.request)
        if self.behaviour.grandchild:
            self._start_grandchild()
        at = self.behaviour.step_of_failure(self.request)
        if failing and at == 0:
            return fail(self)
        resumed = self.step or None
        self.event("start", pid=os.getpid(), device=self.request.device, images=10, points=len(self.means),
                   gaussians=len(self.means), scene_scale=1.0, resumed_from=resumed)  # fmt: skip
        for image in self.behaviour.blind:
            if image not in self.request.skip_cameras:
                self.event("blind_camera", step=self.step, image=image)
        for step in self._steps():
            if failing and step >= at:
                self._advance(min(step, at))
                return fail(self)
            self._advance(step)
        self._evaluate()
        return self.finish()

    def event(self, event: str, **values: Any) -> None:
        self._events.write(json.dumps({"t": time.time(), "event": event, **values}) + "\n")
        self._events.flush()

    def finish(self) -> int:
        rows = self.rows()
        write_ply(self.request.files.splat, rows)
        self.done(len(rows))
        return 0

    def done(self, gaussians: int) -> None:
        self.event("done", step=self.step, gaussians=gaussians, seconds=0.1)

    def rows(self) -> NDArray[np.float32]:
        """(N, 62) Gaussians at the data set's points, in scene coordinates."""
        rows = np.zeros((len(self.means), ROW), np.float32)
        rows[:, :3] = self.request.similarity.invert(self.means)
        rows[:, 6:9] = (self.colors / 255 - 0.5) / SH_C0
        rows[:, 54] = 2.0
        rows[:, 55:58] = np.log(0.01 / self.request.similarity.scale)
        rows[:, 58] = 1.0
        return rows

    def _steps(self) -> list[int]:
        steps = np.linspace(0, self.total, self.behaviour.steps + 1)[1:].round().astype(int).tolist()
        return [step for step in steps if step > self.step]

    def _advance(self, step: int) -> None:
        self.step = step
        count = len(self.means)
        loss = 0.5 / (1 + step / self.total)
        self.event("step", step=step, total=self.total, loss=loss, gaussians=count, alive=count, steps_per_s=50.0)
        if step >= self.request.settings.refine_start:
            self.event("refine", step=step, relocated=int(self.behaviour.relocated * count), added=0, gaussians=count)
        if self.behaviour.noise:
            self._make_noise()
        time.sleep(self.behaviour.step_s)

    def _make_noise(self) -> None:
        bar = f"\x1b[1;32mloss=0.123| sh degree=0|:\x1b[0m 25%|██▌  | {self.step}/{self.total} [00:01<00:03]\r"
        sys.stdout.buffer.write(bar.encode() + b"bad \xff\xfe bytes\nhalf a ")
        sys.stdout.buffer.flush()

    def _start_grandchild(self) -> None:
        child = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=self.behaviour.stray
        )
        (self.request.out / "grandchild.pid").write_text(str(child.pid))

    def _evaluate(self) -> None:
        self.event("eval", psnr=self.behaviour.psnr, ssim=0.8, views=[])

    @property
    def _checkpoint(self) -> Path:
        return self.request.files.checkpoints / "last.json"

    def _resume(self) -> int:
        with contextlib.suppress(OSError):
            return int(json.loads(self._checkpoint.read_text())["step"])
        return 0

    def _stopped(self, number: int, frame: object) -> None:
        self._checkpoint.parent.mkdir(exist_ok=True)
        self._checkpoint.write_text(json.dumps({"step": self.step}))
        os._exit(143)


def fail(child: Child) -> int:
    """Die as `behaviour.fails` says; the exit status of those that leave by themselves."""
    from last_words import LAST_WORDS

    name = child.behaviour.fails
    if name in LAST_WORDS:
        print("\n".join(LAST_WORDS[name]), file=sys.stderr, flush=True)
        return child.behaviour.status
    if name.startswith("guard_"):
        failure = name.removeprefix("guard_")
        child.event("error", **{"class": failure, "message": f"guard: {failure}", "step": child.step})
        print("RuntimeError: CUDA error: invalid configuration argument", file=sys.stderr, flush=True)
        return 3
    if name not in ENDINGS:
        refuse(f"unknown failure {name}")
    return int(ENDINGS[name](child))


def die_of(number: signal.Signals, words: str = "") -> Any:
    def die(child: Child) -> NoReturn:
        print(words, end="", file=sys.stderr, flush=True)
        signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
        os.kill(os.getpid(), number)
        time.sleep(600)
        raise AssertionError("a signal did not kill")

    return die


def hang(child: Child) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(600)
    raise AssertionError("hung for ten minutes")


def hang_deaf(child: Child) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
    raise AssertionError("hung for ten minutes")


def hang_after_done(child: Child) -> NoReturn:
    child.finish()
    hang(child)


def talk_forever(child: Child) -> NoReturn:
    while True:
        print("still caching images", flush=True)
        time.sleep(0.05)


def no_ply(child: Child) -> int:
    child.event("done", step=child.step, gaussians=len(child.means), seconds=0.1)
    return 0


def half_ply(child: Child) -> int:
    status = child.finish()
    size = child.request.files.splat.stat().st_size
    os.truncate(child.request.files.splat, size // 2)
    return status


def not_done(child: Child) -> int:
    write_ply(child.request.files.splat, child.rows())
    return 0


def wrong_count(child: Child) -> int:
    write_ply(child.request.files.splat, child.rows())
    child.done(len(child.means) + 7)
    return 0


def nan_ply(child: Child) -> int:
    rows = child.rows()
    rows[-1, 54] = np.nan
    write_ply(child.request.files.splat, rows)
    child.done(len(rows))
    return 0


def faded_ply(child: Child) -> int:
    rows = child.rows()
    rows[:, 54] = -6.0  # opacity 0.0025
    write_ply(child.request.files.splat, rows)
    child.done(len(rows))
    return 0


def dirty_exit(child: Child) -> int:
    child.finish()
    print("cudaErrorCudartUnloading: driver shutting down", file=sys.stderr, flush=True)
    return 1


ENDINGS = {
    "sigkill": die_of(signal.SIGKILL),
    "sigsegv": die_of(signal.SIGSEGV),
    "sigabrt": die_of(signal.SIGABRT, "free(): invalid pointer\n"),
    "sigterm": die_of(signal.SIGTERM),
    "hang": hang,
    "hang_deaf": hang_deaf,
    "hang_after_done": hang_after_done,
    "talk_forever": talk_forever,
    "no_ply": no_ply,
    "half_ply": half_ply,
    "not_done": not_done,
    "wrong_count": wrong_count,
    "nan_ply": nan_ply,
    "faded_ply": faded_ply,
    "dirty_exit": dirty_exit,
    "silent_exit": lambda child: child.behaviour.status,
}


def read_points(request: TrainRequest) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N, 3) positions and (N, 3) colours 0 to 255 of a COLMAP points3D.bin."""
    data = (request.patch.sparse / "points3D.bin").read_bytes()
    (count,), offset = struct.unpack_from("<Q", data), 8
    means, colors = np.empty((count, 3)), np.empty((count, 3))
    for i in range(count):
        values = struct.unpack_from("<QdddBBBdQ", data, offset)
        means[i], colors[i] = values[1:4], values[4:7]
        offset += 51 + 8 * values[8]
    return means, colors


def write_points(path: Path, means: NDArray[np.floating]) -> None:
    """A COLMAP points3D.bin with grey points and no tracks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [struct.pack("<QdddBBBdQ", i + 1, *map(float, xyz), 128, 128, 128, 0.5, 0) for i, xyz in enumerate(means)]
    path.write_bytes(struct.pack("<Q", len(rows)) + b"".join(rows))


def write_ply(path: Path, rows: NDArray[np.float32]) -> None:
    """The INRIA layout, SH degree 3; whole or not at all, as the contract asks."""
    rest = [f"f_rest_{i}" for i in range(45)]
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *rest, "opacity"]
    names += ["scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
    header += [f"property float {name}" for name in names]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes("\n".join([*header, "end_header\n"]).encode() + rows.astype("<f4").tobytes())
    temporary.replace(path)


def main(argv: list[str]) -> int:
    request = read_request(argv)
    behaviours = json.loads(os.environ.get(VARIABLE, "{}"))
    chosen = behaviours.get(request.patch_id, behaviours.get("default", {}))
    if unknown := set(chosen) - {item.name for item in fields(Behaviour)}:
        refuse(f"a behaviour has no {sorted(unknown)}")
    tuples = {name: tuple(value) for name, value in chosen.items() if isinstance(value, list)}
    return Child(request, Behaviour(**{**chosen, **tuples})).run()


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)
