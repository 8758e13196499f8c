"""The names of the ways in which an attempt can fail."""

from __future__ import annotations

from enum import StrEnum


class FailureClass(StrEnum):
    """Classes of DESIGN.md, Contracts; each has its own remedy in `policy.ladder`."""

    LAUNCH_CONFIG = "launch_config"
    OOM_DEVICE = "oom_device"
    OOM_RASTER = "oom_raster"
    INT_OVERFLOW = "int_overflow"
    ILLEGAL_ACCESS = "illegal_access"
    NAN_DIVERGENCE = "nan_divergence"
    MCMC_COLLAPSE = "mcmc_collapse"
    EXPLOSION = "explosion"
    HANG = "hang"
    KILLED = "killed"
    HOST_OOM = "host_oom"
    EXPORT_MISSING = "export_missing"
    DATA_ERROR = "data_error"
    CONFIG_ERROR = "config_error"
    ENVIRONMENT = "environment"
    INTERRUPTED = "interrupted"
    UNKNOWN = "unknown"
