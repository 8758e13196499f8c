"""Which of splatpipe's training options a build of LichtFeld Studio has, and how they are said to it.

A build aborts on flags it does not know and ignores keys it does not know, so an option that it lacks is refused
before anything trains: no setting is without effect. Flags: trainers.md, A1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

# Option of TrainSettings -> (flag, its argument or "" for a switch), the newest builds' first.
WAYS: dict[str, tuple[tuple[str, str], ...]] = {
    "antialiased": (("enable-mip", ""), ("antialiasing", "")),
    "random_background": (("bg-mode", "random"),),
    "pose_lr": (("pose-opt", "direct"),),  # with LFS's own rate
    "bilateral_lr": (("bilateral-grid", ""),),
    "masks": (("mask-mode", "ignore"),),  # of the data set, not of TrainSettings
}

MIP_BLUR = 0.1  # square pixels: what LFS's rasteriser adds to antialiased Gaussians, where gsplat adds 0.3


def option_arguments(options: Iterable[str], flags: Collection[str]) -> tuple[str, ...]:
    """The arguments that switch on `options`, those that the build with these flags has."""
    words: list[str] = []
    for option in options:
        found = next((way for way in WAYS.get(option, ()) if way[0] in flags), None)
        if found is not None:
            words += [f"--{found[0]}", *filter(None, found[1:])]
    return tuple(words)


def unavailable(options: Iterable[str], flags: Collection[str]) -> tuple[str, ...]:
    """Those of `options`, settings with their section, that the build with these flags cannot do."""
    known = {option: WAYS.get(option.rpartition(".")[2], ()) for option in options}
    return tuple(option for option, ways in known.items() if not any(flag in flags for flag, _ in ways))
