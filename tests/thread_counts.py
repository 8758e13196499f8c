"""Run the same thing with several thread counts."""

from __future__ import annotations

from collections.abc import Iterator

from splatpipe.splatting.raster import set_threads


def thread_counts(*counts: int) -> Iterator[int]:
    """Yield each count while the kernels use that many threads; the default is restored at the end."""
    try:
        for count in counts:
            set_threads(count)
            yield count
    finally:
        set_threads(0)
