"""Create a virtual environment with splatpipe, editable, and the torch that fits this machine.

    python3 tools/bootstrap.py .venv [--extra test]

Runs on any Python 3 so that it can say when the Python is too old; uses nothing but the standard library.
torch comes first: where there is no NVIDIA GPU it must be a CPU build, because the default one for Linux brings
gigabytes of CUDA libraries along.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
OLDEST = (3, 11)
CANDIDATES = ("python3.11", "python3.12", "python3.13", "python3.14", "python3")


class BootstrapError(Exception):
    """One sentence for the user."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Install splatpipe into a virtual environment.")
    parser.add_argument("venv", type=Path)
    parser.add_argument("--extra", action="append", default=[], help="optional dependencies, e.g. test")
    options = parser.parse_args(arguments)
    try:
        python = ensure_venv(options.venv)
        gpu = has_nvidia_gpu()
        install_torch(python, gpu)
        install_splatpipe(python, [*options.extra, *(["cuda"] if gpu else [])])
    except BootstrapError as error:
        print(f"bootstrap: {error}", file=sys.stderr)
        return 2
    return 0


def has_nvidia_gpu(root: Path = Path("/")) -> bool:
    """Whether an NVIDIA driver is loaded (also inside containers, and under WSL)."""
    files = ("proc/driver/nvidia/version", "dev/nvidia0", "dev/nvidiactl", "usr/lib/wsl/lib/nvidia-smi")
    return any((root / file).exists() for file in files)


def find_python() -> str:
    """This interpreter if it is new enough, else a newer one on the PATH."""
    for candidate in (sys.executable, *CANDIDATES):
        if runs(candidate, "-c", f"import sys; sys.exit(sys.version_info < {OLDEST})"):
            return candidate
    raise BootstrapError("Python 3.11 or newer is needed; install it, or name it: make PYTHON=/path/to/python3.12 demo")


def runs(*command: str) -> bool:
    """Whether a command exists and succeeds."""
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def ensure_venv(venv: Path) -> Path:
    """The environment's Python, in a new environment unless one that works is there."""
    python = venv / "bin" / "python"
    if runs(str(python), "-m", "pip", "--version"):
        return python
    base = find_python()
    print(f"bootstrap: creating {venv} with {base}", flush=True)
    if venv.exists():
        shutil.rmtree(venv)
    done = subprocess.run([base, "-m", "venv", str(venv)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BootstrapError(
            f"{base} cannot create an environment; on Debian and Ubuntu, install its python3-venv package "
            f"({(done.stderr or done.stdout).strip()[-200:]})"
        )
    pip(python, "install", "-qq", "--upgrade", "pip")
    return python


def pip(python: Path, *arguments: str, check: bool = True) -> bool:
    """Run pip in the environment. Raises BootstrapError when it fails and `check` is set."""
    done = subprocess.run([str(python), "-m", "pip", *arguments], check=False, capture_output=not check)
    if check and done.returncode != 0:
        raise BootstrapError(f"pip {' '.join(arguments)} failed; what it printed above says why")
    return done.returncode == 0


def pinned_torch() -> str:
    """The version of torch that was tested."""
    for line in CONSTRAINTS.read_text().splitlines():
        if line.startswith("torch=="):
            return line.split("==")[1].strip()
    raise BootstrapError(f"{CONSTRAINTS} pins no torch")


def install_torch(python: Path, gpu: bool) -> None:
    """torch for this machine, unless the pinned version is there already, whatever its build."""
    version = pinned_torch()
    if torch_in(python) == version:
        return
    print(f"bootstrap: installing torch {version} ({'CUDA' if gpu else 'CPU'} build)", flush=True)
    if gpu or sys.platform != "linux":  # elsewhere the default build has no CUDA in it
        pip(python, "install", "-qq", "-c", str(CONSTRAINTS), f"torch=={version}")
        return
    index = os.environ.get("TORCH_INDEX_URL")
    if index:
        pip(python, "install", "-qq", "--index-url", index, f"torch=={version}")
        return
    # CPU builds carry the local version +cpu; pip finds one only where it was configured to.
    if pip(python, "install", "-qq", "-c", str(CONSTRAINTS), f"torch=={version}+cpu", check=False):
        return
    install_cpu_torch_with_uv(python, version)


def torch_in(python: Path) -> str:
    """The installed version without its local part (+cpu); empty when there is none."""
    code = "import importlib.metadata as m; print(m.version('torch'))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip().partition("+")[0]


def install_cpu_torch_with_uv(python: Path, version: str) -> None:
    """uv knows where PyTorch keeps its CPU builds."""
    pip(python, "install", "-qq", "uv")
    command = [str(python), "-m", "uv", "pip", "install", "--python", str(python), "--torch-backend", "cpu"]
    if subprocess.run([*command, f"torch=={version}"], check=False).returncode != 0:
        raise BootstrapError(
            "no CPU build of torch could be had; set TORCH_INDEX_URL to the index for 'CPU' that PyTorch's "
            "'Get started' page shows, and run make again"
        )


def install_splatpipe(python: Path, extras: list[str]) -> None:
    """splatpipe itself, editable, with the tested versions of what it needs."""
    target = str(ROOT) + (f"[{','.join(extras)}]" if extras else "")
    print(f"bootstrap: installing splatpipe{target[len(str(ROOT)) :]}", flush=True)
    pip(python, "install", "-qq", "-c", str(CONSTRAINTS), "-e", target)


if __name__ == "__main__":
    sys.exit(main())
