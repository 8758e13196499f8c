"""The build of gsplat's kernels, with scripts in the place of the compiler."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest
from doubles.make_request import make_request

from splatpipe.errors import EnvironmentProblem, Interrupted
from splatpipe.trainers.gsplat_build import STALE_S, build_environment, ensure_built, first_error
from splatpipe.trainers.gsplat_mcmc import GsplatTrainer

NINJA = """
[1/3] nvcc -c RelocationCUDA.cu -o RelocationCUDA.cuda.o
FAILED: RelocationCUDA.cuda.o
/usr/include/c++/14/type_traits(612): error: identifier "__bf16" is undefined
/usr/include/c++/14/type_traits(613): error: a later one
2 errors detected in the compilation of "RelocationCUDA.cu".
ninja: build stopped: subcommand failed.
Traceback (most recent call last):
RuntimeError: Error building extension 'gsplat_cuda'
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def ignore(text: str) -> None:
    pass


def test_builds_wait_for_each_other(environment: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    build = f"import time; f = open({str(log)!r}, 'a', 1); f.write('begin '); time.sleep(0.3); f.write('end ')"
    threads = [
        threading.Thread(target=ensure_built, args=(environment, ignore), kwargs={"argv": script(build)})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.read_text().split() == ["begin", "end"] * 3


def test_one_ctrl_c_ends_a_build_and_the_wait_for_somebody_elses(environment: dict[str, str], tmp_path: Path) -> None:
    stop, begun = threading.Event(), tmp_path / "begun"
    build = script(f"import time; open({str(begun)!r}, 'w'); time.sleep(600)")
    ended: list[str] = []

    def wait_for_it() -> None:
        try:
            ensure_built(environment, ignore, argv=build, stop=stop)
        except Interrupted as error:
            ended.append(str(error))

    threads = [threading.Thread(target=wait_for_it) for _ in range(2)]
    for thread in threads:
        thread.start()
    while not begun.exists():
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert ended == ["stopped before gsplat's kernels were compiled; run again to continue"] * 2


def test_a_failed_compile_shows_the_first_error_of_the_compiler(environment: dict[str, str]) -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        ensure_built(environment, ignore, argv=script(f"import sys; print({NINJA!r}); sys.exit(1)"))
    assert '/usr/include/c++/14/type_traits(612): error: identifier "__bf16" is undefined' in str(caught.value)
    assert "a later one" not in str(caught.value)
    assert "training.device=cpu" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x\nfatal error: glm/glm.hpp: No such file or directory\ny", "fatal error: glm/glm.hpp: No such file"),
        ("nvcc fatal   : Unsupported gpu architecture 'compute_121'\nbye", "nvcc fatal   : Unsupported gpu"),
        ("/bin/sh: 1: nvcc: not found\nRuntimeError: Error building", "/bin/sh: 1: nvcc: not found"),
        ("Traceback\nRuntimeError: Ninja is required to load C++ extensions", "RuntimeError: Ninja is required"),
        ("", ""),
    ],
)
def test_the_cause_is_found_in_what_a_build_prints(text: str, line: str) -> None:
    assert first_error(text).startswith(line)


def test_a_stale_lock_is_removed_and_a_fresh_one_is_left_to_its_owner(environment: dict[str, str]) -> None:
    folder = Path(environment["TORCH_EXTENSIONS_DIR"])
    stale, fresh = folder / "py311_cu130" / "gsplat_cuda" / "lock", folder / "py310_cu128" / "gsplat_cuda" / "lock"
    for lock in (stale, fresh):
        lock.parent.mkdir(parents=True)
        lock.touch()
    old = time.time() - 2 * STALE_S
    os.utime(stale, (old, old))
    said: list[str] = []
    ensure_built(environment, said.append, argv=script("pass"))
    assert not stale.exists()
    assert fresh.exists()
    assert any(str(stale) in text for text in said)


def test_a_build_that_waits_for_ever_is_ended_and_the_lock_is_named(environment: dict[str, str]) -> None:
    lock = Path(environment["TORCH_EXTENSIONS_DIR"]) / "gsplat_cuda" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    with pytest.raises(EnvironmentProblem, match="not compiled within") as caught:
        ensure_built(environment, ignore, argv=script("import time; time.sleep(600)"), timeout_s=0.5)
    assert f"delete {lock}" in str(caught.value)


def test_only_the_architectures_that_are_here_are_compiled(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '9.0\\n8.6\\n9.0\\n'\n")
    program.chmod(0o755)
    found = build_environment({"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert found["TORCH_CUDA_ARCH_LIST"] == "8.6;9.0"
    assert int(found["MAX_JOBS"]) >= 1
    mine = {"PATH": str(tmp_path), "TORCH_CUDA_ARCH_LIST": "7.5", "MAX_JOBS": "3"}
    assert build_environment(mine) == mine


def test_a_machine_without_a_driver_leaves_the_choice_to_torch(tmp_path: Path) -> None:
    assert "TORCH_CUDA_ARCH_LIST" not in build_environment({"PATH": str(tmp_path)})


def test_children_compile_with_the_flags_of_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other flags would make each of them compile again."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 9.0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    trainer = GsplatTrainer()
    on_gpu = trainer.command(make_request(tmp_path / "a", device="cuda:1"))
    assert (on_gpu.env["TORCH_CUDA_ARCH_LIST"], on_gpu.env["CUDA_VISIBLE_DEVICES"]) == ("9.0", "1")
    on_cpu = trainer.command(make_request(tmp_path / "b"))
    assert "TORCH_CUDA_ARCH_LIST" not in on_cpu.env
