"""A folder in a remote store: list, fetch, put, and read back what was put. Through fsspec, errors as sentences."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splatpipe.errors import EnvironmentProblem, SplatpipeError
from splatpipe.files import sync_folder
from splatpipe.storage.address import SCHEMES, Address, check_key

BLOCK = 8 << 20
PART = ".part"
STREAMS = 8
DRAFTED = ("ssh", "sftp", "file")  # stores that show a file while it is being written


@dataclass(frozen=True)
class RemoteFile:
    """What the store says of a file. `version` changes when the file does; `md5` in hexadecimal, where it is told."""

    key: str  # path below the folder, with slashes
    size: int
    version: str
    md5: str | None = None


class Store:
    """The files below one address. Methods raise `EnvironmentProblem` when the store cannot be used."""

    def __init__(self, address: Address) -> None:
        self.address = address
        with self._told("opened"):
            import fsspec

            self._fs, root = fsspec.core.url_to_fs(address.url, **_options(address))
            self._root = root.rstrip("/")

    @property
    def streams(self) -> int:
        """How many files may be fetched at once; an SSH connection is not shared between threads."""
        return 1 if self.address.scheme in ("ssh", "sftp") else STREAMS

    def files(self) -> dict[str, RemoteFile]:
        """Every file below the folder, by key; none when the folder is not there."""
        with self._told("listed"):
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._root, detail=True)
            except FileNotFoundError:
                return {}
        files = {}
        for path, facts in found.items():
            key = path.removeprefix(self._root).lstrip("/")
            if facts.get("type") == "file" and key and not key.endswith("/"):
                try:
                    check_key(key)
                except ValueError as error:
                    raise EnvironmentProblem(f"{self.address}: {error}; rename it in the store") from error
                files[key] = RemoteFile(key, int(facts["size"] or 0), _version(facts), _md5(facts))
        return files

    def fetch(self, file: RemoteFile, target: Path) -> None:
        """Copy a file to `target`, whole or not at all; a copy that was cut off goes on where it ended."""
        check_key(file.key)
        part = target.with_name(target.name + PART)
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._told(f"read at {file.key}"):
            done = part.stat().st_size if part.exists() else 0
            with self._fs.open(self._path(file.key), "rb") as source, part.open("ab") as sink:
                if done > file.size:
                    sink.truncate(done := 0)
                source.seek(done)
                while block := source.read(BLOCK):
                    sink.write(block)
                sink.flush()
                os.fsync(sink.fileno())
        self._check_fetched(file, part)
        part.replace(target)
        sync_folder(target.parent)

    def _check_fetched(self, file: RemoteFile, part: Path) -> None:
        size = part.stat().st_size
        if size == file.size and file.md5 in (None, _file_digest(part, "md5")):
            return
        part.unlink()
        raise EnvironmentProblem(
            f"{self.address}/{file.key}: what arrived ({size:,} bytes) is not what the store announced "
            f"({file.size:,} bytes, MD5 {file.md5 or 'not told'}); run again to fetch it anew"
        )

    def put(self, source: Path, key: str) -> str:
        """Copy a local file into the store, read it back, and compare; its SHA-256.

        Half a file never stands under its own name: stores either show a file when it is whole, or get a draft first.
        """
        wanted = _file_digest(source, "sha256")
        path = self._path(str(check_key(key)))
        drafted = self.address.scheme in DRAFTED
        draft = f"{path}{PART}" if drafted else path
        with self._told(f"written at {key}"):
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(source), draft)
            self._fs.invalidate_cache()
            found = self._read_back(draft)
            if found == wanted and drafted:
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm_file(path)
                self._fs.mv(draft, path)
        if found != wanted:
            raise EnvironmentProblem(f"{self.address}/{key}: read back, it is not what was written; run again")
        return wanted

    def _read_back(self, path: str) -> str:
        digest = hashlib.sha256()
        with self._fs.open(path, "rb") as handle:
            while block := handle.read(BLOCK):
                digest.update(block)
        return digest.hexdigest()

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    @contextlib.contextmanager
    def _told(self, verb: str) -> Iterator[None]:
        """Turn what a driver raises into a sentence; each has exceptions of its own."""
        try:
            yield
        except SplatpipeError:
            raise
        except ImportError as error:
            package = SCHEMES[self.address.scheme] or "fsspec"
            raise EnvironmentProblem(
                f"{self.address} needs the Python package {package}; install it with: pip install 'splatpipe[remote]'"
            ) from error
        except Exception as error:
            why = " ".join(str(error).split()) or type(error).__name__
            raise EnvironmentProblem(
                f"{self.address}: cannot be {verb} ({why}); check address, network and credentials, then run again"
            ) from error


def _options(address: Address) -> dict[str, Any]:
    """What a driver needs to be told: lists of files must be fresh."""
    return {"use_listings_cache": False} if address.scheme in ("s3", "s3a", "gs", "gcs") else {}


def _version(facts: Mapping[str, Any]) -> str:
    """Something that changes when the file does."""
    names = ("ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "last_modified", "updated", "created")
    return " ".join(str(facts[name]) for name in names if facts.get(name) is not None)


def _md5(facts: Mapping[str, Any]) -> str | None:
    """S3 gives it as ETag unless the file came in parts or is encrypted, Google in base64."""
    if hashed := facts.get("md5Hash"):
        with contextlib.suppress(ValueError, TypeError):
            return base64.b64decode(hashed).hex()
    etag = str(facts.get("ETag") or "").strip('"').lower()
    plain = len(etag) == 32 and all(c in "0123456789abcdef" for c in etag) and not facts.get("ServerSideEncryption")
    return etag if plain else None


def _file_digest(path: Path, name: str) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, name).hexdigest()
