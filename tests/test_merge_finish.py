"""The last training of a merged splat: borders fit the photographs better, and nothing else changes by a bit."""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scenes import look_at
from test_merge import IDENTITY, INF, slab, splats_at

from splatpipe import joining
from splatpipe.merge.borders import BorderRecords, lend, taken_back
from splatpipe.merge.evaluate import Renderer, evaluate_splat, in_view
from splatpipe.merge.finish import Finish, at_borders, finish
from splatpipe.merge.neighbourhoods import look_through, looks, neighbourhoods
from splatpipe.merge.rowfile import RowFile
from splatpipe.merge.rows import OPACITY, SH0
from splatpipe.merge.together import Together, Turn
from splatpipe.splatting.adam import Adam
from splatpipe.splatting.loop import Stopped, Training
from splatpipe.splatting.ply import (
    Splats,
    antialiased_comment,
    columns,
    iter_rows,
    read_header,
    read_splats,
    splat_writer,
    to_rows,
    write_splats,
)
from splatpipe.splatting.settings import TrainSettings
from splatpipe.splatting.views import Views

PATCHES = [slab("p000", -INF, 0, buffer=0.6), slab("p001", 0, INF, buffer=0.6)]
K = np.array([[40.0, 0, 24], [0, 40, 18], [0, 0, 1]])
MOST = 420  # of the 502 Gaussians: less than most photographs see
TRAINED, HELD = np.array([0, 1, 3, 5, 6]), np.array([2, 4])


def ground() -> Splats:
    """A carpet of small Gaussians, and haze as wide as the scene on which both patches build."""
    rng = np.random.default_rng(4)
    flat = np.column_stack([rng.uniform(-2, 2, 500), rng.uniform(-1, 1, 500), rng.normal(0, 0.02, 500)])
    splats = splats_at(np.concatenate([flat, [[-0.4, 0, 0.5], [0.4, 0, 0.5]]]), degree=1)
    splats.shN[:] *= 0.1
    splats.scales[:] = np.log(0.08)
    splats.scales[500:], splats.opacities[500:], splats.sh0[500:] = np.log(1.5), -1.0, 0.8
    return splats


def badly_joined(splats: Splats) -> Splats:
    """The same, but with the haze of each side in another colour and much too thick."""
    out = splats.select(np.arange(len(splats)))
    out.opacities[500:] = 0.5
    out.sh0[500:] = np.array([[-0.8, 0.9, 0.2]])
    return out


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Views:
    """Seven photographs of the ground, in a row across the border."""
    folder, renderer = tmp_path_factory.mktemp("photographs"), Renderer(ground())
    viewmats = np.stack([look_at((x, 0.1, 3.0), (x * 0.8, 0, 0), (0, 1, 0)) for x in np.linspace(-1.5, 1.5, 7)])
    paths = tuple(folder / f"{i}.png" for i in range(7))
    for path, viewmat in zip(paths, viewmats, strict=True):
        Image.fromarray((renderer.render(viewmat, K, 48, 36) * 255).round().astype(np.uint8)).save(path)
    sizes = np.tile(np.array([[48, 36]], np.int32), (7, 1))
    return Views(tuple(path.name for path in paths), paths, viewmats, np.tile(K, (7, 1, 1)), sizes)


def finished(path: Path, views: Views, **changes: object):  # type: ignore[no-untyped-def]
    given = {"visits": 12, **changes}
    points = ground().means.astype(np.float64)
    hyper = given.pop("settings", TrainSettings())
    return finish(path, views.take(TRAINED), points, PATCHES, IDENTITY, hyper, work=path.parent / "work", **given)


def test_views_that_took_no_part_come_closer_and_only_borders_change(tmp_path: Path, views: Views) -> None:
    path, splats = tmp_path / "merged.ply", badly_joined(ground())
    write_splats(path, splats, ("made by a test", antialiased_comment(0.3)))
    before = evaluate_splat(path, views.take(HELD)).psnr
    done = finished(path, views)
    assert done.kept and (done.steps, done.views) == (60, 5), done.sentence
    assert evaluate_splat(path, views.take(HELD)).psnr > before + 1
    assert done.psnr_after > done.psnr_before
    free = at_borders(to_rows(splats), PATCHES, IDENTITY)
    assert free[500:].all() and done.free == free.sum() < 250
    old, new = to_rows(splats), to_rows(read_splats(path))
    np.testing.assert_array_equal(new[~free], old[~free])
    assert (new[free] != old[free]).any(axis=1).mean() > 0.9
    assert read_header(path).comments[:2] == ("made by a test", antialiased_comment(0.3))
    assert sum(not comment.strip("-") for comment in read_header(path).comments) == 1, "the header is padded once"


