"""One neighbourhood of a merged splat after the other, trained or judged: load what its views see, and look."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from splatpipe.merge.borders import BorderRecords, lend, taken_back
from splatpipe.merge.finish import CACHE_BYTES, WARM_UP, last_rates, params_of
from splatpipe.merge.neighbourhoods import Contents, Neighbourhood
from splatpipe.merge.rowfile import RowFile
from splatpipe.merge.rows import Rows
from splatpipe.scene.arrays import Similarity
from splatpipe.splatting import raster
from splatpipe.splatting.loop import Report, Training, TrainingData, TrainingJob, render, scene_scale
from splatpipe.splatting.metrics import psnr
from splatpipe.splatting.model import to_splats
from splatpipe.splatting.ply import PlyHeader, to_rows, transform
from splatpipe.splatting.settings import TrainSettings
from splatpipe.splatting.views import ViewLoader, Views


@dataclass(frozen=True)
class Turn:
    """One look at each view of a neighbourhood; there are as many rounds of turns as looks at each view."""

    number: int
    name: str
    part: Neighbourhood
    round: int
    earlier: int  # steps of all turns before

    @property
    def steps(self) -> int:
        return len(self.part.views)


def turns_of(parts: Sequence[Neighbourhood], visits: int, seed: int) -> list[Turn]:
    """Neighbourhoods come in a new order each round, so that none has the last word over what several see."""
    orders = [np.random.default_rng((seed, visit)).permutation(len(parts)) for visit in range(visits)]
    pairs = [(visit, parts[i]) for visit, order in enumerate(orders) for i in order]
    names = [f"borders {i + 1} of {len(pairs)}" for i in range(len(pairs))]
    earlier = np.cumsum([0, *(len(part.views) for _, part in pairs)]).tolist()
    return [Turn(i, names[i], part, visit, earlier[i]) for i, (visit, part) in enumerate(pairs)]


@dataclass(frozen=True, eq=False)
class Together:
    """What all neighbourhoods of a splat have in common; `views` and `points` as `similarity` leads to them."""

    header: PlyHeader
    contents: Contents
    borders: BorderRecords
    similarity: Similarity
    views: Views
    points: NDArray[np.float64]  # (P, 3) of the scene
    patches: int
    settings: TrainSettings
    visits: int
    device: str
    should_stop: Callable[[], bool]

    def train(self, turn: Turn, checkpoints: Path, report: Report) -> tuple[NDArray[np.int64], Rows]:
        """Let the border Gaussians of a neighbourhood change: the places of their records, and these.

        Raises `Stopped` (with a checkpoint, from which the next call goes on), `TrainingFailure`, `SceneError`.
        """
        index, rows, moments, free = self._load(turn.part)
        mask = torch.from_numpy(free).to(self.device)
        trained = params_of(rows, self.similarity, self.device)
        del rows
        views, black = self.views.take(turn.part.views), np.zeros((len(self.points), 3), np.uint8)
        data = TrainingData(views, self.points, black, trained=trained, free=mask)
        training = Training(data, self._job(turn, checkpoints), report)
        held = torch.from_numpy(np.flatnonzero(free))
        if not training.resumed_from:
            lend(moments, training.optimizer, held, turn.earlier)
        del moments
        report("start", resumed_from=training.resumed_from)
        training.run(self.should_stop)
        changed = {name: value[mask] for name, value in trained.items()}
        new = to_rows(transform(to_splats(changed), self.similarity))
        records = np.concatenate([new, taken_back(training.optimizer, held)], axis=1)
        return self.borders.places(index[free]), records

    @torch.no_grad()
    def closeness(
        self, part: Neighbourhood, judged: NDArray[np.int64], refused: NDArray[np.bool_], check: Callable[[], None]
    ) -> float:
        """Mean PSNR of some views of a neighbourhood, with all Gaussians of `refused` (C,) cells as they were."""
        params = params_of(self._load(part, refused)[1], self.similarity, self.device)
        blur, degree = raster.BLUR if self.header.antialiased is not None else None, self.header.sh_degree
        loader, found = ViewLoader(self.views.take(judged), torch.device(self.device), 0), []
        try:
            for i in range(len(judged)):
                check()
                view = loader.get(i)
                image = render(params, view, sh_degree=degree, antialiased=blur)[0].clamp(0, 1).cpu().numpy()
                mask = None if view.mask is None else view.mask.cpu().numpy()
                found.append(psnr(image, view.image.cpu().numpy(), mask))
        finally:
            loader.close()
        return float(np.mean(found))

    def _load(
        self, part: Neighbourhood, refused: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], Rows, Rows, NDArray[np.bool_]]:
        """What a neighbourhood sees: (n,) rows of the splat, these, moments of the m free ones, and which these are.

        Gaussians of `refused` cells come as they are in the splat.
        """
        index = np.flatnonzero(part.seen[self.contents.cell])
        free = self.contents.border[index]
        with RowFile.of_splat(self.header) as file:
            rows = file.take(index)
        changed = np.flatnonzero(free if refused is None else free & ~refused[self.contents.cell[index]])
        with self.borders.open() as file:
            records = file.take(self.borders.places(index[changed]))
        width = self.borders.row_width
        rows[changed] = records[:, :width]
        return index, rows, records[:, width:], free

    def _job(self, turn: Turn, checkpoints: Path) -> TrainingJob:
        """What the training of all at once would do with these views, for one look at each.

        Positions move with the extent of the cameras: here a patch's, about, and not that of however few views.
        """
        rates = last_rates(self.settings, turn.steps, self.header.sh_degree, self.header.antialiased)
        extent = scene_scale(self.views) / math.sqrt(self.patches) / scene_scale(self.views.take(turn.part.views))
        settings = replace(
            rates,
            seed=rates.seed + turn.round,
            means_lr=rates.means_lr * extent,
            warmup_steps=self.visits * turn.steps // WARM_UP if turn.round == 0 else 0,
        )
        return TrainingJob(settings, 0.1, self.device, checkpoints, CACHE_BYTES)
