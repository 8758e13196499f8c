"""`attempt.json`: how an attempt ended, kept beside its splat, so that the ledger can be made anew from the folders."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

from splatpipe.failures.classes import FailureClass
from splatpipe.files import read_json, write_json
from splatpipe.layout import AttemptLayout, RunLayout
from splatpipe.trainers.base import Attempt, TrainRequest

BLOCK = 1 << 20


@dataclass(frozen=True)
class AttemptRecord:
    """An ended attempt, the remedy it was made with, and the check sum of the splat it left."""

    attempt: Attempt
    remedy: str | None = None
    why: str = ""
    sha256: str | None = None  # of splat.ply


def write_record(record: AttemptRecord) -> None:
    """Keep `record` in the attempt's folder; a disk that is full must not end the run."""
    attempt = record.attempt
    if not attempt.request.files.root.is_dir():
        return
    with contextlib.suppress(OSError, ValueError):
        sha256 = digest(attempt.splat) if attempt.splat else None
        plain = {field.name: getattr(attempt, field.name) for field in fields(attempt)}
        more = {"request": attempt.request.to_json(), "remedy": record.remedy, "why": record.why, "sha256": sha256}
        write_json(attempt.request.files.record, {**plain, **more, "splat": None})


def read_record(layout: RunLayout, folder: Path) -> AttemptRecord | None:
    """The record in an attempt's or a probe's folder, with the paths of where the run is now; None if none is whole."""
    try:
        data = read_json(AttemptLayout(folder).record)
        sha256, remedy, why = data.pop("sha256"), data.pop("remedy"), data.pop("why")
        request = placed(TrainRequest.from_json(data.pop("request")), layout, folder)
        failure = FailureClass(data["failure"]) if data["failure"] else None
        data["warnings"] = tuple(data["warnings"])
        splat = None if failure else request.files.splat
        attempt = Attempt(**{**data, "request": request, "failure": failure, "splat": splat})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return AttemptRecord(attempt, remedy, why, sha256)


def placed(request: TrainRequest, layout: RunLayout, folder: Path) -> TrainRequest:
    """The request that was found in `folder`, with the places of `layout`, to which the run may have been moved."""
    return replace(request, dataset=layout.patch(request.patch_id).root, out=folder)


def digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def is_as_recorded(splat: Path) -> bool:
    """Whether `splat` still has the bytes that its attempt's record speaks of; True where there is no record."""
    try:
        sha256 = read_json(AttemptLayout(splat.parent).record)["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return True
    if sha256 is None:
        return True
    stat = splat.stat()
    return bool(sha256 == _digest_once(splat, stat.st_size, stat.st_mtime_ns))


@cache
def _digest_once(path: Path, size: int, changed_ns: int) -> str:
    """Check sums are asked for at the start of a run and before merging; reading a file once is enough."""
    return digest(path)