@pytest.mark.parametrize("most", [1000, MOST])
def test_what_training_cannot_better_stays_as_it_was(tmp_path: Path, views: Views, most: int) -> None:
    path = tmp_path / "merged.ply"
    write_splats(path, ground())
    before = path.read_bytes()
    hyper = TrainSettings(opacity_reg=10.0, scale_reg=10.0)
    done = finished(path, views, settings=hyper, most=most, visits=12 if most == 1000 else 2)
    assert not done.kept and "not kept" in done.sentence
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"most": 50}, "many views see more than the 50 Gaussians"),
        ({"settings": replace(TrainSettings(), pose_lr=1e-3)}, "cameras or colours of its own"),
    ],
)
def test_where_it_cannot_be_done_a_sentence_says_why(
    tmp_path: Path, views: Views, changes: dict[str, object], reason: str
) -> None:
    path = tmp_path / "merged.ply"
    write_splats(path, badly_joined(ground()))
    before = path.read_bytes()
    done = finished(path, views, **changes)
    assert not done.kept and reason in done.sentence
    assert path.read_bytes() == before


def wide_scene(tmp_path: Path) -> Path:
    path = tmp_path / "merged.ply"
    write_splats(path, badly_joined(ground()), ("made by a test",))
    return path


def test_what_does_not_fit_in_memory_is_trained_part_by_part(tmp_path: Path, views: Views) -> None:
    path = wide_scene(tmp_path)
    before, old = evaluate_splat(path, views.take(HELD)).psnr, to_rows(read_splats(path))
    done = finished(path, views, most=MOST)
    assert done.kept and done.neighbourhoods > 1 and done.views == 5, done.sentence
    assert f"in {done.neighbourhoods} neighbourhoods" in done.sentence
    assert evaluate_splat(path, views.take(HELD)).psnr > before + 1
    free, new = at_borders(old, PATCHES, IDENTITY), to_rows(read_splats(path))
    np.testing.assert_array_equal(new[~free], old[~free])
    assert not (path.parent / "work").exists()


def test_a_container_with_little_memory_holds_fewer_gaussians_at_once(
    views: Views, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "memory_limit", lambda: 1 << 50)
    assert joining._at_once(views, "cpu", 8_000_000) == 8_000_000
    monkeypatch.setattr(joining, "memory_limit", lambda: 3 << 30)
    assert joining.HELD_ANYWAY < joining._at_once(views, "cpu", 8_000_000) < 4_000_000
    monkeypatch.setattr(joining, "memory_limit", lambda: 1 << 20)
    assert joining._at_once(views, "cpu", 8_000_000) == joining.HELD_ANYWAY
    assert joining._at_once(views, "cpu", 400) == 400


def test_no_neighbourhood_holds_more_than_it_may_and_each_holds_all_it_sees(tmp_path: Path, views: Views) -> None:
    path, most = wide_scene(tmp_path), MOST
    contents = look_through(read_header(path), PATCHES, IDENTITY)
    found = looks(contents, views, most)
    parts, rows = neighbourhoods(contents, found, most), to_rows(read_splats(path))
    assert sorted(np.concatenate([part.views for part in parts])) == list(range(len(found.views)))
    for part in parts:
        held = part.seen[contents.cell]
        assert held.sum() <= most
        for i in part.views:
            width, height = found.views.sizes[i]
            assert not (in_view(rows, found.views.viewmats[i], found.views.Ks[i], width, height) & ~held).any()


def test_tiles_make_up_the_photographs_they_are_cut_from(tmp_path: Path, views: Views) -> None:
    found = looks(look_through(read_header(wide_scene(tmp_path)), PATCHES, IDENTITY), views, MOST)
    assert len(found.views) > len(views) and found.blind == 0
    for i, name in enumerate(views.names):
        whole, seen = views.decode(i).pixels, np.zeros((36, 48), np.int64)
        for tile in np.flatnonzero([one == name for one in found.views.names]):
            left, top, width, height = found.views.rectangles[tile]
            np.testing.assert_array_equal(
                found.views.decode(tile).pixels, whole[top : top + height, left : left + width]
            )
            np.testing.assert_allclose(found.views.Ks[tile] @ [0, 0, 1], views.Ks[i] @ [0, 0, 1] - [left, top, 0])
            seen[top : top + height, left : left + width] += 1
        assert (seen == 1).all()


