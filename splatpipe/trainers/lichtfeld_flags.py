"""What the builds of LichtFeld Studio accept on their command line, as data (trainers.md, A1).

A build aborts on the first flag it does not know, and every release renamed some, so nothing is decided by
version numbers: the long flags in the binary's own `--help` are its capabilities.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DEFAULT_MAX_WIDTH = 3840  # pixels; what every build uses without --max-width
OLD_MAX_WIDTH = 4096  # pixels; builds before v0.5 refuse more

# How the kinds of builds are told apart, newest first: the flags that appeared with them.
ERAS = (
    (frozenset({"export"}), "development build with .licht projects"),
    (frozenset({"version", "centralize"}), "v0.5.2 or later"),
    (frozenset({"version"}), "v0.5"),
    (frozenset({"init"}), "v0.3 or v0.4"),
    (frozenset({"pose-opt"}), "before v0.3"),
)


@dataclass(frozen=True)
class Plan:
    """One run in splatpipe's words; paths are absolute."""

    data: Path
    output: Path
    config: Path
    iterations: int
    max_cap: int
    max_width: int = 0  # pixels of the widest training image; 0: as it is
    spare_memory: bool = False  # the decoded photographs would not fit into the memory allowed for them
    tile_mode: int = 1
    resume: Path | None = None  # a checkpoint to go on from


@dataclass(frozen=True)
class Option:
    """One flag. `value` gives its argument, "" for a switch, or None to leave the flag out."""

    flag: str
    value: Callable[[Plan], str | None]
    needed: bool = False  # without it a build cannot do what we ask
    joined: bool = False  # written --flag=value


def _switch(plan: Plan) -> str:
    return ""


OPTIONS = (
    Option("headless", _switch, needed=True),
    Option("train", _switch),
    Option("data-path", lambda plan: str(plan.data), needed=True),
    Option("output-path", lambda plan: str(plan.output), needed=True),
    Option("config", lambda plan: str(plan.config), needed=True),
    Option("iter", lambda plan: str(plan.iterations), needed=True),
    # Builds since v0.5.2 train another strategy when the flag is absent, one that ignores init_scaling.
    Option("strategy", lambda plan: "mcmc", needed=True),
    Option("max-cap", lambda plan: str(plan.max_cap), needed=True),
    Option("resume", lambda plan: str(plan.resume) if plan.resume else None),
    Option("images", lambda plan: "images"),
    Option("max-width", lambda plan: str(plan.max_width) if plan.max_width else None),
    Option("tile-mode", lambda plan: str(plan.tile_mode) if plan.tile_mode != 1 else None),
    Option("no-cpu-cache", lambda plan: "" if plan.spare_memory else None),
    Option("centralize", lambda plan: "off", joined=True),  # anything else would move the coordinates
    Option("no-save-eval-images", _switch),
    Option("no-splash", _switch),
    Option("no-interop", _switch),
    Option("output-name", lambda plan: "splat"),
    Option("export", lambda plan: "ply"),  # where it exists, no PLY is written without it
)

HEALTH_LINES_SINCE = "version"  # builds with this flag print relocations at log level debug


def parse_help(text: str) -> frozenset[str]:
    """The long flags, without dashes, that a `--help` text offers.

    Only the option column counts: descriptions name flags of other programs and of other versions.
    """
    found: set[str] = set()
    for line in text.splitlines():
        if line.lstrip().startswith("-"):
            column = re.split(r"\s{2,}", line.strip())[0]
            found.update(re.findall(r"(?<![\w-])--([A-Za-z][\w-]*)", column))
    return frozenset(found)


def era(flags: frozenset[str]) -> str:
    """What kind of build has these flags, in words."""
    return next((name for marks, name in ERAS if marks <= flags), "unknown build")


def missing(flags: frozenset[str]) -> list[str]:
    """Flags we cannot do without that a build lacks."""
    return [option.flag for option in OPTIONS if option.needed and option.flag not in flags]


def arguments(plan: Plan, flags: frozenset[str]) -> tuple[str, ...]:
    """The arguments of `plan` for a build with these flags; those it does not know are left out."""
    words: list[str] = []
    for option in OPTIONS:
        value = option.value(plan) if option.flag in flags else None
        if value is None:
            continue
        if option.joined:
            words.append(f"--{option.flag}={value}")
        else:
            words += [f"--{option.flag}", value] if value else [f"--{option.flag}"]
    if HEALTH_LINES_SINCE in flags and "log-level" in flags:
        words += ["--log-level", "debug"]
    return tuple(words)


def width_limit(widest: int, wanted: int, flags: frozenset[str]) -> int:
    """The --max-width that trains images `widest` pixels wide at `wanted` pixels; 0 where none is needed."""
    if wanted >= widest and widest <= DEFAULT_MAX_WIDTH:
        return 0
    return wanted if "version" in flags else min(wanted, OLD_MAX_WIDTH)
