"""What kind of file system a folder is on: over a network, some promises of a local disk do not hold."""

from __future__ import annotations

import re
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
# Types on which another machine may see the same files. SQLite's WAL needs shared memory between all its users.
NETWORK = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "9p", "lustre", "gpfs", "beegfs", "beegfs_nodev", "ceph")
    + ("glusterfs", "pvfs2", "orangefs", "panfs", "wekafs", "ocfs2", "gfs2", "vboxsf", "prl_fs", "drvfs", "virtiofs")
    + ("fuse", "fuseblk")
)
_ESCAPE = re.compile(r"\\([0-7]{3})")


def is_network(path: Path) -> bool:
    """Whether `path`, which need not exist yet, is on a file system that other machines may share."""
    kind = file_system(path)
    return kind in NETWORK or kind.startswith("fuse.")


def file_system(path: Path) -> str:
    """The type of the file system of `path`, as Linux names it; empty where that cannot be found out."""
    try:
        return type_of(str(path.resolve()), MOUNTS.read_text(encoding="utf-8", errors="surrogateescape"))
    except OSError:
        return ""


def type_of(path: str, mounts: str) -> str:
    """The type of the mount that holds `path`, from the text of a mountinfo file (man 5 proc)."""
    found, length = "", -1
    for line in mounts.splitlines():
        front, _, back = line.partition(" - ")
        fields, types = front.split(" "), back.split(" ")
        if len(fields) < 5 or not types[0]:
            continue
        place = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[4])
        holds = path == place or path.startswith(place.rstrip("/") + "/")
        if holds and len(place) >= length:  # of mounts on one place, the last one is seen
            found, length = types[0], len(place)
    return found
