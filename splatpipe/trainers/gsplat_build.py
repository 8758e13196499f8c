"""gsplat's CUDA kernels, compiled once and by one process, before any child starts.

The wheel of gsplat holds sources: torch compiles them at first use, into `TORCH_EXTENSIONS_DIR`. Left to themselves
all children would begin that at once, for every architecture torch knows, and a build that was killed leaves a lock
on which later ones wait for ever (trainers.md, B5).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from splatpipe.errors import EnvironmentProblem, Interrupted
from splatpipe.machine import usable_cores

TIMEOUT_S = 3600.0
POLL_S = 0.5
STALE_S = 600.0  # a lock beside which nothing has been written for so long belongs to nobody
TELL_AFTER_S, TELL_EVERY_S = 10.0, 60.0
BYTES_PER_JOB = 4 << 30  # of one nvcc
COMPILER_ERROR = re.compile(r"(?:^|[\s:])(?:fatal )?error(?: ?#?\w+)?:|nvcc fatal|: not found$")
PYTHON_ERROR = re.compile(r"^[\w.]*(?:Error|Exception)\b")
NO_TOOLKIT = "No CUDA toolkit found"  # gsplat says so and goes on without its kernels
TOOLKIT_HEADER = Path("include", "cuda_runtime.h")
TOOLKITS = (Path("/usr/local/cuda"), Path("/opt/cuda"))

PROBE = """
import torch, gsplat
one = dict(device="cuda")
image, alpha, _ = gsplat.rasterization(
    torch.tensor([[0.0, 0.0, 2.0]], **one), torch.tensor([[1.0, 0.0, 0.0, 0.0]], **one),
    torch.full((1, 3), 0.3, **one), torch.ones(1, **one), torch.ones(1, 3, **one), torch.eye(4, **one)[None],
    torch.tensor([[[64.0, 0, 32], [0, 64.0, 32], [0, 0, 1]]], **one), 64, 64)
