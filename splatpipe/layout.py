"""Every path of a run folder; no other module joins folder names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PatchLayout:
    """`patches/p000/`: one patch as a COLMAP data set in training coordinates."""

    root: Path

    @property
    def images(self) -> Path:
        """Links to the scene's images, sub-folders kept."""
        return self.root / "images"

    @property
    def masks(self) -> Path:
        """Links to masks, named as the scene's are (only where there are any)."""
        return self.root / "masks"

    @property
    def sparse(self) -> Path:
        """The model others open: cameras.bin, images.bin, points3D.bin (hold-out views left out)."""
        return self.root / "sparse" / "0"

    @property
    def holdout(self) -> Path:
        """The same kind of data set, holding only this patch's hold-out views (may be absent)."""
        return self.root / "holdout"

    @property
    def patch_json(self) -> Path:
        """Boxes, camera reasons, statistics, preflight, similarity."""
        return self.root / "patch.json"


@dataclass(frozen=True)
class AttemptLayout:
    """`attempts/p000/01/`: one training of one patch."""

    root: Path

    @property
    def request(self) -> Path:
        return self.root / "request.json"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def log(self) -> Path:
        return self.root / "log.txt"

    @property
    def record(self) -> Path:
        """How the attempt ended, for the day the ledger is lost."""
        return self.root / "attempt.json"

    @property
    def worker(self) -> Path:
        """Which machine makes the attempt, where that is not the driver's."""
        return self.root / "worker.json"

    @property
    def stop(self) -> Path:
        """Its existence asks a worker on another machine to end with a checkpoint."""
        return self.root / "stop"

    @property
    def job(self) -> Path:
        """The job of a batch system that makes the attempt, while it does."""
        return self.root / "job.json"

    @property
    def outcome(self) -> Path:
        """How the attempt went, from a worker that cannot answer otherwise."""
        return self.root / "outcome.json"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def splat(self) -> Path:
        """The result in scene coordinates; its existence means it is whole."""
        return self.root / "splat.ply"


@dataclass(frozen=True)
class DiagnosisLayout:
    """`diagnosis/p007/`: what `splatpipe diagnose` found out about one patch."""

    root: Path

    @property
    def experiments(self) -> Path:
        """One small run folder for each experiment, with its result.json."""
        return self.root / "experiments"

    @property
    def report(self) -> Path:
        """Facts, results and causes as data."""
        return self.root / "report.json"

    @property
    def page(self) -> Path:
        return self.root / "index.html"

    @property
    def profile(self) -> Path:
        return self.root / "profile.json"

    @property
    def lock(self) -> Path:
        return self.root / "diagnosis.lock"


@dataclass(frozen=True)
class RunLayout:
    """`<scene>/splatpipe/<run>/` or `--out`."""

    root: Path

    @property
    def run_yml(self) -> Path:
        return self.root / "run.yml"

    @property
    def lock(self) -> Path:
        return self.root / "run.lock"

    @property
    def owner(self) -> Path:
        """Who holds the lock."""
        return self.root / "run.owner.json"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.sqlite"

    @property
    def scene(self) -> Path:
        """Undistorted images and model, when the input needed it."""
        return self.root / "scene"

    @property
    def patches(self) -> Path:
        return self.root / "patches"

    @property
    def map(self) -> Path:
        """The patches seen from above."""
        return self.root / "map.png"

    @property
    def merged(self) -> Path:
        return self.root / "merged"

    @property
    def merged_splat(self) -> Path:
        return self.merged / "splat.ply"

    @property
    def offset(self) -> Path:
        """What is to be added to positions in the splats beside it, where the model lies far from the origin."""
        return self.merged / "offset.json"

    @property
    def finishing(self) -> Path:
        """Where the borders of a merged splat too large for memory are trained; gone when that is over."""
        return self.root / "finishing"

    @property
    def evaluation(self) -> Path:
        """What hold-out views say of the merged splat."""
        return self.merged / "evaluation.json"

    @property
    def coverage_map(self) -> Path:
        return self.merged / "coverage.png"

    def merged_part(self, patch_ids: Sequence[str]) -> Path:
        """A splat of some patches only."""
        return self.merged / f"{'-'.join(sorted(patch_ids))}.ply"

    def export(self, name: str) -> Path:
        """The merged splat in another format: a file, or a folder for levels of detail."""
        return self.merged / "exports" / name

    def holdout_picture(self, image: str) -> Path:
        """A render of the merged splat beside the hold-out photograph `image` (a name in the scene)."""
        return (self.merged / "holdout" / image).with_suffix(".png")

    @property
    def report(self) -> Path:
        return self.root / "report" / "index.html"

    @property
    def splat_page(self) -> Path:
        """The merged splat in a page that a browser opens."""
        return self.root / "report" / "splat.html"

    def report_picture(self, n: int, kind: str) -> Path:
        """Hold-out view number `n` of the merged splat; a number, because names of images may be anything."""
        return self.root / "report" / "pictures" / f"{n:04d}-{kind}.jpg"

    def patch(self, patch_id: str) -> PatchLayout:
        return PatchLayout(self.patches / patch_id)

    @property
    def probes(self) -> Path:
        return self.root / "probes"

    def probe(self, patch_id: str, n: int) -> AttemptLayout:
        """A short training that helps to decide the first rung."""
        return AttemptLayout(self.probes / patch_id / f"{n:02d}")

    @property
    def slurm(self) -> Path:
        """submitit's scripts, pickles and logs."""
        return self.root / "slurm"

    @property
    def attempts(self) -> Path:
        return self.root / "attempts"

    def diagnosis(self, patch_id: str) -> DiagnosisLayout:
        return DiagnosisLayout(self.root / "diagnosis" / patch_id)

    def attempt(self, patch_id: str, n: int) -> AttemptLayout:
        return AttemptLayout(self.attempts / patch_id / f"{n:02d}")


def patch_span(ids: Sequence[str]) -> str:
    """The patches `ids`, one or more and in order, for a sentence."""
    return f"{ids[0]} to {ids[-1]}" if len(ids) > 1 else f"only {ids[0]}"
