"""What this machine can do for splatpipe, and what to do about what it cannot."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from splatpipe.errors import EnvironmentProblem
from splatpipe.machine import memory_limit, nvidia_gpus, usable_cores
from splatpipe.scene.library import load_pycolmap

Status = Literal["ok", "warn", "missing"]
GB = 1e9
MIN_MEMORY_GB, MIN_DISK_GB = 8, 20


@dataclass(frozen=True)
class Row:
    """One part of the machine: what was found, and what to do when that is not enough."""

    name: str
    status: Status
    detail: str
    advice: str = ""


@dataclass(frozen=True)
class Report:
    """All rows, in a fixed order."""

    rows: tuple[Row, ...]

    def __getitem__(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def to_json(self) -> dict[str, Any]:
        return {"rows": [dataclasses.asdict(row) for row in self.rows]}


def examine(folder: Path | None = None, lichtfeld: str | None = None) -> Report:
    """Look at everything a run may need. Never raises; may take minutes when gsplat compiles for the first time.

    `folder` is where runs would be written (default: the working folder), `lichtfeld` the configured binary.
    """
    checks: dict[str, Callable[[], Row]] = {
        "python": _python,
        "cores": _cores,
        "memory": _memory,
        "disk": lambda: _disk(folder or Path.cwd()),
        "gpu": _gpu,
        "torch": _torch,
        "nvcc": _nvcc,
        "gsplat": _gsplat,
        "numba": _numba,
        "pycolmap": _pycolmap,
        "lichtfeld": lambda: _lichtfeld(lichtfeld),
    }
    return Report(tuple(_guarded(name, check) for name, check in checks.items()))


def _guarded(name: str, check: Callable[[], Row]) -> Row:
    """A check that itself fails is a finding, not the end of the report."""
    try:
        return check()
    except Exception as error:
        return Row(name, "warn", f"Could not be examined ({type(error).__name__}: {error}).")


def _python() -> Row:
    detail = f"{platform.python_implementation()} {platform.python_version()} on {platform.platform()}"
    return Row("python", "ok", detail)


def _cores() -> Row:
    usable, present = usable_cores(), os.cpu_count() or 1
    return Row("cores", "ok", f"{usable} of {present} usable" if usable < present else f"{usable} usable")


def _memory() -> Row:
    limit, free = memory_limit(), psutil.virtual_memory().available
    detail = f"{limit / GB:.1f} GB may be used, {min(free, limit) / GB:.1f} GB are free"
    if limit < MIN_MEMORY_GB * GB:
        return Row(
            "memory", "warn", detail, "Keep patches small: patching.max_cameras, training.max_cap and max_width."
        )
    return Row("memory", "ok", detail)


def _disk(folder: Path) -> Row:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    detail = f"{free / GB:.1f} GB free at {folder}"
    if not os.access(folder, os.W_OK):
        return Row("disk", "warn", f"{folder} is not writable", "Put the run elsewhere with --out.")
    if free < MIN_DISK_GB * GB:
        return Row(
            "disk", "warn", detail, "A patch of a million Gaussians needs about 1.5 GB; use --out on a larger disk."
        )
    return Row("disk", "ok", detail)


def _gpu() -> Row:
    gpus, why = nvidia_gpus()
    if not gpus:
        return Row("gpu", "missing", why, "Without one, patches train on the CPU: slower, same result.")
    names = "; ".join(f"{gpu.name}, {gpu.memory_free / GB:.1f} of {gpu.memory_total / GB:.1f} GB free" for gpu in gpus)
    return Row("gpu", "ok", f"{names}; driver {gpus[0].driver}")


def _torch() -> Row:
    try:
        import torch
    except Exception as error:
        advice = "Run `make demo` or install splatpipe again."
        return Row("torch", "missing", f"Cannot be imported ({_last_line(str(error))}).", advice)
    if torch.version.cuda is None:
        return _cpu_torch(torch.__version__)
    if torch.cuda.is_available():
        return Row("torch", "ok", f"{torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.device_count()} GPU")
    advice = "Update the driver, or check CUDA_VISIBLE_DEVICES."
    return Row("torch", "warn", f"{torch.__version__}, CUDA {torch.version.cuda}, but it can use no GPU", advice)


def _cpu_torch(version: str) -> Row:
    if nvidia_gpus()[0]:
        advice = "Delete .venv and run `make demo` again: it installs the CUDA build where it sees a GPU."
        return Row("torch", "warn", f"{version}, a CPU build although there is a GPU", advice)
    return Row("torch", "ok", f"{version}, CPU build")


def _nvcc() -> Row:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=f"{home}/bin") if home else None
    nvcc = nvcc or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        advice = "Only gsplat on a GPU needs it, to compile its kernels: install the CUDA toolkit of torch's version."
        return Row("nvcc", "missing", "No CUDA compiler found.", advice)
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    release = next((line.split("release ")[1] for line in text.splitlines() if "release " in line), "unknown version")
    return Row("nvcc", "ok", f"{release} at {nvcc}")


def _gsplat() -> Row:
    version = _version("gsplat")
    if version is None:
        advice = "Only GPUs need it: pip install 'splatpipe[cuda]'."
        return Row("gsplat", "missing", "Not installed.", advice)
    if not _torch_has_cuda():
        return Row("gsplat", "warn", f"{version}, but no GPU to use it on", "Training uses splatpipe's CPU rasteriser.")
    from splatpipe.trainers.gsplat_build import build_environment, ensure_built

    try:
        ensure_built(build_environment(os.environ), lambda text: print(text, file=sys.stderr))
    except EnvironmentProblem as problem:
        return Row("gsplat", "missing", f"{version}: {problem}", "Patches train on the CPU meanwhile: device=cpu.")
    return Row("gsplat", "ok", f"{version} rendered a 64x64 picture")


def _torch_has_cuda() -> bool:
    try:
        import torch
    except Exception:
        return False
    return torch.cuda.is_available()


def _numba() -> Row:
    from splatpipe.splatting.raster.compile import cache_folder

    detail = f"{_version('numba')}, compiled kernels are kept in {cache_folder()}"
    if cache_folder().name.startswith("splatpipe-numba-"):  # a temporary folder, made for this process only
        advice = "Set NUMBA_CACHE_DIR to a writable folder, or every run compiles for a minute."
        return Row("numba", "warn", "No folder for compiled kernels is writable.", advice)
    return Row("numba", "ok", detail)


def _pycolmap() -> Row:
    pycolmap = load_pycolmap()
    return Row("pycolmap", "ok", f"{pycolmap.__version__}")


def _lichtfeld(setting: str | None) -> Row:
    from splatpipe.trainers.lichtfeld import LichtfeldTrainer

    info = LichtfeldTrainer(Path(setting) if setting else None).probe()
    if info.available:
        return Row("lichtfeld", "ok", f"{info.version}, {info.detail}")
    advice = "Optional second trainer: put it on the PATH, or name it with training.lfs_binary or $LICHTFELD_BIN."
    return Row("lichtfeld", "missing", info.detail, advice)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
