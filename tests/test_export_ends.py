"""Exports that end early: killed, hung, on a disk that refuses, without a node that works. Earlier ones stay whole.

The program that writes is a small one of ours, which does what splat-transform was seen to do in these cases.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from splatpipe.config import Config
from splatpipe.errors import EnvironmentProblem
from splatpipe.export import program
from splatpipe.export.program import run_program
from splatpipe.export.transform import VERSION, find_transform
from splatpipe.exporting import export_run
from splatpipe.splatting.ply import SplatFileError, Splats, write_splats

TOOL = f"""
import os, sys, time
from pathlib import Path
if sys.argv[1:] == ["--version"]:
    sys.exit(print("splat-transform v{VERSION} (b42b60c)"))
if sys.argv[1:] == ["--list-gpus"]:
    sys.exit(print(os.environ.get("TOOL_ADAPTERS", "Detecting GPU adapters...")))
out, does = Path(sys.argv[-1]), os.environ.get("TOOL_DOES", "")
half = out.with_name(f".{{out.name}}.{{os.getpid()}}.12ab.tmp")  # as splat-transform names its own
half.write_bytes(b"half")
if does == "wait":
    Path(os.environ["TOOL_PID"]).write_text(str(os.getpid()))
    time.sleep(600)
if does == "grow":
    half.write_bytes(bytes(1 << 20))
if does:
    os.write(2, os.environb[b"TOOL_DOES"])
    sys.exit(1)
