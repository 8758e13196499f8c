"""Damage to files, as disks, copies, editors and people with bad intentions do it; the same for the same seed."""

from __future__ import annotations

import random
import re
import struct

INTEGERS = (0, 1, -1, 7, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63 - 1, 2**64 - 1)
REALS = (0.0, -0.0, 1e-320, 1e-30, -1.0, 1e10, 1e38, 1e308, float("inf"), float("-inf"), float("nan"))
WORDS = (
    *("", "0", "-1", "nan", "inf", "-inf", "1e400", "1e308", "1e-320", "99999999999999999999", "9" * 5000, "0x10"),
    *("../../../etc/passwd", "/etc/passwd", "C:\\x", "a" * 70_000, "\x00", "é\u202e", "\ud800", "null", "true", "{}"),
    *("[]", "[[[[", "{" * 3000, "[" * 100_000, "- " * 3000, "*a", "&a [*a]", "&a {b: *a}", "<<: *a", "%TAG", "#", "'"),
    *("!!python/object/apply:os.system ['true']", "!!int x", "!!binary x", "!!timestamp 9999-99-99", "2024-13-45"),
    *("$(reboot)", "; rm -rf", "`id`", "%s%n", "1_000", "0o7", ".inf", "-.nan", "1:2:3", "=", "~", "PINHOLE", "OPENCV"),
)
TOKEN = re.compile(rb"[^\s,:\[\]{}\"']+")


def mutated(data: bytes, rng: random.Random, text: bool) -> bytes:
    """`data` with one to five kinds of damage; `text` files are damaged by words and lines as well."""
    kinds = TEXT_KINDS if text else BYTE_KINDS
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
        data = rng.choice(kinds)(data, rng)
    return data


def _at(data: bytes, rng: random.Random) -> int:
    """A place, often near the start, where counts and headers are."""
    return rng.randrange(min(len(data), 64) + 1) if rng.random() < 0.4 else rng.randrange(len(data) + 1)


def _flip(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 4, 32))):
        if out:
            out[min(_at(data, rng), len(out) - 1)] ^= 1 << rng.randrange(8)
    return bytes(out)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: _at(data, rng)]


def _remove(data: bytes, rng: random.Random) -> bytes:
    at = _at(data, rng)
    return data[:at] + data[at + rng.choice((1, 4, 8, 100, 4096)) :]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = _at(data, rng)
    return data[:at] + rng.randbytes(rng.choice((1, 3, 8, 100))) + data[at:]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    at, length = _at(data, rng), rng.choice((8, 64, 1000))
    return data[:at] + data[at : at + length] * rng.choice((2, 50)) + data[at + length :]


def _zero(data: bytes, rng: random.Random) -> bytes:
    """A page that never reached the disk."""
    at, length = _at(data, rng), rng.choice((8, 512, 4096))
    return data[:at] + bytes(len(data[at : at + length])) + data[at + length :]


def _integer(data: bytes, rng: random.Random) -> bytes:
    layout = rng.choice(("<I", "<Q", "<H", "<B", ">I", ">Q"))
    length = struct.calcsize(layout)
    at = (_at(data, rng) // rng.choice((1, 4, 8))) * rng.choice((1, 4, 8))
    return data[:at] + struct.pack(layout, rng.choice(INTEGERS) % 256**length) + data[at + length :]


def _real(data: bytes, rng: random.Random) -> bytes:
    layout, value = rng.choice(("<d", "<f")), rng.choice(REALS)
    try:
        packed = struct.pack(layout, value)
    except OverflowError:
        packed = struct.pack("<d", value)
    at = _at(data, rng)
    return data[:at] + packed + data[at + len(packed) :]


def _word(data: bytes, rng: random.Random) -> bytes:
    found = list(TOKEN.finditer(data)) if len(data) < 200_000 else []
    if not found:
        return _insert(data, rng)
    token = rng.choice(found)
    return data[: token.start()] + rng.choice(WORDS).encode("utf-8", "surrogatepass") + data[token.end() :]


def _line(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            del lines[i]
        case 1:
            lines.insert(j, lines[i])
        case 2:
            lines[i], lines[j] = lines[j], lines[i]
        case 3:
            lines[i] = b" " * rng.choice((1, 2, 3)) + lines[i]
        case _:
            lines[i] = rng.choice(WORDS).encode("utf-8", "surrogatepass")
    return b"\n".join(lines)


BYTE_KINDS = (_flip, _cut, _remove, _insert, _repeat, _zero, _integer, _integer, _integer, _real, _real)
TEXT_KINDS = (_flip, _cut, _insert, _repeat, _word, _word, _word, _word, _line, _line, _line)
