"""Gaussians in PLY files, in the layout of the INRIA release that every viewer and trainer reads.

A row is `x y z nx ny nz f_dc_0..2 f_rest_0.. opacity scale_0..2 rot_0..3`, float32, little endian:
log scales, logit opacities, quaternions wxyz, and `f_rest` channel-major (all red coefficients,
then green, then blue). Other property orders and types are accepted on reading; this layout is written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from splatpipe.errors import SplatpipeError
from splatpipe.files import atomic_path

if TYPE_CHECKING:
    from splatpipe.scene.arrays import Similarity

CHUNK_ROWS = 1 << 17  # 31 MB of SH 3 rows
MAX_HEADER_BYTES = 1 << 16
COUNT_DIGITS = 20

TYPES = {
    **{"float": "<f4", "float32": "<f4", "double": "<f8", "float64": "<f8"},
    **{"char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "<i2", "int16": "<i2"},
    **{"ushort": "<u2", "uint16": "<u2", "int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4"},
}
MEANS = ("x", "y", "z")
NORMALS = ("nx", "ny", "nz")
SH0 = ("f_dc_0", "f_dc_1", "f_dc_2")
SCALES = ("scale_0", "scale_1", "scale_2")
QUATS = ("rot_0", "rot_1", "rot_2", "rot_3")


class SplatFileError(SplatpipeError):
    """A splat file that is truncated, foreign, or not what its header says."""


@dataclass(frozen=True, eq=False)
class Splats:
    """N Gaussians with K SH coefficients a channel, float32, parametrised as they are trained."""

    means: NDArray[np.float32]  # (N, 3)
    quats: NDArray[np.float32]  # (N, 4) wxyz, not necessarily normalised
    scales: NDArray[np.float32]  # (N, 3) log of the standard deviations
    opacities: NDArray[np.float32]  # (N,) logits
    sh0: NDArray[np.float32]  # (N, 1, 3)
    shN: NDArray[np.float32]  # (N, K - 1, 3)

    def __len__(self) -> int:
        return len(self.means)

    @property
    def sh_degree(self) -> int:
        return degree_of(self.shN.shape[1] * 3)

    def select(self, index: NDArray[np.bool_] | NDArray[np.integer]) -> Splats:
        """The Gaussians that a mask or an index picks."""
        arrays = (self.means, self.quats, self.scales, self.opacities, self.sh0, self.shN)
        return Splats(*(array[index] for array in arrays))


@dataclass(frozen=True)
class PlyHeader:
    """What a PLY file says of its first element, checked against the size of the file."""

    path: Path
    count: int
    properties: tuple[tuple[str, str], ...]  # name and numpy type, in file order
    offset: int  # of the first row, bytes
    comments: tuple[str, ...] = ()

    @property
    def dtype(self) -> np.dtype[np.void]:
        return np.dtype(list(self.properties))

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize

    @property
    def antialiased(self) -> float | None:
        """The blur, in square pixels, for which the opacities of an antialiased splat are made; None for others."""
        found = [comment.split()[-1] for comment in self.comments if comment.startswith(_ANTIALIASED)]
        try:
            return float(found[-1]) if found else None
        except ValueError:
            return None

    @property
    def sh_degree(self) -> int:
        return degree_of(sum(name.startswith("f_rest_") for name, _ in self.properties))


_ANTIALIASED = "antialiased, blur "


def antialiased_comment(blur: float) -> str:
    """The comment by which `PlyHeader.antialiased` knows a splat trained antialiased with this blur (px^2)."""
    return f"{_ANTIALIASED}{blur:g}"


_OFFSET = ("offsetx ", "offsety ", "offsetz ")  # as drone and lidar software names it in PLY files


def offset_comments(offset: Sequence[float]) -> list[str]:
    """The comments that say what (3,) is to be added to all positions; none for zeros."""
    return [f"{name}{float(value)!r}" for name, value in zip(_OFFSET, offset, strict=True)] if any(offset) else []


def without_offset(comments: Iterable[str]) -> list[str]:
    """The comments without those of `offset_comments`."""
    return [comment for comment in comments if not comment.startswith(_OFFSET)]


def degree_of(rest: int) -> int:
    """SH degree for a number of `f_rest` values: 0, 9, 24 or 45; -1 for any other number."""
    return {0: 0, 9: 1, 24: 2, 45: 3}.get(rest, -1)


def columns(sh_degree: int) -> tuple[str, ...]:
    """Property names of the layout we write, in order."""
    rest = 3 * ((sh_degree + 1) ** 2 - 1)
    return (*MEANS, *NORMALS, *SH0, *(f"f_rest_{i}" for i in range(rest)), "opacity", *SCALES, *QUATS)


def read_header(path: Path) -> PlyHeader:
    """Read and check the header of a splat PLY; reads no more than 64 KiB.

    Raises SplatFileError when the file is missing, is no binary little-endian PLY of Gaussians, or is
    shorter or longer than its header says (so that a lying count allocates nothing).
    """
    try:
        with path.open("rb") as handle:
            head = handle.read(MAX_HEADER_BYTES)
        size = path.stat().st_size
    except OSError as error:
        raise SplatFileError(f"{path}: cannot be read ({error.strerror}).") from error
    header, alone = _parse_header(path, head)
    _check_properties(header)
    expected = header.offset + header.count * header.row_bytes
    if alone and size > expected:
        raise SplatFileError(
            f"{path}: {size - expected} bytes follow the {header.count} Gaussians that the header announces, so it is "
            "not what was written. Train or copy it again."
        )
    if size < expected:
        rows = (size - header.offset) // header.row_bytes
        raise SplatFileError(
            f"{path}: the header announces {header.count} Gaussians, the file holds {rows} "
            f"({size} bytes, not {expected}); it was probably cut off while being written. Train or copy it again."
        )
    return header


def _parse_header(path: Path, head: bytes) -> tuple[PlyHeader, bool]:
    """The header, and whether the Gaussians are the only element of the file."""
    if head[:4] not in (b"ply\n", b"ply\r"):
        raise SplatFileError(f"{path}: not a PLY file (it does not start with 'ply').")
    end = head.find(b"end_header")
    newline = head.find(b"\n", end)
    if end < 0 or newline < 0:
        raise SplatFileError(f"{path}: no end_header within the first {MAX_HEADER_BYTES} bytes; the file is cut off.")
    lines = head[:end].decode("ascii", "replace").splitlines()
    elements: list[tuple[str, int, list[tuple[str, str]]]] = []
    for line in lines[1:]:
        _parse_line(path, line, elements)
    if not elements or elements[0][0] != "vertex":
        raise SplatFileError(
            f"{path}: its first element is not 'vertex', so it is no plain splat PLY "
            "(compressed PLY files start with 'chunk'; convert it to a plain PLY first)."
        )
    _, count, properties = elements[0]
    comments = tuple(line[8:] for line in lines if line.startswith("comment "))
    return PlyHeader(path, count, tuple(properties), newline + 1, comments), len(elements) == 1


def _parse_line(path: Path, line: str, elements: list[tuple[str, int, list[tuple[str, str]]]]) -> None:
    """Add what one header line says to `elements`: name, count, properties."""
    words = line.split()
    match words:
        case ["format", kind, *_] if kind != "binary_little_endian":
            raise SplatFileError(
                f"{path}: its format is {kind}; only binary_little_endian is read, so save it as that, for example "
                "with plyfile or CloudCompare."
            )
        case ["element", name, count]:
            if not count.isascii() or not count.isdigit() or len(count) > COUNT_DIGITS:
                raise SplatFileError(f"{path}: header line '{line}' has no valid count.")
            elements.append((name, int(count), []))
        case ["property", kind, name] if elements and kind in TYPES:
            elements[-1][2].append((name, TYPES[kind]))
        case ["property", *_] if len(elements) <= 1:
            raise SplatFileError(f"{path}: header line '{line}' is not a property that a Gaussian can have.")
        case _:
            pass  # comment, obj_info, format, lists of later elements


def _check_properties(header: PlyHeader) -> None:
    names = [name for name, _ in header.properties]
    missing = [name for name in columns(0) if name not in names and name not in NORMALS]
    if missing:
        raise SplatFileError(
            f"{header.path}: no Gaussians in this PLY: property {', '.join(missing)} missing (is it a point cloud?)."
        )
    if len(set(names)) != len(names):
        raise SplatFileError(f"{header.path}: a property is listed twice in the header.")
    rest = sorted(name for name in names if name.startswith("f_rest_"))
    if degree_of(len(rest)) < 0 or set(rest) != set(columns(header.sh_degree)[9 : 9 + len(rest)]):
        raise SplatFileError(
            f"{header.path}: {len(rest)} f_rest properties; a degree of 0, 1, 2 or 3 has 0, 9, 24 or 45 of them."
        )


def iter_rows(
    header: PlyHeader, sh_degree: int | None = None, chunk_rows: int = CHUNK_ROWS
) -> Iterator[NDArray[np.float32]]:
    """The file's rows as float32 matrices (n, len(columns(sh_degree))), at most `chunk_rows` at a time.

    Missing normals and SH bands above the file's degree are zero; bands above `sh_degree` are left out.
    Raises SplatFileError when the file became shorter since its header was read.
    """
    degree = header.sh_degree if sh_degree is None else sh_degree
    plain = [name for name, _ in header.properties] == list(columns(degree)) and header.row_bytes == 4 * len(
        header.properties
    )
    with header.path.open("rb") as handle:
        handle.seek(header.offset)
        for start in range(0, header.count, chunk_rows):
            wanted = min(chunk_rows, header.count - start)
            # The kernel reads the next chunk while this one is worked on.
            place = header.offset + (start + wanted) * header.row_bytes
            if hasattr(os, "posix_fadvise"):  # not on macOS
                os.posix_fadvise(handle.fileno(), place, chunk_rows * header.row_bytes, os.POSIX_FADV_WILLNEED)
            table = np.fromfile(handle, header.dtype, wanted)
            if len(table) != wanted:
                raise SplatFileError(f"{header.path}: ended after {start + len(table)} of {header.count} Gaussians.")
            yield table.view(np.float32).reshape(wanted, -1) if plain else _reorder(table, header.sh_degree, degree)


def sample_rows(header: PlyHeader, most: int, block_rows: int = 1024) -> Iterator[NDArray[np.float32]]:
    """At most about `most` rows, in blocks spread evenly over the file, as `iter_rows` gives them; SH 0 only.

    The same rows on every call; all of them where there are no more.
    """
    if header.count <= most:
        yield from iter_rows(header, 0)
        return
    blocks, size = max(most // block_rows, 1), block_rows * header.row_bytes
    table = np.empty(min(blocks, max(CHUNK_ROWS // block_rows, 1)) * block_rows, header.dtype)
    room = table.view(np.uint8).data
    with header.path.open("rb", buffering=0) as handle:
        used = 0
        for block in range(blocks):
            handle.seek(header.offset + (block * (header.count - block_rows) // (blocks - 1 or 1)) * header.row_bytes)
            if handle.readinto(room[used : used + size]) != size:
                raise SplatFileError(f"{header.path}: became shorter while it was read.")
            used += size
            if used == len(room) or block == blocks - 1:
                yield _reorder(table[: used // header.row_bytes], header.sh_degree, 0)
                used = 0


def _reorder(table: NDArray[np.void], has: int, wants: int) -> NDArray[np.float32]:
    """Rows in our layout at degree `wants` from a structured table of degree `has`."""
    rows = np.zeros((len(table), len(columns(wants))), np.float32)
    per_channel, target = (has + 1) ** 2 - 1, (wants + 1) ** 2 - 1
    for i, name in enumerate(columns(wants)):
        source = name
        if name.startswith("f_rest_"):
            channel, band = divmod(int(name[7:]), target)
            if band >= per_channel:
                continue
            source = f"f_rest_{channel * per_channel + band}"
        if source in (table.dtype.names or ()):  # normals may be absent
            with np.errstate(over="ignore"):  # a double out of range becomes infinite, and is dropped as such
                rows[:, i] = table[source]
    return rows


def to_rows(splats: Splats) -> NDArray[np.float32]:
    """(N, P) float32 rows in our layout."""
    n = len(splats)
    rest = np.swapaxes(splats.shN, 1, 2).reshape(n, -1)
    parts = (splats.means, np.zeros((n, 3)), splats.sh0.reshape(n, 3), rest)
    tail = (splats.opacities.reshape(n, 1), splats.scales, splats.quats)
    with np.errstate(over="ignore"):
        return np.concatenate([*parts, *tail], axis=1, dtype=np.float32, casting="same_kind")


def from_rows(rows: NDArray[np.float32]) -> Splats:
    """Splats from (N, P) rows in our layout; arrays are copies."""
    n, rest = len(rows), rows.shape[1] - len(columns(0))
    shN = np.swapaxes(rows[:, 9 : 9 + rest].reshape(n, 3, rest // 3), 1, 2)
    tail = rows[:, 9 + rest :]
    arrays = (rows[:, :3], tail[:, 4:8], tail[:, 1:4], tail[:, 0], rows[:, 6:9].reshape(n, 1, 3), shN)
    return Splats(*(np.array(array, np.float32, order="C") for array in arrays))


def read_splats(path: Path) -> Splats:
    """All Gaussians of a file; property order, extra properties and SH degree 0 to 3 as they come."""
    header = read_header(path)
    chunks = list(iter_rows(header)) or [np.zeros((0, len(columns(header.sh_degree))), np.float32)]
    return from_rows(np.concatenate(chunks))


def write_splats(path: Path, splats: Splats, comments: Sequence[str] = ()) -> int:
    """Write `splats` atomically, leaving out rows with a non-finite value. Returns how many were written."""
    with splat_writer(path, splats.sh_degree, comments) as writer:
        for start in range(0, len(splats), CHUNK_ROWS):
            rows = to_rows(splats.select(np.arange(start, min(start + CHUNK_ROWS, len(splats)))))
            writer.append(rows[np.isfinite(rows).all(axis=1)])
    return writer.count


@contextlib.contextmanager
def splat_writer(path: Path, sh_degree: int, comments: Sequence[str] = ()) -> Iterator[SplatWriter]:
    """Takes rows as they come; the file appears under its name, whole, when the `with` block succeeds."""
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        writer = SplatWriter(handle, sh_degree, comments)
        yield writer
        writer.finish()


class SplatWriter:
    """A splat PLY whose number of rows is known only at its end; see `splat_writer`."""

    def __init__(self, handle: BinaryIO, sh_degree: int, comments: Sequence[str]) -> None:
        self.count = 0
        self._handle, self._sh_degree, self._comments = handle, sh_degree, tuple(comments)
        handle.write(self._header())

    def append(self, rows: NDArray[np.float32]) -> None:
        """Add (n, P) rows in the layout of `columns(sh_degree)`."""
        if rows.shape[1] != len(columns(self._sh_degree)):
            raise ValueError(f"rows have {rows.shape[1]} columns, not {len(columns(self._sh_degree))}")
        # Not tofile(), whose OSError hides that the disk is full.
        self._handle.write(np.ascontiguousarray(rows, "<f4").reshape(-1).view(np.uint8).data)
        self.count += len(rows)

    def finish(self) -> None:
        """Put the final count into the header."""
        self._handle.seek(0)
        self._handle.write(self._header())
        self._handle.flush()

    def _header(self) -> bytes:
        """The header for the present count; always of the same length, thanks to a comment that pads it.

        The count itself is not padded: some viewers look for `element vertex <digits><newline>`.
        """
        digits = str(self.count)
        lines = ["ply", "format binary_little_endian 1.0"]
        lines += ["comment " + _one_line(comment) for comment in self._comments]
        lines += ["comment " + "-" * (COUNT_DIGITS - len(digits)), f"element vertex {digits}"]
        lines += [f"property float {name}" for name in columns(self._sh_degree)]
        return ("\n".join([*lines, "end_header"]) + "\n").encode("ascii")


def _one_line(comment: str) -> str:
    """Printable ASCII on one line, and never the words that end a header."""
    text = " ".join(comment.encode("ascii", "replace").decode().split())
    return text.replace("end_header", "end-header")[:400]


def transform(splats: Splats, similarity: Similarity) -> Splats:
    """Splats in scene coordinates from splats in training coordinates.

    `similarity` maps scene to training coordinates. It has no rotation, so only means and scales change.
    """
    return Splats(
        similarity.invert(splats.means).astype(np.float32),
        splats.quats,
        (splats.scales - np.log(similarity.scale)).astype(np.float32),
        splats.opacities,
        splats.sh0,
        splats.shN,
    )


def to_training(splats: Splats, similarity: Similarity) -> Splats:
    """The inverse of `transform`."""
    return Splats(
        similarity.apply(splats.means).astype(np.float32),
        splats.quats,
        (splats.scales + np.log(similarity.scale)).astype(np.float32),
        splats.opacities,
        splats.sh0,
        splats.shN,
    )