half.write_bytes(b"new")
half.rename(out)
"""
NODE = "print('v20.1.0')"


def script(path: Path, text: str) -> None:
    """An executable Python program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(text)}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a merged splat and one export of each kind, and a program of ours in the place of splat-transform."""
    folder = tmp_path / "run"
    exports = folder / "merged" / "exports"
    (exports / "lod").mkdir(parents=True)
    for name in ("splat.spz", "lod/lod-meta.json"):
        (exports / name).write_text("old")
    (tmp_path / "scene").mkdir()
    (folder / "run.yml").write_text(yaml.safe_dump({"scene": str(tmp_path / "scene"), "settings": Config().to_dict()}))
    rng, n = np.random.default_rng(0), 5
    arrays = [rng.normal(size=shape) for shape in ((n, 3), (n, 4), (n, 3), (n,), (n, 1, 3), (n, 0, 3))]
    write_splats(folder / "merged" / "splat.ply", Splats(*(array.astype(np.float32) for array in arrays)))
    cache = tmp_path / "cache"
    script(cache / "splatpipe" / f"splat-transform-{VERSION}" / "node_modules" / ".bin" / "splat-transform", TOOL)
    script(tmp_path / "bin" / "node", NODE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    return folder


def contents(run: Path) -> dict[str, str]:
    exports = run / "merged" / "exports"
    return {str(p.relative_to(exports)): p.read_text() for p in exports.rglob("*") if p.is_file()}


OLD = {"splat.spz": "old", "lod/lod-meta.json": "old"}


def start(run: Path, to: str, **environment: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "splatpipe.cli", "export", str(run), "--to", to]
    # As a terminal starts it: a shell's background job, which CI may be, ignores Ctrl-C.
    first = "import signal, os, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", first, *argv]
    return subprocess.Popen(argv, env={**os.environ, **environment}, stdout=pipe, stderr=pipe, text=True)


def wait_until(true: object, seconds: float = 120) -> bool:
    deadline = time.monotonic() + seconds
    while not (done := true()) and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.02)
    return bool(done)


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize(
    ("to", "number", "code"),
    [
        ("spz", signal.SIGTERM, 143),
        ("lod", signal.SIGINT, 130),
        ("spz", signal.SIGKILL, -9),
        ("lod", signal.SIGKILL, -9),
    ],
)
def test_an_export_that_is_stopped_takes_its_child_along_and_leaves_earlier_ones(
    run: Path, tmp_path: Path, to: str, number: signal.Signals, code: int
) -> None:
    pid_file = tmp_path / "pid"
    process = start(run, to, TOOL_DOES="wait", TOOL_PID=str(pid_file))
    assert wait_until(lambda: pid_file.is_file() and pid_file.read_text())
    child = int(pid_file.read_text())
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code
    assert wait_until(lambda: ended(child))
    if number != signal.SIGKILL:
        assert said == f"writing {to} (1 of 1)\nstopped\n"
        assert contents(run) == OLD
    else:
        assert {name: text for name, text in contents(run).items() if text != "half"} == OLD
        assert len(contents(run)) == 3
    done = export_run(run, to, None, False, lambda text: None)
    assert Path(done["exports"][0]["path"]).read_text() == "new"
    assert sorted(contents(run)) == sorted(OLD)


def test_what_another_export_is_writing_is_left_alone(run: Path, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    process = start(run, "lod", TOOL_DOES="wait", TOOL_PID=str(pid_file))
    try:
        assert wait_until(lambda: pid_file.is_file() and pid_file.read_text())
        export_run(run, "lod,spz", None, False, lambda text: None)
        halves = [name for name, text in contents(run).items() if text == "half"]
        assert len(halves) == 1
        assert f".lod.{process.pid}.tmp" in halves[0]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("does", "sentence"),
    [
        ("\x1b[31m✗ Error: ENOSPC: no space left on device, write\x1b[0m\n    at async write\n  failed in 1 s",
         "ended with 1: Error: ENOSPC: no space left on device, write; free some space and run again"),
        ("FATAL ERROR: Reached heap limit\n", "FATAL ERROR: Reached heap limit; it may lack memory; spz needs least"),
        ("\udcff\udcfe\x07\r\n", "ended with 1: no word"),
        ("word " * 10_000, f"ended with 1: {('word ' * 60)!s}".strip()),
    ],
)  # fmt: skip
def test_the_last_words_of_the_program_become_one_sentence(
    run: Path, monkeypatch: pytest.MonkeyPatch, does: str, sentence: str
) -> None:
    monkeypatch.setenv("TOOL_DOES", does)
    with pytest.raises(EnvironmentProblem) as error:
        export_run(run, "spz", None, False, lambda text: None)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500 and str(error.value).isprintable()
    assert contents(run) == OLD


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the signal of a limit is Linux's")
def test_a_limit_of_file_sizes_is_named(run: Path) -> None:
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); "
    limited += "from splatpipe.cli import main; main()"
    argv = [sys.executable, "-c", limited, "export", str(run), "--to", "lod"]
    environment = {**os.environ, "TOOL_DOES": "grow"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "raise the limit for the size of files (ulimit -f)" in done.stderr or "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert contents(run) == OLD


def test_a_program_that_stands_still_is_ended(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "STILL_SECONDS", 0.5)
    monkeypatch.setenv("TOOL_DOES", "wait")
    monkeypatch.setenv("TOOL_PID", str(tmp_path / "pid"))
    with pytest.raises(EnvironmentProblem, match="splat-transform stood still and was ended"):
        export_run(run, "spz", None, False, lambda text: None)
    assert contents(run) == OLD


def test_a_program_that_works_without_a_word_is_not_taken_for_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "STILL_SECONDS", 3.0)
    monkeypatch.setattr(program, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(program, "WORK", 0.02)
    busy = "import time; end = time.process_time() + 3.5\nwhile time.process_time() < end: pass\nprint('done')"
    ended = run_program([sys.executable, "-c", busy])
    assert (ended.status, ended.said) == (0, "done\n")


def test_something_else_in_the_place_of_an_export_is_named(run: Path) -> None:
    exports = run / "merged" / "exports"
    (exports / "splat.spz").unlink()
    (exports / "splat.spz" / "mine").mkdir(parents=True)
    with pytest.raises(EnvironmentProblem, match=r"cannot write .*exports/splat\.spz: Is a directory; move away"):
        export_run(run, "spz", None, False, lambda text: None)
    (exports / "lod" / "lod-meta.json").unlink()
    (exports / "lod").rmdir()
    (exports / "lod").write_text("mine")
    with pytest.raises(EnvironmentProblem, match=r"cannot write .*exports/lod: Not a directory; move away"):
        export_run(run, "lod", None, False, lambda text: None)
    assert (exports / "lod").read_text() == "mine" and (exports / "splat.spz" / "mine").is_dir()


def test_a_file_in_the_place_of_all_exports_is_refused_before_anything_runs(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "merged" / "exports").rename(run / "merged" / "before")
    (run / "merged" / "exports").write_text("mine")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EnvironmentProblem, match=r"cannot write exports to .*: File exists; make it a folder"):
        export_run(run, "spz", None, False, lambda text: None)
    assert export_run(run, "ply", None, False, print)["exports"][0]["format"] == "ply"  # writes nothing there


def test_a_merged_splat_that_was_cut_off_is_not_exported_as_ply_either(run: Path) -> None:
    splat = run / "merged" / "splat.ply"
    splat.write_bytes(splat.read_bytes()[:-8])
    with pytest.raises(SplatFileError, match="probably cut off"):
        export_run(run, "ply", None, False, print)


@pytest.mark.parametrize("says", ["print('v16.20.2')", "print('segmentation fault')", "raise SystemExit(1)"])
def test_a_node_that_is_too_old_or_broken_is_named(run: Path, tmp_path: Path, says: str) -> None:
    script(tmp_path / "bin" / "node", says)
    with pytest.raises(EnvironmentProblem, match=r"bin/node is .*needs a newer one; install Node\.js 20 or newer"):
        export_run(run, "spz", None, False, lambda text: None)


NO_ADAPTER = """Detecting GPU adapters...
Warning: Couldn't load Vulkan: libvulkan.so.1: cannot open shared object file: No such file or directory
    at operator() (node-webgpu/third_party/dawn/src/dawn/native/vulkan/BackendVk.cpp:363)
    at operator() (node-webgpu/third_party/dawn/src/dawn/native/vulkan/BackendVk.cpp:363)
    at operator() (node-webgpu/third_party/dawn/src/dawn/native/vulkan/BackendVk.cpp:363)

