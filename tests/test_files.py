"""Files appear whole or not at all, and what a kill leaves behind is cleared away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from splatpipe.files import atomic_path, clear_leftovers, write_text

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
