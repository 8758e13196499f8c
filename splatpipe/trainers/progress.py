"""What the events of an attempt have told so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeGuard

MOST = 2**53  # what counts something in a trainer is less
REFINEMENTS = 50  # relocated shares kept: the slope that announces a collapse shows in the last few


@dataclass
class Progress:
    """Sums up the events of docs/contracts.md; every value is that of the latest event that named it."""

    last_step: int = 0
    gaussians: int | None = None
    stepped: bool = False
    start: dict[str, Any] | None = None
    done: dict[str, Any] | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    blind_cameras: list[str] = field(default_factory=list)
    health: dict[str, Any] = field(default_factory=dict)

    def add(self, event: dict[str, Any]) -> None:
        """Take in one event; unknown ones count for nothing."""
        step = event.get("step")
        if _is_count(step):
            self.last_step = max(self.last_step, step)
        if _is_count(event.get("gaussians")):
            self.gaussians = event["gaussians"]
        match event["event"]:
            case "start":
                self.start = event
                self._keep(event, "images", "points", "scene_scale", "resumed_from", "resumed_attempt")
            case "step":
                self.stepped = True
                self._keep(event, "loss", "alive", "steps_per_s", "total")
            case "blind_camera" if event.get("image") not in self.blind_cameras:
                self.blind_cameras.append(str(event.get("image")))
            case "refine":
                self._refine(event)
            case "eval":
                self._keep(event, "psnr", "ssim", "views")
            case "health" if event.get("psnr") is not None:
                self.health["view_psnr"] = event["psnr"]
            case "verdict":
                self.health.setdefault("verdicts", []).append(
                    {k: v for k, v in event.items() if k not in ("t", "event")}
                )
            case "warning":
                self.warnings.append(str(event.get("message")))
            case "error":
                self.errors.append(event)
            case "done":
                self.done = event
                self._keep_health(event.get("health") or {})

    def _keep(self, event: dict[str, Any], *names: str) -> None:
        self.health.update({name: event[name] for name in names if event.get(name) is not None})

    def _keep_health(self, health: dict[str, Any]) -> None:
        """The child's own summary, which also knows what happened before it was resumed."""
        self.blind_cameras += [name for name in health.get("blind_cameras", ()) if name not in self.blind_cameras]
        self.health.update({name: value for name, value in health.items() if name != "blind_cameras"})

    def _refine(self, event: dict[str, Any]) -> None:
        relocated, count = event.get("relocated"), event.get("gaussians")
        if _is_count(relocated) and _is_count(count) and count:
            shares = self.health.setdefault("relocated_shares", [])
            shares.append(round(relocated / count, 4))
            del shares[:-REFINEMENTS]

    def summary(self) -> dict[str, Any]:
        """The health of the attempt as JSON data."""
        return {**self.health, "blind_cameras": list(self.blind_cameras)}


def _is_count(value: Any) -> TypeGuard[int]:
    """Whether `value` is a whole number that counts something; a damaged line may hold one that no ledger takes."""
    return isinstance(value, int) and 0 <= value < MOST