! Expected adapter enumeration to throw an error, but it did not.
No GPU adapters found.
This could mean:
  - WebGPU is not available on your system"""


@pytest.mark.parametrize(
    ("listed", "gpu"), [(NO_ADAPTER, False), ("", False), ("Detecting GPU adapters...\n[0] NVIDIA H200\nUse -g", True)]
)
def test_a_gpu_is_used_where_one_is_listed(run: Path, monkeypatch: pytest.MonkeyPatch, listed: str, gpu: bool) -> None:
    monkeypatch.setenv("TOOL_ADAPTERS", listed)
    assert find_transform().gpu == gpu


def test_npm_without_a_network_is_told_in_its_own_words_less_its_warnings(run: Path, tmp_path: Path) -> None:
    npm = """
    import sys
    print("npm warn Unknown user config", file=sys.stderr)
    print("npm error code ECONNREFUSED\\nnpm error errno ECONNREFUSED", file=sys.stderr)
    print("npm error FetchError: request to http://r/ failed, reason: connect\\nnpm error     at emit", file=sys.stderr)
    sys.exit(1)
    """
    script(tmp_path / "bin" / "npm", npm)
    with pytest.raises(EnvironmentProblem) as error:
        find_transform(tmp_path / "other")
    reason = "(code ECONNREFUSED, FetchError: request to http://r/ failed, reason: connect); with a network run again"
    assert reason in str(error.value)
    assert not (tmp_path / "other").exists()


def test_what_npm_has_not_finished_is_not_used_the_next_time(run: Path, tmp_path: Path) -> None:
    npm = f"""
    import os, sys
    from pathlib import Path
    command = Path(sys.argv[sys.argv.index("--prefix") + 1], "node_modules", ".bin", "splat-transform")
    command.parent.mkdir(parents=True)
    command.write_text("#!{sys.executable}\\nprint('{VERSION}')")
    sys.exit(1) if not Path("{tmp_path}/whole").exists() else command.chmod(0o755)
    """
    script(tmp_path / "bin" / "npm", npm)
    for _ in range(2):
        with pytest.raises(EnvironmentProblem, match="npm could not install .* run again"):
            find_transform(tmp_path / "other")
    (tmp_path / "whole").touch()
    assert find_transform(tmp_path / "other").command.is_file()
    assert not list(tmp_path.glob(".*"))


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(run: Path, tmp_path: Path) -> None:
    script(tmp_path / "bin" / "npm", "")
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentProblem, match="cannot install .* into .*: .*set XDG_CACHE_HOME to one"):
        find_transform(tmp_path / "file" / "cache")


def test_an_empty_merged_splat_is_a_sentence(run: Path) -> None:
    write_splats(
        run / "merged" / "splat.ply",
        Splats(
            *(np.zeros((0, *s), np.float32) for s in ((3,), (4,), (3,), ())),
            np.zeros((0, 1, 3), np.float32),
            np.zeros((0, 0, 3), np.float32),
        ),
    )
    with pytest.raises(SplatFileError, match="holds no Gaussians, and only ply can say so; splatpipe status"):
        export_run(run, "ply,spz", None, False, print)
    assert export_run(run, "ply", None, False, print)["exports"][0]["size"] > 0
    assert contents(run) == OLD
