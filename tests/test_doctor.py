"""What `splatpipe doctor` finds on this machine and on machines described by files."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from doubles.lichtfeld_double import install
from rich.console import Console

from splatpipe.doctor import Report, Row, examine
from splatpipe.machine import memory_limit, usable_cores
from splatpipe.tables import doctor_table

NAMES = ["python", "cores", "memory", "disk", "gpu", "torch", "nvcc", "gsplat", "numba", "pycolmap", "lichtfeld"]


@pytest.fixture(scope="module")
def report() -> Report:
    return examine()


def test_every_part_has_a_state_a_detail_and_advice_when_it_is_missing(report: Report) -> None:
    assert [row.name for row in report.rows] == NAMES
    for row in report.rows:
        assert row.status in ("ok", "warn", "missing")
        assert row.detail
        assert "examined" not in row.detail, f"the check of {row.name} itself failed: {row.detail}"
        assert row.status == "ok" or row.name == "gsplat" or row.advice, f"{row.name} needs advice"


def test_it_says_what_python_torch_and_pycolmap_say_of_themselves(report: Report) -> None:
    import pycolmap
    import torch

    assert sys.version.split()[0] in report["python"].detail
    assert torch.__version__ in report["torch"].detail
    assert pycolmap.__version__ in report["pycolmap"].detail
    assert report["cores"].detail.startswith(str(usable_cores()))
    assert (report["gsplat"].status == "ok") <= torch.cuda.is_available()


def test_the_report_is_json_and_a_table(report: Report) -> None:
    rows = json.loads(json.dumps(report.to_json()))["rows"]
    assert [row["name"] for row in rows] == NAMES
    assert set(rows[0]) == {"name", "status", "detail", "advice"}
    console = Console(width=2000, record=True, file=io.StringIO())
    console.print(doctor_table(report.to_json()))
    text = console.export_text()
    assert all(row.detail in text for row in report.rows)


@pytest.mark.gpu
def test_gsplat_renders_on_the_gpu(report: Report) -> None:
    assert report["gsplat"] == Row("gsplat", "ok", report["gsplat"].detail)


def test_lichtfeld_is_asked_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    row = examine(lichtfeld=str(install(tmp_path / "bin", "0.5.2")))["lichtfeld"]
    assert row.status == "ok"
    assert "0.5.2" in row.detail
    row = examine(lichtfeld=str(tmp_path / "nowhere"))["lichtfeld"]
    assert row.status == "missing"
    assert "training.lfs_binary: there is no LichtFeld Studio at" in row.detail


def test_a_container_limit_above_the_process_counts(tmp_path: Path) -> None:
    (tmp_path / "self").write_text("0::/slurm/job_7/step_0\n")
    job = tmp_path / "fs" / "slurm" / "job_7"
    (job / "step_0").mkdir(parents=True)
    (job / "step_0" / "memory.max").write_text("max\n")
    (job / "memory.max").write_text("1500000000\n")
    assert memory_limit(tmp_path / "fs", tmp_path / "self") == 1_500_000_000


def test_a_limit_of_the_older_control_groups_counts(tmp_path: Path) -> None:
    (tmp_path / "self").write_text("7:cpu,cpuacct:/docker/x\n9:memory:/docker/x\n")
    (tmp_path / "fs" / "memory" / "docker" / "x").mkdir(parents=True)
    (tmp_path / "fs" / "memory" / "docker" / "x" / "memory.limit_in_bytes").write_text("700000000\n")
    assert memory_limit(tmp_path / "fs", tmp_path / "self") == 700_000_000


def test_without_control_groups_the_limit_is_the_machine(tmp_path: Path) -> None:
    assert memory_limit(tmp_path, tmp_path / "none") == psutil.virtual_memory().total


def test_looking_at_the_machine_loads_no_heavy_library() -> None:
    code = (
        "import sys, splatpipe.doctor; print([m for m in ('torch', 'numba', 'pycolmap', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
