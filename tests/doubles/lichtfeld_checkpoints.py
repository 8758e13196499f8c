"""Checkpoints as each build of LichtFeld Studio writes and restores them: part of the double.

v0.3 and v0.5.0 leave one file a save step, written in place; v0.5.2 one file, replaced when whole. A restored run takes
its parameters from the checkpoint, whatever its command line says, and begins with the step after it.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

HEADER = struct.Struct("<IIiIiIQQ")
MAGIC, FORMAT = 0x4C464B50, 1
STRATEGY = b"mcmc"
BYTES = 64  # of state for each Gaussian, made up


def write_checkpoint(folder: Path, version: str, step: int, count: int, config: dict[str, Any], torn: bool) -> None:
    """`torn` leaves what a kill in the middle of writing leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    single = version == "0.5.2"
    path = folder / ("checkpoint.resume" if single else f"checkpoint_{step}.resume")
    place = path.with_name(path.name + ".tmp") if single else path
    state = struct.pack("<I", len(STRATEGY)) + STRATEGY + b"\x07" * (BYTES * count)
    parameters = json.dumps({"optimization": config, "dataset": {}}).encode()
    begin = HEADER.size + len(state)
    degree = int(config["sh_degree"])
    with place.open("wb") as file:
        file.write(HEADER.pack(MAGIC, FORMAT, step, count, degree, 0, 0, 0))
        file.write(state[: len(state) // 2] if torn else state)
        if torn:
            return
        file.write(parameters)
        file.seek(0)
        file.write(HEADER.pack(MAGIC, FORMAT, step, count, degree, 0, begin, len(parameters)))
    if single:
        place.replace(path)


def read_checkpoint(path: Path) -> tuple[int, int, dict[str, Any], str]:
    """Step, Gaussians and parameters of a checkpoint, and what is wrong with it ("" if nothing)."""
    try:
        data = path.read_bytes()
    except OSError:
        return 0, 0, {}, f"Failed to open: {path}"
    if len(data) < HEADER.size:
        return 0, 0, {}, "Invalid checkpoint: truncated header"
    magic, version, step, count, _, _, begin, length = HEADER.unpack_from(data)
    if magic != MAGIC or version != FORMAT:
        return 0, 0, {}, "Invalid checkpoint: wrong magic or version"
    if not length or begin + length > len(data):
        return 0, 0, {}, "Invalid checkpoint: truncated parameter JSON"
    return step, count, json.loads(data[begin : begin + length])["optimization"], ""
