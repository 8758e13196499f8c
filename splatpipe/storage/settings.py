"""Where copies of remote scenes and runs are kept."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StorageSettings:
    """`storage:`, of use only where scene or run folder is an address such as s3://bucket/scene."""

    __pydantic_config__ = {"extra": "forbid"}

    work: str | None = None  # folder on a local disk for the copies; None: splatpipe-work in the working folder
    delete_local: bool = False  # delete the local copy of the run when the store holds everything
