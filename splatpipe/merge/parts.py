"""The last training of a merged splat that does not fit in memory: neighbourhood by neighbourhood.

Views that look at the same place are trained together, with the Gaussians that they see and no others, so that memory
has a bound whatever the size of the file. What changes is kept beside the splat, which is replaced at the end; a run
that was stopped or killed goes on from there. Neighbourhoods that are better without are put back as they were.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from splatpipe.errors import SceneError
from splatpipe.files import DISK_FULL
from splatpipe.merge.borders import BorderRecords
from splatpipe.merge.evaluate import normalising, sampled_means
from splatpipe.merge.finish import JUDGED, NOT_TRAINED, Failures, Finish, why
from splatpipe.merge.neighbourhoods import Neighbourhood, look_through, looks, neighbourhoods
from splatpipe.merge.ownership import Territory
from splatpipe.merge.together import Together, Turn, turns_of
from splatpipe.merge.workplace import Progress, Workplace
from splatpipe.patches.frame import Frame
from splatpipe.splatting.loop import Stopped
from splatpipe.splatting.ply import PlyHeader, sample_rows, splat_writer
from splatpipe.splatting.settings import TrainSettings
from splatpipe.splatting.views import Views

BLIND = 0.1  # share of all pixels that may see too much
JUDGED_EACH = 8  # training views of a neighbourhood, at least, by which it is decided whether it is kept
KEY_ROWS = 1 << 14  # of a file, by which it is known again


class Watcher(Protocol):
    """Is told how the turns go on, in the events of docs/contracts.md."""

    def event(self, name: str, event: Mapping[str, Any], /) -> None: ...
    def finished(self, name: str, /) -> None: ...
    def close(self) -> None: ...


Watch = Callable[[Mapping[str, int]], Watcher]
"""Is given the steps of each turn that is left."""


def finish_in_parts(
    header: PlyHeader,
    views: Views,
    points: NDArray[np.float64],
    patches: Sequence[Territory],
    frame: Frame,
    settings: TrainSettings,
    *,
    visits: int,
    work: Path,
    most: int,
    device: str,
    should_stop: Callable[[], bool],
    watch: Watch | None,
) -> Finish:
    """As `finish.finish`, which tells of the arguments, for the file of `header`, holding `most` Gaussians at once."""
    place, check = Workplace(work), _check(should_stop)
    contents = look_through(header, patches, frame, check)
    if not contents.border.any():
        return Finish(False, f"{NOT_TRAINED}: no Gaussian lies at one")
    found = looks(contents, views, most)
    parts = neighbourhoods(contents, found, most)
    if found.blind > BLIND * views.sizes.prod(axis=1).sum():
        return Finish(False, f"{NOT_TRAINED}: many views see more than the {most} Gaussians that are held at once")
    if not parts:
        return Finish(False, f"{NOT_TRAINED}: no training view sees one")
    similarity = normalising(sampled_means(header))
    moved = replace(found.views, viewmats=similarity.apply_viewmats(found.views.viewmats))
    borders = BorderRecords(place.borders, np.flatnonzero(contents.border), header.sh_degree)
    facts = moved, similarity.apply(points), len(patches), settings, visits, device, should_stop
    together = Together(header, contents, borders, similarity, *facts)
    looked_at = {moved.paths[i] for part in parts for i in part.views}
    job = _Job(together, parts, turns_of(parts, visits, settings.seed), place, check, len(looked_at))
    try:
        done = job.run(_key(header, views, settings, [visits, most]), watch)
    except Failures as error:
        done = Finish(False, f"{NOT_TRAINED}: {why(error)}")
    except OSError as error:
        place.clear()
        if error.errno not in DISK_FULL:
            raise
        done = Finish(False, f"{NOT_TRAINED}: {error.strerror} at {work}")
    except SceneError:
        place.clear()
        raise
    place.clear()
    return done


def _check(should_stop: Callable[[], bool]) -> Callable[[], None]:
    def check() -> None:
        if should_stop():
            raise Stopped(0)

    return check


def _key(header: PlyHeader, views: Views, settings: TrainSettings, numbers: list[int]) -> str:
    """Identifies a file and what is done to it."""
    facts = [asdict(settings), views.names, views.sizes.tolist(), numbers, header.count, header.comments]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(views.viewmats).tobytes())
    for rows in sample_rows(header, KEY_ROWS):
        digest.update(np.ascontiguousarray(rows).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class _Job:
    together: Together
    parts: Sequence[Neighbourhood]
    turns: Sequence[Turn]
    place: Workplace
    check: Callable[[], None]
    views: int  # photographs

    def run(self, key: str, watch: Watch | None) -> Finish:
        """All turns that are left, and what training views say of them; the splat is replaced where they got better."""
        header, borders = self.together.header, self.together.borders
        state = self.place.open(header, borders, key, len(self.turns), self.check)
        begin = time.monotonic() - state.seconds
        if state.before is None:
            as_it_was = np.ones(len(self.together.contents.counts), np.bool_)
            state = self.place.note_before(state, tuple(self._closeness(part, as_it_was) for part in self.parts))
        left = self.turns[state.turns :]
        watcher = watch({turn.name: turn.steps for turn in left}) if watch else _Nobody()
        try:
            for turn in left:
                state = self._turn(turn, state, watcher, begin)
        finally:
            watcher.close()
        refused, after, back = self._acceptance(state)
        done = self._judgement(state, after, back)
        if done.kept:
            self._replace(refused)
        return replace(done, seconds=round(time.monotonic() - begin, 1))

    def _turn(self, turn: Turn, state: Progress, watcher: Watcher, begin: float) -> Progress:
        def report(event: str, **values: Any) -> None:
            watcher.event(turn.name, {"event": event, **values})

        self.check()
        try:
            places, records = self.together.train(turn, self.place.checkpoints(turn.number), report)
        except Failures as error:
            return self.place.note_failure(state, why(error))
        finally:
            watcher.finished(turn.name)
        seconds = round(time.monotonic() - begin, 1)
        done = replace(state, turns=turn.number + 1, steps=state.steps + turn.steps, seconds=seconds)
        return self.place.note_turn(state, self.together.borders, places, records, done)

    def _closeness(self, part: Neighbourhood, refused: NDArray[np.bool_]) -> float:
        """Mean PSNR of some training views of a neighbourhood, spread evenly."""
        count = min(max(JUDGED_EACH, math.ceil(JUDGED / len(self.parts))), len(part.views))
        judged = part.views[np.unique(np.linspace(0, len(part.views) - 1, count).astype(np.int64))]
        return self.together.closeness(part, judged, refused, self.check)

    def _acceptance(self, state: Progress) -> tuple[NDArray[np.bool_], NDArray[np.float64], int]:
        """The cells (C,) that stay as they were, the mean PSNR of each neighbourhood with that, how many were put back.

        Where a neighbourhood got worse, its small Gaussians are put back as they were, if it and those that see some
        of them are better on the whole with that.
        """
        assert state.before is not None
        before, cells = np.array(state.before), len(self.together.contents.counts)
        refused, wide, back = np.zeros(cells, np.bool_), np.arange(cells) >= cells // 2, 0
        after = np.array([self._closeness(part, refused) for part in self.parts])
        for worse in np.argsort(after - before):
            if after[worse] < before[worse]:
                tried = refused | (self.parts[worse].seen & ~wide)
                found = np.array(
                    [
                        self._closeness(part, tried) if (part.seen & (tried ^ refused)).any() else now
                        for part, now in zip(self.parts, after, strict=True)
                    ]
                )
                if self._mean(found) > self._mean(after):
                    refused, after, back = tried, found, back + 1
        return refused, after, back

    def _mean(self, psnr: Sequence[float] | NDArray[np.float64]) -> float:
        """Over neighbourhoods, by how many pixels they look at."""
        pixels = [self.together.views.sizes[part.views].prod(axis=1, dtype=np.float64).sum() for part in self.parts]
        return float(np.average(psnr, weights=pixels))

    def _judgement(self, state: Progress, after: NDArray[np.float64], back: int) -> Finish:
        together, count = self.together, len(self.parts)
        assert state.before is not None
        free = len(together.borders.index)
        facts: dict[str, Any] = {"steps": state.steps, "views": self.views, "free": free, "neighbourhoods": count}
        if not state.steps:
            return Finish(False, f"{NOT_TRAINED}: {state.failure}", **facts)
        before, now = self._mean(state.before), self._mean(after)
        facts |= {"psnr_before": round(before, 3), "psnr_after": round(now, 3), "put_back": back}
        said = f"borders trained together: {state.steps} steps over {self.views} views, {free} of "
        said += f"{together.header.count} Gaussians in {count} neighbourhood{'s' if count > 1 else ''}"
        said += f", {state.failed} turns without effect ({state.failure})" if state.failed else ""
        if not now > before:
            return Finish(False, f"{said}; not kept, because training views did not get better", **facts)
        said += f", {back} of them put back" if back else ""
        return Finish(True, f"{said}, training views {before:.2f} to {now:.2f} dB", **facts)

    def _replace(self, refused: NDArray[np.bool_]) -> None:
        header, borders = self.together.header, self.together.borders
        comments = [comment for comment in header.comments if comment.strip("-")]  # but the one that pads the header
        kept = ~refused[self.together.contents.cell[borders.index]]
        with splat_writer(header.path, header.sh_degree, comments) as writer:
            for rows in borders.chunks(header, kept):
                self.check()
                writer.append(rows)


class _Nobody:
    def event(self, name: str, event: Mapping[str, Any], /) -> None: ...
    def finished(self, name: str, /) -> None: ...
    def close(self) -> None: ...
