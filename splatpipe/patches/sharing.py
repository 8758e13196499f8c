"""Into how many cells so many cameras go, and how many each takes."""

from __future__ import annotations

import math

from splatpipe.patches.settings import PatchingSettings


def most_cells(cameras: int, settings: PatchingSettings) -> int:
    """Cells at most for so many home cameras, for the sake of views: `max_extra` above the fewest that the cap allows.

    A `reserve` that needs more than that was asked for.
    """
    fewest = max(math.ceil(cameras / settings.max_cameras), 1)
    return math.floor(max(1 + settings.max_extra, 1 / (1 - settings.reserve)) * fewest + 1e-9)


def cells_needed(cameras: int, settings: PatchingSettings) -> int:
    """Cells needed for so many home cameras, with the reserve for neighbours' views kept free.

    Rounding up must not cost more than the reserve is worth: where it would, the reserve gives way.
    """
    fewest = max(math.ceil(cameras / settings.max_cameras), 1)
    return max(min(math.ceil(cameras / _reserved(settings)), most_cells(cameras, settings)), fewest)


def _reserved(settings: PatchingSettings) -> int:
    """Home cameras of one cell when the reserve is kept free."""
    return max(settings.max_cameras - math.floor(settings.reserve * settings.max_cameras), 1)


def room_of_one(cameras: int, pieces: int, settings: PatchingSettings) -> int:
    """Home cameras of one of the cells into which so many are to go."""
    return max(_reserved(settings), min(math.ceil(cameras / pieces), settings.max_cameras))


def shares(pieces: int, left: int, right: int, settings: PatchingSettings) -> tuple[int, int]:
    """How many pieces each half becomes: as planned if its cameras fit, else as many as they need."""
    room, planned = room_of_one(left + right, pieces, settings), pieces // 2
    if left <= planned * room and right <= (pieces - planned) * room:
        return min(planned, left), min(pieces - planned, right)
    return cells_needed(left, settings), cells_needed(right, settings)
