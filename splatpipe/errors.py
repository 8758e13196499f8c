"""What a user can cause, as exceptions that carry one sentence and an exit code.

Only `cli.py` turns these into exit codes; everything else raises them. An exception that is not
a `SplatpipeError` is a bug of ours and leaves with exit code 1.
"""

from __future__ import annotations


class SplatpipeError(Exception):
    """One sentence for the user: what is wrong, where, and what to do about it."""

    exit_code = 2


class ConfigError(SplatpipeError):
    """A setting, an override or a command line that cannot be used."""


class SceneError(SplatpipeError):
    """A COLMAP model or its images that cannot be used as they are."""


class RunFolderError(SplatpipeError):
    """A run folder that cannot be used: locked by another run, made from another scene, unwritable."""


class LedgerDamaged(RunFolderError):
    """The ledger of a run cannot be read any more; what is in the attempts' folders still can."""


class EnvironmentProblem(SplatpipeError):
    """The machine lacks something the run needs: a driver, a binary, disk space."""


class Interrupted(SplatpipeError):
    """The user or the batch system asked to stop; everything trained is kept."""

    exit_code = 130
