"""Whether the splat that a trainer left is whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from splatpipe.splatting.ply import SplatFileError, read_header

ROWS = 1 << 16


class NonFiniteSplat(ValueError):
    """A whole splat file with NaN or infinite values in it."""


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
    for start in range(0, header.count, ROWS):
        block = rows[start : start + ROWS]
        for name in names:
            if not np.isfinite(block[name]).all():
                row = start + int(np.flatnonzero(~np.isfinite(block[name]))[0])
                raise NonFiniteSplat(f"{path.name}: {name} of Gaussian {row} of {header.count} is not finite.")
    return header.count
