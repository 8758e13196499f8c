"""The build of gsplat's kernels, with scripts in the place of the compiler."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest
from doubles.make_request import make_request

from splatpipe.config import load_config
from splatpipe.errors import EnvironmentProblem, Interrupted
from splatpipe.trainers import gsplat_build, gsplat_mcmc
from splatpipe.trainers.base import TrainerInfo
from splatpipe.trainers.gsplat_build import STALE_S, build_environment, ensure_built, first_error
from splatpipe.trainers.gsplat_mcmc import GsplatTrainer
from splatpipe.training import evaluation_device

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
        (
            "gsplat: No CUDA toolkit found. gsplat will be disabled.\nTraceback\nAttributeError: 'NoneType' object",
            "no CUDA toolkit was found",
        ),
        (
            "Traceback (most recent call last):\n  File x\nRuntimeError: \nThe detected CUDA version (12.4) mismatches"
            " the version that was used to compile\nPyTorch (13.0). Please make sure to use the same CUDA versions.\n",
            "RuntimeError: The detected CUDA version (12.4) mismatches the version that was used to compile PyTorch",
        ),
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
    assert build_environment(mine).items() >= {"TORCH_CUDA_ARCH_LIST": "7.5", "MAX_JOBS": "3"}.items()


def executable(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_ninja_beside_python_is_found_though_nobody_activated_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `make demo`, which calls .venv/bin/splatpipe: torch asks the PATH for ninja, and it is not there."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "bin" / "python"))
    assert build_environment({"PATH": str(tmp_path)})["PATH"] == str(tmp_path)
    ninja = executable(tmp_path / "venv" / "bin" / "ninja")
    assert shutil.which("ninja", path=build_environment({"PATH": str(tmp_path)})["PATH"]) == str(ninja)
    own = executable(tmp_path / "ninja")
    assert shutil.which("ninja", path=build_environment({"PATH": str(tmp_path)})["PATH"]) == str(own)


def test_a_wrapper_of_nvcc_does_not_hide_the_toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch takes the folder above nvcc's for the toolkit: with a script in /usr/local/bin no header is found."""
    toolkit = tmp_path / "cuda-13.0"
    (toolkit / "include").mkdir(parents=True)
    (toolkit / "include" / "cuda_runtime.h").touch()
    executable(toolkit / "bin" / "nvcc")
    executable(tmp_path / "local" / "bin" / "nvcc")
    monkeypatch.setattr(gsplat_build, "TOOLKITS", (tmp_path / "nowhere", toolkit))
    wrapper = {"PATH": str(tmp_path / "local" / "bin")}
    assert build_environment(wrapper)["CUDA_HOME"] == str(toolkit)
    assert "CUDA_HOME" not in build_environment({"PATH": str(toolkit / "bin")})
    assert build_environment(wrapper | {"CUDA_HOME": "/mine"})["CUDA_HOME"] == "/mine"
    assert "CUDA_HOME" not in build_environment({"PATH": str(tmp_path)})


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


def test_whoever_renders_for_evaluation_has_the_flags_of_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """splatpipe itself renders hold-out views; with other flags torch would compile for minutes, for it and back."""
    executable(tmp_path / "nvidia-smi", "#!/bin/sh\necho 9.0\n")
    monkeypatch.setattr(os, "environ", {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    monkeypatch.setattr(GsplatTrainer, "probe", lambda self: TrainerInfo("gsplat", True, "", "", frozenset({"cuda"})))
    monkeypatch.setattr(GsplatTrainer, "_ready", set())
    built: list[dict[str, str]] = []
    monkeypatch.setattr(gsplat_mcmc, "ensure_built", lambda environment, say, stop: built.append(dict(environment)))
    config = load_config(None, ["training.device=cuda:1"])
    assert [evaluation_device(config, ignore) for _ in range(2)] == ["cuda:1"] * 2
    assert [one["CUDA_VISIBLE_DEVICES"] for one in built] == ["1"], "once, and on that device"
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == built[0]["TORCH_CUDA_ARCH_LIST"] == "9.0"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_evaluation_goes_to_the_cpu_where_gsplat_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(environment: dict[str, str], say: object, stop: object) -> None:
        raise EnvironmentProblem("gsplat does not work on this GPU: no CUDA toolkit was found")

    monkeypatch.setattr(GsplatTrainer, "probe", lambda self: TrainerInfo("gsplat", True, "", "", frozenset({"cuda"})))
    monkeypatch.setattr(GsplatTrainer, "_ready", set())
    monkeypatch.setattr(gsplat_mcmc, "ensure_built", broken)
    said: list[str] = []
    assert evaluation_device(load_config(None, []), said.append) == "cpu"
    assert said[0].startswith("splats are rendered on the CPU, because gsplat does not work on this GPU")