@pytest.mark.parametrize("most", [1000, MOST])
def test_without_memory_the_splat_stays_as_it_was_merged(
    tmp_path: Path, views: Views, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise MemoryError

    path = wide_scene(tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr(Training, "run", full)
    done = finished(path, views, most=most)
    assert (done.kept, done.sentence) == (False, "borders are not trained together: there is not enough memory")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


class Stopper:
    """Asks to stop when it was asked `after` times."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_a_stop_leaves_the_merged_splat_whole(tmp_path: Path, views: Views) -> None:
    path = wide_scene(tmp_path)
    before = path.read_bytes()
    with pytest.raises(Stopped):
        finished(path, views, should_stop=lambda: True)
    assert path.read_bytes() == before


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, views: Views) -> tuple[Finish, bytes]:
    """What two looks at each view make of the scene when nothing comes between."""
    path = wide_scene(tmp_path_factory.mktemp("straight"))
    return finished(path, views, most=MOST, visits=2), path.read_bytes()


def test_a_stop_between_parts_leaves_the_merged_splat_whole_and_the_next_run_goes_on(
    tmp_path: Path, views: Views, straight: tuple[Finish, bytes]
) -> None:
    path, (whole, result) = wide_scene(tmp_path), straight
    before = path.read_bytes()
    with pytest.raises(Stopped):
        finished(path, views, most=MOST, visits=2, should_stop=Stopper(2 * whole.steps))  # asked when judging, too
    assert path.read_bytes() == before
    told = Told()
    done = finished(path, views, most=MOST, visits=2, watch=told)
    assert 0 < told.steps < whole.steps, "the steps before the stop are not made again"
    assert done.steps == whole.steps and done.psnr_before == whole.psnr_before
    assert path.read_bytes() == result


class Killed(BaseException):
    """Ends everything, as SIGKILL does."""


put_rows = RowFile.put


def half_put(file: RowFile, index: np.ndarray, rows: np.ndarray) -> None:
    put_rows(file, index[: len(index) // 2], rows[: len(index) // 2])
    raise Killed


def at_once(*given: object, **named: object) -> None:
    raise Killed


@pytest.mark.parametrize(
    ("where", "instead"),
    [
        ("splatpipe.merge.rowfile.RowFile.put", half_put),
        ("splatpipe.merge.workplace.Workplace._replayed", at_once),
        ("splatpipe.merge.borders.BorderRecords.chunks", at_once),
    ],
    ids=["half of a part is replaced", "a part is kept beside", "all is done but the splat"],
)
def test_a_process_that_is_killed_changes_nothing_of_the_result(
    tmp_path: Path,
    views: Views,
    straight: tuple[Finish, bytes],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    instead: Callable[..., None],
) -> None:
    path = wide_scene(tmp_path)
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(where, instead)
        with pytest.raises(Killed):
            finished(path, views, most=MOST, visits=2)
    assert path.read_bytes() == before
    done = finished(path, views, most=MOST, visits=2)
    assert (done.steps, done.psnr_after) == (straight[0].steps, straight[0].psnr_after)
    assert path.read_bytes() == straight[1]
    assert list(tmp_path.iterdir()) == [path], "nothing is left over"


def test_where_there_is_no_room_the_splat_stays_as_it_was_merged(tmp_path: Path, views: Views) -> None:
    path = wide_scene(tmp_path)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        done = finished(path, views, most=MOST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not done.kept and done.sentence == f"borders are not trained together: File too large at {tmp_path / 'work'}"
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_neighbourhood_that_is_better_without_is_put_back(
    tmp_path: Path, views: Views, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, splats, train = tmp_path / "merged.ply", ground(), Together.train
    splats.sh0[500:] = 0.5
    write_splats(path, splats)
    before, old = evaluate_splat(path, views.take(HELD)).psnr, to_rows(read_splats(path))

    def train_badly(self: Together, turn: Turn, *rest: object) -> tuple[np.ndarray, np.ndarray]:
        places, records = train(self, turn, *rest)
        if turn.name.startswith(f"borders {turn.name.split()[-1]} "):  # the last of all
            small = self.borders.index[places] < 500
            records[small, OPACITY] = 9.0  # as solid as they can be, and grey
            records[small, SH0] = 0.0
        return places, records

    monkeypatch.setattr(Together, "train", train_badly)
    done = finished(path, views, most=MOST)
    assert done.kept and done.put_back >= 1 and f"{done.put_back} of them put back" in done.sentence
    assert done.psnr_after > done.psnr_before
    assert evaluate_splat(path, views.take(HELD)).psnr > before
    new = to_rows(read_splats(path))
    assert not (new[:, OPACITY] == 9.0).any()
    assert (new[500:] != old[500:]).any(), "what is shared by all stays as it was trained"


class Told:
    """Counts the steps of which it is told."""

    def __init__(self) -> None:
        self.steps, self.over, self.planned = 0, [], {}
        self._from = 0

    def __call__(self, planned: dict[str, int]) -> Told:
        self.planned = dict(planned)
        return self

    def event(self, name: str, event: dict[str, object]) -> None:
        if event["event"] == "start":
            self._from = event["resumed_from"] or 0
        elif event["event"] == "step":
            self.steps += event["step"] - self._from
            self._from = event["step"]

    def finished(self, name: str) -> None:
        self.over.append(name)

    def close(self) -> None:
        self.over.append("closed")


def test_a_watcher_hears_of_every_turn(tmp_path: Path, views: Views) -> None:
    told = Told()
    done = finished(wide_scene(tmp_path), views, most=MOST, visits=2, watch=told)
    assert sum(told.planned.values()) == told.steps == done.steps
    assert told.over == [*told.planned, "closed"]
    assert len(told.planned) == 2 * done.neighbourhoods, "with two looks there are two rounds"


def test_what_was_begun_on_another_splat_is_not_gone_on_with(tmp_path: Path, views: Views) -> None:
    path = wide_scene(tmp_path)
    with pytest.raises(Stopped):
        finished(path, views, most=MOST, visits=2, should_stop=Stopper(20))
    other = ground()
    other.opacities[:] += 0.5
    write_splats(path, other)
    told = Told()
    done = finished(path, views, most=MOST, visits=2, watch=told)
    assert told.steps == done.steps == sum(told.planned.values())
    assert len(told.planned) == 2 * done.neighbourhoods


@given(st.integers(1, 9000), st.data())
@settings(max_examples=20, deadline=None)
def test_rows_are_read_and_replaced_where_they_are(
    tmp_path_factory: pytest.TempPathFactory, count: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.ply"
    rows = np.random.default_rng(count).normal(size=(count, len(columns(1)))).astype(np.float32)
    with splat_writer(path, 1) as writer:
        writer.append(rows)
    index = np.array(sorted(data.draw(st.sets(st.integers(0, count - 1), max_size=50))), np.int64)
    header = read_header(path)
    with RowFile.of_splat(header) as file:
        np.testing.assert_array_equal(file.take(index), rows[index])
    rows[index] += 1
    with RowFile(path, header.offset, rows.shape[1], writable=True) as file:
        file.put(index, rows[index])
    np.testing.assert_array_equal(np.concatenate(list(iter_rows(read_header(path)))), rows)


def test_moments_are_those_that_an_optimiser_left(tmp_path: Path) -> None:
    path = wide_scene(tmp_path)
    borders = BorderRecords(tmp_path / "borders.bin", np.array([4, 7, 9]), 1)
    borders.write(read_header(path), lambda: None)
    rows, width = to_rows(read_splats(path)), borders.row_width
    with borders.open() as file:
        found = file.take(np.arange(3))
    np.testing.assert_array_equal(found[:, :width], rows[[4, 7, 9]])
    assert not found[:, width:].any(), "at first nothing has moved"

    def adam(seen: int) -> Adam:
        shapes = {"means": (3,), "quats": (4,), "scales": (3,), "opacities": (), "sh0": (1, 3), "shN": (3, 3)}
        params = {name: torch.zeros((seen, *shape)) for name, shape in shapes.items()}
        return Adam(params, dict.fromkeys(params, 0.1))

    first, second, rng = adam(3), adam(4), np.random.default_rng(0)
    for state in first.state.values():
        for moment in state.values():
            moment.copy_(torch.from_numpy(rng.random(moment.shape, np.float32)))
    left = taken_back(first, torch.tensor([0, 2]))
    assert left.shape == (2, borders.width - width)
    lend(left, second, torch.tensor([3, 1]), steps=11)
    assert second.steps == 11
    for name, state in second.state.items():
        for kind, moment in state.items():
            torch.testing.assert_close(moment[[3, 1]], first.state[name][kind][[0, 2]])
            assert not moment[[0, 2]].any()
