"""Who trains: the trainer that patches begin with, and the one that takes over where it fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from splatpipe.config import Config
from splatpipe.errors import ConfigError, EnvironmentProblem
from splatpipe.planning import trainer_name
from splatpipe.policy.ladder import Convert
from splatpipe.trainers.base import Trainer, TrainerInfo, TrainRequest
from splatpipe.trainers.gsplat_mcmc import GsplatTrainer
from splatpipe.trainers.lichtfeld import LichtfeldTrainer
from splatpipe.trainers.lichtfeld_config import find_profile
from splatpipe.trainers.lichtfeld_options import unavailable


@dataclass(frozen=True)
class Crew:
    """`info` is what `first` said of itself; `other` is None where only one trainer is there."""

    first: Trainer
    info: TrainerInfo
    other: Trainer | None = None

    @property
    def all(self) -> tuple[Trainer, ...]:
        return (self.first,) if self.other is None else (self.first, self.other)

    def named(self, name: str) -> Trainer:
        """The trainer of a request. Raises `EnvironmentProblem` when it is not here (any more)."""
        for trainer in self.all:
            if trainer.name == name:
                return trainer
        raise EnvironmentProblem(
            f"an attempt of this run was begun with {name}, which cannot be used now; make it available again "
            "(splatpipe doctor), or name the patch with --retrain"
        )

    @property
    def ignored(self) -> dict[str, frozenset[str]]:
        """By trainer, the training settings that have no effect on it."""
        return {one.name: one.ignored for one in (self.first, self.other) if one is not None}

    def takeover(self, relative_size: Mapping[str, float]) -> Convert | None:
        """Turns a request of the first trainer into one of the other, with initial Gaussians of the same size.

        `relative_size`: by trainer, the initial size over the distance of neighbours at one same init_scaling
        (`PatchStats`), for each trainer has its own meaning of it.
        """
        other = self.other
        if other is None or not all(relative_size.get(one.name) for one in (self.first, other)):
            return None

        def convert(request: TrainRequest) -> TrainRequest | None:
            if request.trainer == other.name:
                return None
            factor = relative_size[request.trainer] / relative_size[other.name]
            return replace(request, trainer=other.name, init_scaling=round(request.init_scaling * factor, 6))

        return convert


def choose_crew(config: Config, profile_folders: tuple[Path, ...]) -> Crew:
    """From `training.trainer`, `lfs_binary` and `lfs_config`.

    Raises `EnvironmentProblem` when the trainer that was asked for cannot run here, `ConfigError` for a bad profile
    and for an option that it does not have; where the other one does not have it, it does not take over.
    """
    given = config.training
    profile = find_profile(given.lfs_config, profile_folders) if given.lfs_config else None
    lichtfeld = LichtfeldTrainer(Path(given.lfs_binary) if given.lfs_binary else None, profile)
    gsplat = GsplatTrainer()
    own, theirs = gsplat.probe(), lichtfeld.probe()
    # Gaussians made for another blur cannot be merged with ours: with antialiasing each trainer stays alone.
    alone = given.antialiased
    wanted = (*(f"training.{name}" for name in given.options()), *(["scene.masks"] if config.scene.masks else []))
    lacking = unavailable(wanted, theirs.capabilities)
    if trainer_name(config) == "lichtfeld":
        if not theirs.available:
            raise EnvironmentProblem(theirs.detail)
        if lacking:
            raise ConfigError(
                f"{lacking[0]}: {theirs.version} has no such option; leave it out, or use training.trainer: gsplat"
            )
        same_device = "cuda" in own.capabilities or "cuda" not in theirs.capabilities
        return Crew(lichtfeld, theirs, gsplat if same_device and not alone else None)
    takes_over = theirs.available and "cuda" in theirs.capabilities and given.device != "cpu"
    takes_over = takes_over and not lacking and not alone
    return Crew(gsplat, own, lichtfeld if takes_over else None)
