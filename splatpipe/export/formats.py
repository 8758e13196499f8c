"""Which formats there are, and which options each is written with."""

from __future__ import annotations

from dataclasses import dataclass

from splatpipe.errors import ConfigError

SOG_LIMIT = 45_000_000  # Gaussians; files beyond 45 to 58 million fail, because WebP textures end at 16383 pixels
HARMONICS_ON_CPU = 20_000  # Gaussians whose SH bands are clustered without a GPU within a minute; 500 k took over 400 s
LEVELS = (100, 40, 15)  # per cent of the Gaussians in each level of detail
DECIMATED = 2_000_000  # above it decimation on one core takes too long


@dataclass(frozen=True)
class Format:
    """A format by its name on the command line."""

    name: str
    file: str  # below the folder of exports
    textures: bool = False  # packed into textures like SOG: SH bands are clustered by k-means, one core without a GPU
    single_texture: bool = False  # one set of textures holds everything, hence a limit


@dataclass(frozen=True)
class Recipe:
    """A format as it is going to be written, and what was decided on the way, in sentences."""

    format: Format
    arguments: tuple[str, ...]  # actions; the input stands before them, the output after
    inputs: int  # how often the input is named: once for each level of detail
    notes: tuple[str, ...]


FORMATS = {
    one.name: one
    for one in (
        Format("ply", "splat.ply"),
        Format("compressed", "splat.compressed.ply"),
        Format("spz", "splat.spz"),
        Format("sog", "splat.sog", textures=True, single_texture=True),
        Format("html", "splat.html", textures=True, single_texture=True),
        Format("lod", "lod/lod-meta.json", textures=True),
    )
}


def parse_formats(text: str) -> tuple[Format, ...]:
    """From `sog,spz`. Raises `ConfigError` for a format that there is not."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise ConfigError(f"--to: {', '.join(unknown) or 'nothing'} is no format; there are {', '.join(FORMATS)}")
    return tuple(FORMATS[name] for name in names)


def recipe(wanted: Format, gaussians: int, sh_degree: int, gpu: bool) -> Recipe:
    """How to write `wanted`; another format where this one cannot hold so many Gaussians."""
    notes, chosen = [], wanted
    if wanted.single_texture and gaussians > SOG_LIMIT:
        chosen = FORMATS["lod"]
        notes.append(f"{gaussians} Gaussians are too many for one {wanted.name} (about {SOG_LIMIT}): written as lod")
    actions: tuple[str, ...] = ()
    if chosen.textures and sh_degree and not gpu and gaussians > HARMONICS_ON_CPU:
        actions = ("--filter-harmonics", "0")
        notes.append(f"{chosen.name} without view-dependent colour: there is no GPU to compress it; spz keeps it")
    if chosen.name != "lod":
        return Recipe(chosen, actions, 1, tuple(notes))
    levels = LEVELS if gaussians <= DECIMATED or gpu else LEVELS[:1]
    if len(levels) == 1:
        notes.append(f"one level of detail, in tiles: {gaussians} Gaussians take too long to decimate without a GPU")
    return Recipe(chosen, actions, len(levels), tuple(notes))
