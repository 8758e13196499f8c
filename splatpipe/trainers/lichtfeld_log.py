"""The console output of LichtFeld Studio as events (docs/contracts.md); formats in trainers.md, A5."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from splatpipe.failures.classes import FailureClass
from splatpipe.splatting.guards import COLLAPSE_SHARE

Event = dict[str, Any]

NUMBER = r"[-+]?(?:nan(?:\([^)]*\))?|inf(?:inity)?|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
PROGRESS = re.compile(
    rf"(?P<step>\d+)/(?P<total>\d+)\s*\|\s*Loss:\s*(?P<loss>{NUMBER})\s*\|\s*Splats:\s*(?P<count>\d+)", re.IGNORECASE
)
ELAPSED = re.compile(r"\[(?:(\d+)h?:)?(\d+)m?:(\d+)s?<")
COLMAP_READ = re.compile(r"Read (\d+) cameras and (\d+) images from COLMAP")
TRAINING_IMAGES = re.compile(r"Training with (\d+) images")
POINTS = re.compile(r"(?:Loaded (\d+) points from COLMAP|Using point cloud with (\d+) points)")
SCENE_SCALE = re.compile(rf"Scene scale:\s*({NUMBER})", re.IGNORECASE)
RESTORED = re.compile(r"Restored training state from checkpoint at iteration (\d+)")
LOOP_STARTS = re.compile(r"Starting training loop")
RELOCATED = re.compile(r"MCMC: Relocated (\d+) dead Gaussians at iteration (\d+)")
ADDED = re.compile(r"MCMC: Added (\d+) new Gaussians at iteration (\d+) \(total: (\d+)\)")
COMPLETED = re.compile(rf"Training completed in ({NUMBER})\s*s")
FINAL_COUNT = re.compile(r"Final splats:\s*(\d+)")
STOPPED = re.compile(r"Training stopped by user at iteration (\d+)")
FINISHED = re.compile(r"Headless training completed")
DAMAGED = re.compile(r"\d{19}")  # no number that LFS prints; larger ones fit into no database
RANDOM_START = re.compile(r"No point cloud (?:found|provided)")

LOST_POINTS = 0.5  # LFS reading fewer of our points than this does not train our patch
SCALE_FACTOR = 3.0  # between LFS's scene scale and ours, from which units or centring must differ


@dataclass(frozen=True)
class Expected:
    """What splatpipe knows of the data set that LFS was given."""

    images: int
    points: int
    scene_scale: float  # median distance of the points to the mean camera centre, training units
    iterations: int


class LogReader:
    """The output of one run, line by line: events for the supervisor, and what `collect` must know at the end."""

    def __init__(self, expected: Expected) -> None:
        self.expected = expected
        self.images: int | None = None
        self.points: int | None = None
        self.scene_scale: float | None = None
        self.gaussians: int | None = None
        self.final_count: int | None = None
        self.seconds: float | None = None
        self.finished = False  # the final line was seen
        self.stopped_at: int | None = None  # it ended early, on request
        self.condemned = False  # an `error` event was given
        self.resumed_from: int | None = None
        self._relocation: tuple[int, int] | None = None  # step and count, waiting for what was added
        self._loss: float | None = None

    def read(self, line: str) -> list[Event]:
        """The events of one line, which must be free of ANSI codes and line ends.

        A log line often stands right behind the unfinished bar, so one line can tell several things. After an
        `error` nothing more is told: the child is being ended.
        """
        if self.condemned or DAMAGED.search(line):
            return []
        events = [] if ADDED.search(line) else self.flush()
        for pattern, handle in self._HANDLERS:
            found = pattern.search(line)
            if found:
                events += handle(self, found)
        return events

    def flush(self) -> list[Event]:
        """The refinement that added nothing, if one is waiting: at the cap LFS prints no second line."""
        if self._relocation is None:
            return []
        return [self._refine(self._relocation[0], 0, self.gaussians)]

    def _refine(self, step: int, added: int, count: int | None) -> Event:
        waiting, self._relocation = self._relocation, None
        relocated = waiting[1] if waiting and waiting[0] == step else 0
        self.gaussians = count
        return {"event": "refine", "step": step, "relocated": relocated, "added": added, "gaussians": count}

    def _progress(self, found: re.Match[str]) -> list[Event]:
        step, total = int(found["step"]), int(found["total"])
        loss = float(re.sub(r"\(.*", "", found["loss"]))
        self.gaussians = int(found["count"])
        if loss != loss or loss in (float("inf"), float("-inf")):
            return [self._error(FailureClass.NAN_DIVERGENCE, f"the loss is {found['loss']} at step {step}", step)]
        self._loss = loss
        event = {"event": "step", "step": step, "total": total, "loss": loss, "gaussians": self.gaussians}
        if rate := _rate(found.string, step):
            event["steps_per_s"] = rate
        return [event]

    def _relocated(self, found: re.Match[str]) -> list[Event]:
        count, step = int(found[1]), int(found[2])
        self._relocation = (step, count)
        if self.gaussians and count > COLLAPSE_SHARE * self.gaussians:
            events = self.flush()
            message = f"{count} of {self.gaussians} Gaussians were dead at one refinement"
            return [*events, self._error(FailureClass.MCMC_COLLAPSE, message, step)]
        return []

    def _added(self, found: re.Match[str]) -> list[Event]:
        return [self._refine(int(found[2]), int(found[1]), int(found[3]))]

    def _read_images(self, found: re.Match[str]) -> list[Event]:
        before, self.images = self.images, int(found[found.re.groups])
        if self.images in (before, self.expected.images):
            return []
        message = f"LichtFeld Studio read {self.images} images, the patch has {self.expected.images}"
        return [_warning(message)] if self.images else [self._error(FailureClass.DATA_ERROR, message, 0)]

    def _read_points(self, found: re.Match[str]) -> list[Event]:
        before, self.points = self.points, int(found[1] or found[2])
        self.gaussians = self.points
        if self.points in (before, self.expected.points):
            return []
        message = f"LichtFeld Studio read {self.points} points, the patch has {self.expected.points}"
        if self.points < LOST_POINTS * self.expected.points:
            return [self._error(FailureClass.DATA_ERROR, message, 0)]
        return [_warning(message)]

    def _read_scale(self, found: re.Match[str]) -> list[Event]:
        self.scene_scale = float(re.sub(r"\(.*", "", found[1]))
        ratio = self.scene_scale / self.expected.scene_scale if self.expected.scene_scale > 0 else 1.0
        if 1 / SCALE_FACTOR <= ratio <= SCALE_FACTOR:
            return []
        message = f"LichtFeld Studio measures a scene scale of {found[1]}, splatpipe {self.expected.scene_scale:.4g}"
        return [_warning(message)]

    def _restored(self, found: re.Match[str]) -> list[Event]:
        self.resumed_from = int(found[1])
        return []

    def _start(self, found: re.Match[str]) -> list[Event]:
        start = {
            "event": "start",
            "images": self.images,
            "points": self.points,
            "gaussians": self.points if self.resumed_from is None else None,
            "scene_scale": self.scene_scale if self.scene_scale == self.scene_scale else None,
            "resumed_from": self.resumed_from,
        }
        return [start]

    def _random_start(self, found: re.Match[str]) -> list[Event]:
        message = "LichtFeld Studio found no points and would start from random ones"
        return [self._error(FailureClass.DATA_ERROR, message, 0)]

    def _completed(self, found: re.Match[str]) -> list[Event]:
        self.finished, self.seconds = True, float(found[1])
        total = self.expected.iterations  # the progress line before it often stands 100 steps short
        return [{"event": "step", "step": total, "total": total, "loss": self._loss, "gaussians": self.gaussians}]

    def _final_count(self, found: re.Match[str]) -> list[Event]:
        self.final_count = self.gaussians = int(found[1])
        return []

    def _stopped(self, found: re.Match[str]) -> list[Event]:
        self.stopped_at = int(found[1])
        return []

    def _finished(self, found: re.Match[str]) -> list[Event]:
        self.finished = True
        return []

    def _error(self, failure: FailureClass, message: str, step: int) -> Event:
        self.condemned = True
        return {"event": "error", "class": failure.value, "message": message, "step": step}

    _HANDLERS = (
        (PROGRESS, _progress),
        (RELOCATED, _relocated),
        (ADDED, _added),
        (COLMAP_READ, _read_images),
        (TRAINING_IMAGES, _read_images),
        (POINTS, _read_points),
        (SCENE_SCALE, _read_scale),
        (RESTORED, _restored),
        (LOOP_STARTS, _start),
        (RANDOM_START, _random_start),
        (COMPLETED, _completed),
        (FINAL_COUNT, _final_count),
        (STOPPED, _stopped),
        (FINISHED, _finished),
    )


def _warning(message: str) -> Event:
    return {"event": "warning", "message": message}


def _rate(line: str, step: int) -> float | None:
    """Steps a second since the start, from the bar's own clock."""
    clock = ELAPSED.search(line)
    if clock is None:
        return None
    seconds = int(clock[1] or 0) * 3600 + int(clock[2]) * 60 + int(clock[3])
    return round(step / seconds, 2) if seconds else None
