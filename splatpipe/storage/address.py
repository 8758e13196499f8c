"""Places that are no local folder: s3://bucket/scene, gs://bucket/scene, ssh://user@host/scene ..."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from splatpipe.errors import ConfigError

# URL scheme to the package that fsspec needs for it; empty: fsspec alone.
SCHEMES = {
    **{"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "ssh": "paramiko", "sftp": "paramiko"},
    **{"az": "adlfs", "abfs": "adlfs", "http": "aiohttp", "https": "aiohttp", "file": "", "memory": ""},
}
READ_ONLY = ("http", "https")
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Address:
    """A folder in a store, as the user wrote it, without a slash at its end; printed without its password."""

    url: str
    scheme: str

    @property
    def writable(self) -> bool:
        return self.scheme not in READ_ONLY

    @property
    def slug(self) -> str:
        """A folder name that is this address' own: its last part, and a hash of the whole."""
        last = re.sub(r"[^A-Za-z0-9._-]", "_", self.url.rstrip("/").rpartition("/")[2])[:40].lstrip(".") or "root"
        return f"{last}-{hashlib.sha256(self.url.encode()).hexdigest()[:10]}"

    def __str__(self) -> str:
        return without_password(self.url)


def without_password(text: str) -> str:
    """`text` with *** for the password of an address: what is printed or kept on disk."""
    return re.sub(r"://([^:/@]*):[^@/]*@", r"://\1:***@", text)


def parse_address(text: str) -> Address | None:
    """The address in `text`; None for a local path. Raises `ConfigError` for a scheme that nothing here reads."""
    match = _URL.fullmatch(text)
    if match is None:
        return None
    scheme = match[1].lower()
    if scheme not in SCHEMES:
        raise ConfigError(f"{text}: no store of the kind {scheme}:// is known; known are {', '.join(sorted(SCHEMES))}")
    if not match[2].strip("/"):
        raise ConfigError(f"{text}: names no folder; write {scheme}://BUCKET/FOLDER or {scheme}://HOST/FOLDER")
    return Address(text.rstrip("/"), scheme)


def check_key(key: str) -> PurePosixPath:
    """A file's name below its folder. Raises `ValueError` for one that would lead out of a local folder."""
    path = PurePosixPath(key)
    if not key or path.is_absolute() or ".." in path.parts or "\\" in key or "\0" in key or ":" in path.parts[0]:
        raise ValueError(f"the name {key!r} leads out of its folder")
    return path
