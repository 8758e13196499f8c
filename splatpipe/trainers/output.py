"""Whether the splat that a trainer left is whole."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from splatpipe.splatting.ply import SplatFileError, read_header

ROWS = 1 << 16


DEAD_SHARE = 0.75  # of all Gaussians; as the loop's guard (trainers.md D, FV #323, GS #1040)


class NonFiniteSplat(ValueError):
    """A whole splat file with NaN or infinite values in it."""


class CollapsedSplat(ValueError):
    """A whole splat file whose Gaussians have mostly faded away."""


def check_splat(path: Path) -> int:
    """The number of Gaussians in the PLY at `path`.

    ValueError when it is missing, not as long as its header says, or empty; NonFiniteSplat when a value
    in it is not finite.
    """
    if not path.is_file():
        raise ValueError(f"there is no {path.name} in {path.parent.name}.")
    try:
        header = read_header(path)
    except SplatFileError as error:
        raise ValueError(str(error)) from error
    if header.count == 0:
        raise ValueError(f"{path.name} holds no Gaussian (element vertex 0).")
    rows = np.memmap(path, header.dtype, mode="r", offset=header.offset, shape=(header.count,))
    names = [name for name, kind in header.properties if kind.startswith("<f")]
    plain = all(kind == "<f4" for _, kind in header.properties)
    for start in range(0, header.count, ROWS):
        block = rows[start : start + ROWS]
        if plain and np.isfinite(block.view("<f4")).all():  # in the order of memory: ten times faster than by column
            continue
        for name in names:
            if not np.isfinite(block[name]).all():
                row = start + int(np.flatnonzero(~np.isfinite(block[name]))[0])
                raise NonFiniteSplat(f"{path.name}: {name} of Gaussian {row} of {header.count} is not finite.")
    return header.count


def check_alive(path: Path, min_opacity: float) -> None:
    """CollapsedSplat when most Gaussians of the whole splat at `path` are not more opaque than `min_opacity`."""
    header = read_header(path)
    rows = np.memmap(path, header.dtype, mode="r", offset=header.offset, shape=(header.count,))
    bound = math.log(min_opacity / (1 - min_opacity)) + 1e-4  # the file holds logits in single precision
    dead = sum(int((rows[i : i + ROWS]["opacity"] <= bound).sum()) for i in range(0, header.count, ROWS))
    if dead > DEAD_SHARE * header.count:
        raise CollapsedSplat(
            f"{dead} of {header.count} Gaussians in {path.name} have faded to opacity {min_opacity:g} or less."
        )
