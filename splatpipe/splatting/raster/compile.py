"""How every CPU kernel is compiled, and where the machine code is kept.

Numba checks a cached function against its own source file only, not against the files it calls, so
the folder name carries a hash of all sources here: an edited or upgraded kernel never meets stale code.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numba.core.config

config: Any = numba.core.config  # its attributes are made at run time
_RASTER = Path(__file__).resolve().parent
_WITH_KERNELS = ("adam.py", "loss.py", "noise.py")  # beside the raster folder


def _source_hash() -> str:
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(_RASTER.glob("*.py")) + [_RASTER.parent / name for name in _WITH_KERNELS]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _candidates() -> list[Path]:
    """Folders to try, best first: beside the source, the user's cache, the system's temporary folder."""
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    user = str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return [
        _RASTER / "__pycache__",
        user_cache / "splatpipe",
        Path(tempfile.gettempdir()) / f"splatpipe-{user}",
    ]


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@functools.cache
def cache_folder() -> Path:
    """Where compiled kernels live. `NUMBA_CACHE_DIR`, when set, is respected."""
    chosen = [Path(config.CACHE_DIR)] if config.CACHE_DIR else _candidates()
    for base in chosen:
        folder = base / f"numba-{_source_hash()}"
        if _writable(folder):
            return folder
    return Path(tempfile.mkdtemp(prefix="splatpipe-numba-"))


def compiled_marker() -> Path:
    """The file that says: every kernel has been compiled for this processor."""
    return cache_folder() / f"compiled-{llvmlite.binding.get_host_cpu_name()}"


def kernel(function: Callable[..., Any]) -> Any:
    """`numba.njit` as all our kernels use it: no GIL, cached, IEEE arithmetic except fused multiply-add."""
    previous, config.CACHE_DIR = config.CACHE_DIR, str(cache_folder())
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"}, boundscheck=False)(
            function
        )
    finally:
        config.CACHE_DIR = previous
