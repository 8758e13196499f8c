"""A short, seeded version of benchmarks/interruptions.py, which checks 200 by hand (docs/failures.md)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_runs_that_are_interrupted_at_random_moments_finish_when_run_again(repository: Path, tmp_path: Path) -> None:
    script = [sys.executable, str(repository / "benchmarks" / "interruptions.py"), "--count", "8", "--seed", "11"]
    script += ["--seconds", "120"]  # a busy machine takes ten times as long as a quiet one
    done = subprocess.run([*script, "--json", str(tmp_path / "tally.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tally = json.loads((tmp_path / "tally.json").read_text())
    assert tally["finished"] == tally["runs"] >= 1
    assert sum(tally["hits"].values()) + tally["missed"] >= tally["runs"]
