"""What scheduling costs for each patch, and how close to the best possible end it packs them.

    python benchmarks/scheduler.py [--patches 1,100,1000,10000] [--slots 1,8,64] [--json FILE]
    python benchmarks/scheduler.py --ray [--patches 1,100,1000] [--slots 1,8] [--seconds 1]

A null trainer in the place of the executor: `TrainingStage`, scheduler, cost model, memory and ledger are the real
ones, and the ledger is written to disk at every step. Its places are simulated on a clock of their own, which the
attempts' lengths advance (a law of steps and Gaussians that the cost model does not know, with 10 % of noise), so that
"overhead" is wall time for each patch, all of it ours ("CPU": what of it is no waiting for the disk), and "makespan"
is what that clock says at the end over the least that any order could reach. With --ray the places are faked GPUs of
a cluster on this machine, and attempts sleep: overhead is from a run in which they do not, makespan from one in which
they sleep --seconds on average.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from scenes import synthetic_scene  # noqa: E402

from splatpipe.config import Config, load_config  # noqa: E402
from splatpipe.crew import Crew  # noqa: E402
from splatpipe.entries import Outcome  # noqa: E402
from splatpipe.executors.base import Need, OnEvent, Slot  # noqa: E402
from splatpipe.files import write_json  # noqa: E402
from splatpipe.layout import RunLayout  # noqa: E402
from splatpipe.ledger import Ledger  # noqa: E402
from splatpipe.planning import PlannedPatch, make_plan  # noqa: E402
from splatpipe.trainers.base import Attempt, Command, TrainerInfo, TrainRequest  # noqa: E402
from splatpipe.training import TrainingStage  # noqa: E402


class NullTrainer:
    """Never started."""

    name = "gsplat"
    ignored: frozenset[str] = frozenset()

    def probe(self) -> TrainerInfo:
        return TrainerInfo(self.name, True, "null", "a null trainer", frozenset({"cpu", "cuda"}))

    def command(self, request: TrainRequest) -> Command:
        raise AssertionError("a null trainer starts no child")

    def parse_line(self, line: str) -> dict[str, Any] | None:
        return None


class SilentProgress:
    """In the place of RunProgress: says nothing."""

    def say(self, text: str) -> None: ...

    def event(self, patch_id: str, event: Any) -> None: ...

    def finished(self, patch_id: str) -> None: ...

    def weigh(self, costs: Any) -> None: ...


def trained(request: TrainRequest, started: float, ended: float) -> Attempt:
    return Attempt(request, started, ended, 0, None, None, request.settings.iterations, 1, 0, 0, request.files.splat)


class SimulatedExecutor:
    """Places on a clock of their own: when no more can begin, it moves to the end of the attempt that ends first."""

    def __init__(self, slots: int, seconds: Callable[[TrainRequest], float]) -> None:
        self.now = 0.0
        self._free = slots
        self._seconds = seconds
        self._running: list[tuple[float, int, Future[Attempt], TrainRequest, float]] = []
        self._order = itertools.count()

    def acquire(self, need: Need) -> Slot | None:
        if not self._free:
            return None
        self._free -= 1
        return Slot("cuda:0")

    def submit(self, slot: Slot, request: TrainRequest, on_event: OnEvent) -> Future[Attempt]:
        future: Future[Attempt] = Future()
        end = self.now + self._seconds(request)
        heapq.heappush(self._running, (end, next(self._order), future, request, self.now))
        return future

    def look_ahead(self, upcoming: Any) -> None: ...

    def flush(self) -> None:
        if self._running:
            self.now, _, future, request, started = heapq.heappop(self._running)
            future.set_result(trained(request, started, self.now))

    def release(self, slot: Slot) -> None:
        self._free += 1

    def close(self) -> None: ...


class SleepingWork:
    """In the place of `Work`, in a worker of Ray: an attempt that sleeps."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.trainers = (NullTrainer(),)
        self._seconds = seconds

    def run(self, request: TrainRequest, on_event: OnEvent, stop: threading.Event) -> Attempt:
        started = time.time()
        time.sleep(self._seconds.get(request.patch_id, 0.0))
        return trained(request, started, time.time())


def planned_patches(count: int, config: Config, rng: np.random.Generator) -> list[PlannedPatch]:
    """Patches of one small scene under different names, with caps and schedules of their own."""
    template = make_plan(synthetic_scene(n_cameras=9, n_points=150), config).patches[0]
    sizes = zip(rng.integers(50_000, 2_000_000, count), rng.integers(20_000, 60_000, count), strict=True)
    return [
        replace(
            template,
            patch=replace(template.patch, id=f"p{i:05d}"),
            settings=replace(template.settings, max_cap=int(cap), iterations=int(steps)),
        )
        for i, (cap, steps) in enumerate(sizes)
    ]


def true_seconds(patches: Sequence[PlannedPatch], rng: np.random.Generator) -> dict[str, float]:
    """Minutes to an hour: a law with a large constant part, unlike what the cost model begins with, and noise."""
    noise = rng.lognormal(0.0, 0.1, len(patches))
    law = [patch.settings.iterations * (0.008 + 0.02 * patch.settings.max_cap / 1e6) for patch in patches]
    return {patch.id: float(s * n) for patch, s, n in zip(patches, law, noise, strict=True)}


