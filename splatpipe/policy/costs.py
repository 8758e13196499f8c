"""How long a patch will train, learnt from the patches that have."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

ENOUGH = 6  # samples from which on the three shares are fitted; with fewer only their sum is
PRIOR = np.array([0.1, 0.6, 0.3])  # shares of a step's time: itself, a million Gaussians, a million pixels
MILLION = 1e6


@dataclass(frozen=True)
class Size:
    """What the time of a patch depends on."""

    steps: int
    cap: int  # Gaussians at most
    pixels: int  # of one training image

    @property
    def features(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(3,): steps, steps times millions of Gaussians, steps times megapixels."""
        return self.steps * np.array([1.0, self.cap / MILLION, self.pixels / MILLION])

    def to_json(self) -> dict[str, int]:
        return asdict(self)


class CostModel:
    """seconds = steps (a + b Gaussians + c pixels), a, b, c >= 0, by least squares on relative errors.

    Before there are enough samples a, b and c keep the proportions of `PRIOR`; before there is any, `seconds`
    is only good for comparing patches, and `known` is false.
    """

    def __init__(self, samples: Sequence[tuple[Size, float]] = ()) -> None:
        """`samples`: sizes of patches that have trained, and the seconds that they took."""
        self.known = bool(samples)
        self._weights = PRIOR / 100
        if not samples:
            return
        seconds = np.array([max(taken, 1e-3) for _, taken in samples])
        features = np.array([size.features for size, _ in samples])
        self._weights = PRIOR * statistics.median((seconds / (features @ PRIOR)).tolist())
        if len(samples) >= ENOUGH and np.linalg.matrix_rank(features / seconds[:, None]) == 3:
            from scipy.optimize import nnls  # here, because every command would wait for it

            fitted, _ = nnls(features / seconds[:, None], np.ones(len(seconds)))
            if (features @ fitted > 0).all():
                self._weights = fitted

    def seconds(self, size: Size) -> float:
        """Expected time of one attempt that trains to its end."""
        return float(size.features @ self._weights)


def samples_of(status: Mapping[str, Any]) -> list[tuple[Size, float]]:
    """From `Ledger.status()`: the last attempts of its trained patches."""
    return [(size, taken) for size, taken in map(_sample, status["patches"]) if size and taken]


def seconds_left(status: Mapping[str, Any], now: float) -> float | None:
    """How long a run with this `Ledger.status()` will still train, at its present number of attempts at once.

    None while nothing trains, or nothing has yet been learnt. Retries that are still to come are not foreseen.
    """
    model = CostModel(samples_of(status))
    running = [patch for patch in status["patches"] if patch["outcome"] == "running"]
    if not running or not model.known:
        return None
    ends = [max(_expected(patch, model) - (now - _begun(patch)), 0.0) for patch in running]
    waiting = [_expected(patch, model) for patch in status["patches"] if patch["outcome"] == "pending"]
    return list_schedule(sorted(waiting, reverse=True), ends)


def list_schedule(costs: Sequence[float], ends: Sequence[float]) -> float:
    """When the last of `costs` ends, each begun in this order on the place that is free first (`ends`: from when)."""
    places = list(ends)
    heapq.heapify(places)
    for cost in costs:
        heapq.heapreplace(places, places[0] + cost)
    return max(places)


def _size(patch: Mapping[str, Any]) -> Size | None:
    given = patch["choice"].get("size")
    return Size(**given) if given else None


def _sample(patch: Mapping[str, Any]) -> tuple[Size | None, float | None]:
    trained = patch["outcome"].startswith("trained") and patch["attempts"]
    return (_size(patch), patch["attempts"][-1]["seconds"]) if trained else (None, None)


def _expected(patch: Mapping[str, Any], model: CostModel) -> float:
    size = _size(patch)
    return model.seconds(size) if size else 0.0


def _begun(patch: Mapping[str, Any]) -> float:
    return float(patch["attempts"][-1]["started"]) if patch["attempts"] else 0.0
