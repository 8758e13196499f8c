"""Two runs on one folder exclude each other, on one machine and on several, and a dead owner is recognised."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from splatpipe import runlock
from splatpipe.errors import RunFolderError
from splatpipe.layout import RunLayout
from splatpipe.runlock import Owner, run_lock
from splatpipe.storage import filesystem

HOLD = """
import sys, time
from pathlib import Path
from splatpipe.layout import RunLayout
from splatpipe.runlock import run_lock
with run_lock(RunLayout(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    return RunLayout(tmp_path / "run")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runlock, "BEAT_S", 0.05)
    monkeypatch.setattr(runlock, "WATCH_S", 0.8)


@pytest.fixture
def on_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runlock, "is_network", lambda path: True)


@pytest.fixture
def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has no locks, as Lustre without `-o flock`."""
    monkeypatch.setattr(runlock, "_flock", lambda layout: None)


def holder(layout: RunLayout) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(layout.root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def enter(layout: RunLayout, owner: Owner) -> None:
    layout.root.mkdir(exist_ok=True)
    layout.owner.write_text(json.dumps(asdict(owner)))


def elsewhere() -> Owner:
    return replace(Owner.me(), host="node7/1", pid=4242)


def test_a_folder_that_is_held_names_its_owner(layout: RunLayout) -> None:
    process = holder(layout)
    try:
        with pytest.raises(RunFolderError, match=f"in use by another run .process {process.pid} on "), run_lock(layout):
            pass
    finally:
        process.kill()
        process.communicate()


def test_an_owner_that_was_killed_is_recognised_at_once_and_named(layout: RunLayout) -> None:
    process = holder(layout)
    process.kill()
    process.communicate()
    said: list[str] = []
    with run_lock(layout, said.append):
        assert json.loads(layout.owner.read_text())["pid"] == os.getpid()
    assert len(said) == 1 and f"process {process.pid}" in said[0]
    assert not layout.owner.exists()


def test_without_flock_a_living_owner_on_this_machine_is_believed(layout: RunLayout, without_flock: None) -> None:
    process = holder(layout)
    try:
        with pytest.raises(RunFolderError, match=f"process {process.pid}"), run_lock(layout):
            pass
    finally:
        process.kill()
        process.communicate()
    with run_lock(layout):  # its process is gone, so is its claim
        pass


def test_a_process_that_got_the_number_of_a_dead_owner_is_not_taken_for_it(
    layout: RunLayout, without_flock: None
) -> None:
    enter(layout, replace(Owner.me(), started=Owner.me().started - 1000))
    with run_lock(layout):
        pass


def test_an_owner_on_another_machine_is_believed_while_it_gives_signs_of_life(
    layout: RunLayout, impatient: None, on_a_network: None
) -> None:
    enter(layout, elsewhere())
    done = threading.Event()

    def beat() -> None:
        while not done.wait(0.05):
            os.utime(layout.owner)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(RunFolderError, match="process 4242 on node7"), run_lock(layout):
            pass
        assert json.loads(layout.owner.read_text())["pid"] == 4242
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("age_s", [-100_000, 0, 100_000])
def test_an_owner_on_another_machine_without_a_sign_of_life_is_gone_whatever_the_clocks_say(
    layout: RunLayout, impatient: None, on_a_network: None, age_s: int
) -> None:
    enter(layout, elsewhere())
    stamp = time.time() - age_s
    os.utime(layout.owner, (stamp, stamp))
    said: list[str] = []
    with run_lock(layout, said.append):
        assert json.loads(layout.owner.read_text())["pid"] == os.getpid()
    assert "no sign of life" in said[-1]


def test_who_holds_a_folder_gives_signs_of_life(layout: RunLayout, impatient: None) -> None:
    with run_lock(layout):
        os.utime(layout.owner, (1.0, 1.0))
        deadline = time.monotonic() + 30
        while layout.owner.stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert layout.owner.stat().st_mtime > 2


def test_a_damaged_owner_file_does_not_keep_anybody_out(layout: RunLayout) -> None:
    layout.root.mkdir()
    layout.owner.write_text('{"pid": ')
    with run_lock(layout):
        assert json.loads(layout.owner.read_text())["pid"] == os.getpid()


MOUNTS = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:44 / /mnt/my\\040data rw shared:9 - nfs4 server:/export rw,vers=4.2
31 30 0:45 / /mnt/my\\040data/local rw shared:9 - xfs /dev/sdb rw
32 21 0:46 / /home rw - fuse.sshfs user@host: rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/run1", "ext4"),
        ("/mnt/my data/run", "nfs4"),
        ("/mnt/my data2/run", "ext4"),
        ("/mnt/my data/local/run", "xfs"),
        ("/home", "fuse.sshfs"),
    ],
)
def test_the_file_system_of_a_folder_is_that_of_the_mount_nearest_to_it(path: str, kind: str) -> None:
    assert filesystem.type_of(path, MOUNTS) == kind


def test_network_file_systems_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr(filesystem, "MOUNTS", mounts)
    for kind, expected in (("ext4", False), ("nfs4", True), ("fuse.sshfs", True), ("lustre", True), ("tmpfs", False)):
        mounts.write_text(f"21 1 8:1 / / rw - {kind} source rw\n")
        assert filesystem.is_network(tmp_path) is expected