def lower_bound(seconds: Sequence[float], slots: int) -> float:
    """No schedule ends earlier: of the k slots + 1 longest, some k + 1 share a place, at best the shortest of them."""
    longest = sorted(seconds, reverse=True)
    shared = [sum(longest[k * slots - k : k * slots + 1]) for k in range(1, (len(longest) - 1) // slots + 1)]
    return max([sum(longest) / slots, longest[0], *shared])


def stage_of(folder: Path, patches: Sequence[PlannedPatch], config: Config) -> Callable[[Any], None]:
    """Run these patches on an executor, with a ledger of their own in `folder`."""
    layout = RunLayout(folder)
    layout.root.mkdir(parents=True)
    for patch in patches[:1]:
        layout.patch(patch.id).root.mkdir(parents=True)

    def run(executor: Any) -> None:
        trainer = NullTrainer()
        with Ledger(layout.ledger) as ledger:
            for patch in patches:
                choice = patch.rung.to_json() | {"size": patch.size.to_json()}
                stats = patch.stats.to_json()
                ledger.put_patch(patch.id, cameras=9, points=150, extent=1.0, statistics=stats, choice=choice)
            crew = Crew(trainer, trainer.probe())
            stage = TrainingStage(layout, ledger, config, crew, SilentProgress(), executor, threading.Event())  # type: ignore[arg-type]
            begun, busy = time.perf_counter(), time.process_time()
            stage.run(patches)
            run.seconds = time.perf_counter() - begun  # type: ignore[attr-defined]
            run.busy = time.process_time() - busy  # type: ignore[attr-defined]
            assert all(record.outcome is Outcome.TRAINED for record in ledger.patches())

    return run


def simulate(count: int, slots: int, seed: int) -> dict[str, Any]:
    rng, config = np.random.default_rng(seed), load_config(None, ["probe.mode=never"])
    patches = planned_patches(count, config, rng)
    seconds = true_seconds(patches, rng)
    executor = SimulatedExecutor(slots, lambda request: seconds[request.patch_id])
    with tempfile.TemporaryDirectory() as folder:
        run = stage_of(Path(folder) / "run", patches, config)
        run(executor)
    bound = lower_bound(list(seconds.values()), slots)
    return row(count, slots, run.seconds / count, run.busy / count, executor.now / bound)  # type: ignore[attr-defined]


def on_ray(count: int, slots: int, seed: int, mean: float) -> dict[str, Any]:
    """On faked GPUs of a cluster that has been started; one empty run before, so that its workers are there."""
    from splatpipe.executors.ray import RayExecutor

    rng, config = np.random.default_rng(seed), load_config(None, ["probe.mode=never"])
    patches = planned_patches(count, config, rng)
    seconds = true_seconds(patches, rng)
    scale = mean / float(np.mean(list(seconds.values())))
    sleeps = {name: value * scale for name, value in seconds.items()}
    walls, busy = [], []
    for naps in ({}, {}, sleeps):
        with tempfile.TemporaryDirectory() as folder:
            some = patches if walls else patches[:slots]
            for patch in some:
                RunLayout(Path(folder) / "run").patch(patch.id)
            run = stage_of(Path(folder) / "run", some, config)
            for patch in some:
                RunLayout(Path(folder) / "run").patch(patch.id).root.mkdir(parents=True, exist_ok=True)
            work: Any = SleepingWork(naps)
            executor = RayExecutor(work, threading.Event(), device="cuda", jobs=slots)
            run(executor)
            executor._follower.close()
            walls.append(run.seconds)  # type: ignore[attr-defined]
            busy.append(run.busy)  # type: ignore[attr-defined]
    bound = lower_bound(list(sleeps.values()), slots)
    return row(count, slots, walls[1] / count, busy[1] / count, walls[2] / bound)


def row(count: int, slots: int, overhead: float, busy: float, makespan: float) -> dict[str, Any]:
    overhead_ms, cpu_ms = round(1e3 * overhead, 3), round(1e3 * busy, 3)
    print(f"{count:8d} {slots:6d} {overhead_ms:12.2f} {cpu_ms:8.2f} {makespan:10.3f}", flush=True)
    return {
        "patches": count, "slots": slots, "overhead_ms": overhead_ms, "cpu_ms": cpu_ms, "makespan": round(makespan, 4)
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches")
    parser.add_argument("--slots")
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    default = ("1,100,1000", "1,8") if given.ray else ("1,100,1000,10000", "1,8,64")
    counts, slots = (
        [int(n) for n in (a or b).split(",")] for a, b in zip((given.patches, given.slots), default, strict=True)
    )
    print(
        f"{'patches':>8} {'slots':>6} {'overhead, ms':>12} {'CPU, ms':>8} {'makespan':>10}   (1 is the least possible)"
    )
    if given.ray:
        import ray

        ray.init(
            *("local",), num_gpus=max(slots), num_cpus=max(slots), include_dashboard=False, log_to_driver=False,
            object_store_memory=100 << 20, logging_level="ERROR",
        )  # fmt: skip
        rows = [on_ray(count, n, given.seed, given.seconds) for count in counts for n in slots]
        ray.shutdown()
    else:
        rows = [simulate(count, n, given.seed) for count in counts for n in slots]
    if given.json:
        write_json(given.json, {"ray": given.ray, "rows": rows})
    print(json.dumps({"worst_overhead_ms": max(r["overhead_ms"] for r in rows)}))


if __name__ == "__main__":
    main()