center = float(image[0, 32, 32, 0])
assert center > 0.9, f"the centre of a white Gaussian came out as {center}"
"""


def build_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with the architectures that are present and a bearable number of compilers, unless it says both.

    With ninja on the PATH, too, and CUDA_HOME where torch would guess a folder without the toolkit's headers. Build,
    children, and whoever else renders with gsplat must agree on it: torch compiles anew when the flags differ.
    """
    found = dict(environment) | _ninja(environment) | _toolkit(environment)
    if "TORCH_CUDA_ARCH_LIST" not in found and (present := _architectures(environment)):
        found["TORCH_CUDA_ARCH_LIST"] = ";".join(present)
    jobs = min(usable_cores(), psutil.virtual_memory().available // BYTES_PER_JOB)
    found.setdefault("MAX_JOBS", str(max(1, jobs)))
    return found


def _ninja(environment: Mapping[str, str]) -> dict[str, str]:
    """The PATH with ninja on it: pip puts it beside this Python, where torch looks only in an activated environment."""
    path, beside = environment.get("PATH", os.defpath), str(Path(sys.executable).parent)
    if shutil.which("ninja", path=path) or not shutil.which("ninja", path=beside):
        return {}
    return {"PATH": f"{path}{os.pathsep}{beside}"}


def _toolkit(environment: Mapping[str, str]) -> dict[str, str]:
    """CUDA_HOME, if torch would get it wrong: it takes the folder above that of `nvcc`, be that a mere wrapper."""
    if environment.get("CUDA_HOME") or environment.get("CUDA_PATH"):
        return {}
    nvcc = shutil.which("nvcc", path=environment.get("PATH"))
    if nvcc is None or (Path(nvcc).parents[1] / TOOLKIT_HEADER).exists():
        return {}
    places = (Path(nvcc).resolve().parents[1], *TOOLKITS)
    home = next((place for place in places if (place / TOOLKIT_HEADER).exists()), None)
    return {"CUDA_HOME": str(home)} if home else {}


def _architectures(environment: Mapping[str, str]) -> list[str]:
    """Compute capabilities of the GPUs here, "9.0"; asked of the driver, lest this process opens a CUDA context."""
    program = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if program is None:
        return []
    asked = [program, "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return sorted({line.strip() for line in done.stdout.splitlines() if re.fullmatch(r"\d+\.\d+", line.strip())})


def ensure_built(
    environment: Mapping[str, str],
    say: Callable[[str], None],
    *,
    stop: threading.Event | None = None,
    argv: Sequence[str] = (sys.executable, "-c", PROBE),
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Compile the kernels if need be, and render a picture with them.

    One process at a time; others wait. Raises EnvironmentProblem, with the first error of the compiler, when they do
    not compile or do not work, and with the lock's path when the build does not end; Interrupted when `stop` is set.
    """
    folder, stop = _extensions(environment), stop or threading.Event()
    with _locked(_own_lock(environment), stop):
        for lock in _locks(folder):
            if time.time() - _last_written(lock.parent) > STALE_S:
                lock.unlink(missing_ok=True)
                say(f"removed {lock}, which a build that was killed had left")
        with tempfile.TemporaryFile() as output:
            status = _watched(argv, environment, output.fileno(), say, timeout_s, stop)
            output.seek(0)
            text = output.read().decode("utf-8", "replace")
    if status is None:
        held = "".join(f"; delete {lock} if no build is running" for lock in _locks(folder)[:1])
        raise EnvironmentProblem(f"gsplat's CUDA kernels were not compiled within {timeout_s:.0f} s{held}.")
    if status != 0:
        raise EnvironmentProblem(
            f"gsplat does not work on this GPU: {first_error(text) or f'its test ended with status {status}'}; "
            "it needs nvcc of torch's CUDA version, ninja and a C++ compiler (splatpipe doctor), or train with "
            "training.device=cpu."
        )


def first_error(text: str) -> str:
    """The first line in which a compiler complains, else what Python ended with: torch's report buries the cause."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if NO_TOOLKIT in text:
        return "no CUDA toolkit was found (nvcc is not on the PATH, and CUDA_HOME names none)"
    if complaint := next((line for line in lines if COMPILER_ERROR.search(line)), None):
        return complaint
    last = max((i for i, line in enumerate(lines) if PYTHON_ERROR.match(line)), default=len(lines) - 1)
    return " ".join(lines[last:])


@contextlib.contextmanager
def _locked(path: Path, stop: threading.Event) -> Iterator[None]:
    """Hold the lock, however long others build, unless `stop` is set meanwhile."""
    lock = FileLock(path)
    while True:
        try:
            lock.acquire(timeout=POLL_S)
            break
        except Timeout:
            _check(stop)
    try:
        yield
    finally:
        lock.release()


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise Interrupted("stopped before gsplat's kernels were compiled; run again to continue")


def _watched(
    argv: Sequence[str],
    environment: Mapping[str, str],
    output: int,
    say: Callable[[str], None],
    timeout_s: float,
    stop: threading.Event,
) -> int | None:
    """Exit status of the build; None when it took too long and was ended."""
    began, told = time.monotonic(), 0.0
    process = subprocess.Popen(
        argv, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    )
    try:
        while True:
            try:
                return process.wait(timeout=POLL_S)
            except subprocess.TimeoutExpired:
                passed = time.monotonic() - began
            _check(stop)
            if passed > timeout_s:
                return None
            if passed - told >= (TELL_EVERY_S if told else TELL_AFTER_S):
                told = passed
                where = environment.get("TORCH_CUDA_ARCH_LIST", "this GPU")
                say(f"compiling gsplat's CUDA kernels for {where}, once for this machine ({passed:.0f} s so far)")
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the build with its compilers, so that nothing goes on writing into the folder."""
    if process.poll() is not None:
        return
    for one in (*psutil.Process(process.pid).children(recursive=True), process):
        one.kill()
    process.wait()


def _extensions(environment: Mapping[str, str]) -> Path:
    home = Path(environment.get("HOME") or Path.home())
    return Path(environment.get("TORCH_EXTENSIONS_DIR") or home / ".cache" / "torch_extensions")


def _locks(folder: Path) -> list[Path]:
    """Where torch's extension builder locks gsplat's build folder, directly below or in one for each torch."""
    return [path for pattern in ("gsplat_cuda*/lock", "*/gsplat_cuda*/lock") for path in folder.glob(pattern)]


def _last_written(folder: Path) -> float:
    return max((path.stat().st_mtime for path in folder.iterdir()), default=0.0)


def _own_lock(environment: Mapping[str, str]) -> Path:
    folder = _extensions(environment)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentProblem(
            f"{folder}: gsplat's kernels cannot be kept there ({error.strerror}); set TORCH_EXTENSIONS_DIR."
        ) from error
    return folder / "splatpipe-gsplat.lock"
