"""Files appear whole or not at all, and what a kill leaves behind is cleared away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from splatpipe.files import atomic_folder, atomic_path, clear_leftovers, write_text

KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from splatpipe.files import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "plan.json", "old")
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "plan.json") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert (tmp_path / "plan.json").read_text() == "old"


def test_what_a_killed_process_was_writing_is_cleared_away_and_nothing_else_is(tmp_path: Path) -> None:
    target = tmp_path / "attempts" / "p000" / "map.png"
    subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(target)], check=False)
    (left,) = target.parent.iterdir()
    kept = [tmp_path / "photo.tmp", tmp_path / f".notes.{os.getpid()}.tmp", tmp_path / ".hidden.12a.tmp"]
    for path in kept:
        path.write_text("somebody's")
    clear_leftovers(tmp_path)
    assert not left.exists()
    assert all(path.exists() for path in kept)


WRITES_A_FOLDER = """
import sys
from pathlib import Path
from splatpipe.files import atomic_folder
with atomic_folder(Path(sys.argv[1])) as temporary:
    (temporary / "whose").write_text("theirs")
    print("begun", flush=True)
    sys.stdin.read()
"""


def test_two_processes_that_write_one_folder_do_not_meet_and_the_last_one_stays(tmp_path: Path) -> None:
    target = tmp_path / "lod"
    argv = [sys.executable, "-c", WRITES_A_FOLDER, str(target)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "begun\n"
        with atomic_folder(target) as temporary:
            (temporary / "whose").write_text("ours")
        clear_leftovers(tmp_path)
        assert (target / "whose").read_text() == "ours"
        other.communicate()
    assert other.returncode == 0
    assert (target / "whose").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["lod"]


def test_a_folder_that_a_kill_left_between_two_names_gets_its_own_back(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in (f".lod.{gone.pid}.old", f".tiles.{gone.pid}.old", f".tiles.{gone.pid}.tmp", "tiles"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "whose").write_text(name)
    clear_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lod", "tiles"]
    assert (tmp_path / "tiles" / "whose").read_text() == "tiles"
    assert (tmp_path / "lod" / "whose").read_text() == f".lod.{gone.pid}.old"


def test_a_folder_stays_when_its_successor_cannot_take_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lod").mkdir()
    (tmp_path / "lod" / "whose").write_text("old")
    real = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp" and not target.exists():  # the old one has been moved away by now
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="Input/output error"), atomic_folder(tmp_path / "lod") as temporary:
        (temporary / "whose").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["lod"]
    assert (tmp_path / "lod" / "whose").read_text() == "old"
