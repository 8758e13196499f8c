"""Runs on a Ray cluster of three nodes on this machine: a head without CPUs, and two that train."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.trainer_double import TrainerDouble
from scenes import synthetic_scene, write_scene

from splatpipe import pipeline
from splatpipe.errors import Interrupted
from splatpipe.files import read_json

ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "splatpipe[ray]"')

STORE = 80 << 20  # bytes, the least that Ray takes; its default is a third of the machine's memory
SETTINGS = (
    *("training.iterations=60", "training.max_cap=500", "training.device=cpu", "training.threads=1"),
    *("patching.max_cameras=12", "limits.grace_s=5", "retry.history=false", "executor.kind=ray", "probe.mode=never"),
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "field"
    write_scene(folder, synthetic_scene(n_cameras=25, n_points=400))
    return folder


@pytest.fixture(scope="module")
def cluster(repository: Path) -> Iterator[Any]:
    """The cluster; its nodes that train are in `worker_nodes`. Its workers find splatpipe, and the double."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (repository, repository / "tests"))))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(2):
                made.add_node(num_cpus=1, object_store_memory=STORE)
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


def run(scene: Path, out: Path, cluster: Any, stop: threading.Event, behaviour: dict[str, Any]) -> int:
    settings = [*SETTINGS, f"executor.ray_address={cluster.address}"]
    options = pipeline.RunOptions.resolve(scene, out, None, settings, None, None)
    return pipeline.run(options, stop=stop, merge=False, trainer=TrainerDouble({"default": behaviour}))


def in_the_middle(out: Path) -> str:
    """Wait until a worker trains; the name that it gave itself."""
    while True:
        for events in out.glob("attempts/*/*/events.jsonl"):
            if '"step"' in events.read_text():
                return str(read_json(events.parent / "worker.json")["place"])
        time.sleep(0.1)


def patches(out: Path) -> list[dict[str, Any]]:
    return list(pipeline.status(out)["patches"])


def test_a_stop_reaches_the_workers_which_leave_a_checkpoint(scene: Path, tmp_path: Path, cluster: Any) -> None:
    stop = threading.Event()

    def ask() -> None:
        in_the_middle(tmp_path)
        stop.set()

    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(Interrupted):
        run(scene, tmp_path, cluster, stop, {"step_s": 1.0})
    begun = [row for row in patches(tmp_path) if row["attempts"]]
    assert begun
    assert {row["outcome"] for row in begun} == {"interrupted"}
    assert any((tmp_path / "attempts").glob("*/*/checkpoints/*"))


def test_a_node_that_is_lost_in_the_middle_of_a_patch_costs_no_patch_and_is_told(
    scene: Path, tmp_path: Path, cluster: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    killed: list[str] = []

    def kill() -> None:
        place = in_the_middle(tmp_path)
        node = next(one for one in cluster.worker_nodes if one.node_id[:8] in place)
        killed.append(place)
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    assert run(scene, tmp_path, cluster, threading.Event(), {"step_s": 0.5}) == 0
    thread.join(60)
    rows = patches(tmp_path)
    assert len(rows) >= 2
    assert {row["outcome"] for row in rows} <= {"trained", "trained_with_warnings"}
    assert [attempt["n"] for row in rows for attempt in row["attempts"]] == [1] * len(rows)
    assert sum(attempt["interruptions"] for row in rows for attempt in row["attempts"]) >= 1
    assert f"{killed[0]} was lost; it goes on from its last checkpoint" in capsys.readouterr().err
