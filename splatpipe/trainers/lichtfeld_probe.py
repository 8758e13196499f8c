"""Which LichtFeld Studio is installed, and what it accepts: asked once, remembered by the binary's hash."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from splatpipe.errors import EnvironmentProblem
from splatpipe.files import read_json, write_json
from splatpipe.trainers.lichtfeld_flags import era, missing, parse_help

NAMES = ("LichtFeld-Studio", "lichtfeld-studio", "LichtFeldStudio", "lichtfeld")
VARIABLE = "LICHTFELD_BIN"
ASK_S = 60.0  # for --help; a cold start loads a gigabyte of libraries
SETTING = "training.lfs_binary"


@dataclass(frozen=True)
class Binary:
    """A LichtFeld Studio that answers: its version in words and its long flags."""

    path: Path
    version: str
    flags: frozenset[str]


def find_binary(setting: Path | None) -> Path:
    """The executable from the setting, else $LICHTFELD_BIN, else PATH; EnvironmentProblem if there is none."""
    named = str(setting) if setting else os.environ.get(VARIABLE, "")
    if not named:
        found = next(filter(None, map(shutil.which, NAMES)), None)
        if found is None:
            raise EnvironmentProblem(
                f"no LichtFeld Studio found: {NAMES[0]} is not on PATH; install it, or name it with "
                f"{SETTING} or ${VARIABLE}."
            )
        return Path(found).resolve()
    source = SETTING if setting else f"${VARIABLE}"
    path = Path(shutil.which(named) or named).expanduser()
    if path.is_dir():
        path = next((path / name for name in NAMES if (path / name).is_file()), path)
    if not path.is_file():
        raise EnvironmentProblem(f"{source}: there is no LichtFeld Studio at {path}; correct the path.")
    return path.resolve()


def ask(path: Path, cache: Path | None = None) -> Binary:
    """What the binary at `path` is, from the cache when this very file has answered before.

    EnvironmentProblem, with what to do, when it does not start or is something else. Only answers are
    remembered: a machine can be repaired.
    """
    store = (cache or cache_folder()) / f"{_digest(path)}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = read_json(store)
        return Binary(path, str(known["version"]), frozenset(known["flags"]))
    flags = parse_help(_help(path))
    if lacking := missing(flags):
        raise EnvironmentProblem(
            f"{path}: its --help does not offer --{', --'.join(lacking)}; this is not a LichtFeld Studio that "
            "can train without a screen. Correct the path, or install v0.3 or later."
        )
    version = _version(path) if "version" in flags else era(flags)
    with contextlib.suppress(OSError):
        write_json(store, {"version": version, "flags": sorted(flags)})
    return Binary(path, version, flags)


def cache_folder() -> Path:
    """Where answers are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "splatpipe" / "lichtfeld"


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()[:32]
    except OSError as error:
        raise EnvironmentProblem(f"{path}: cannot be read ({error.strerror}).") from error


def _help(path: Path) -> str:
    status, text = _run(path, "--help")
    # Builds have answered --help with 0 and with 1.
    if status not in (0, 1) or "--" not in text:
        raise EnvironmentProblem(f"{path}: does not start. {explain(status, text)}")
    return text


def _version(path: Path) -> str:
    status, text = _run(path, "--version")
    lines = [line.strip() for line in text.splitlines() if re.search(r"\d+\.\d+", line)]
    return lines[0] if status == 0 and lines else "unknown version"


def _run(path: Path, flag: str) -> tuple[int, str]:
    try:
        done = subprocess.run(
            [str(path), flag],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=ASK_S,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        raise EnvironmentProblem(
            f"{path}: {flag} did not answer within {ASK_S:g} s; run it by hand to see what it waits for."
        ) from error
    except PermissionError as error:
        raise EnvironmentProblem(f"{path}: is not executable; run chmod +x on it.") from error
    except OSError as error:
        raise EnvironmentProblem(
            f"{path}: cannot be started ({error.strerror}); it was built for another kind of machine or is damaged."
        ) from error
    return done.returncode, done.stdout.decode("utf-8", "replace")


def explain(status: int, text: str) -> str:
    """Why a binary did not start, and what helps, from its exit status and what it said."""
    library = re.search(r"error while loading shared libraries: ([^\s:]+)", text)
    if library and library[1].startswith(("libcuda.", "libnvidia")):
        return f"{library[1]} is missing: install the NVIDIA driver (570 or newer), or run where there is a GPU."
    if library:
        return f"The shared library {library[1]} is missing: install it, or add its folder to LD_LIBRARY_PATH."
    if version := re.search(r"version [`']?((?:GLIBC|GLIBCXX|CXXABI)_[\d.]+)[`']? not found", text):
        return f"It needs {version[1]}: install a newer system or run time (GCC 14), or a build made for this system."
    if re.search(r"CUDA driver version is insufficient|no CUDA-capable device", text):
        return "The NVIDIA driver is missing or too old: install 570 or newer."
    if status == -signal.SIGILL:
        return "It was built for another processor (illegal instruction)."
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return f"It ended with {how}: {last}"
