"""A ledger, a checkpoint or a splat that is damaged or gone is noticed, and repaired from what is whole."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.trainer_double import TrainerDouble
from scenes import synthetic_scene, write_scene

from splatpipe import database, pipeline
from splatpipe.errors import Interrupted, LedgerDamaged, RunFolderError
from splatpipe.layout import RunLayout
from splatpipe.ledger import Ledger
from splatpipe.splatting.ply import read_splats, to_rows, write_splats

SETTINGS = [
    *("training.iterations=60", "training.refine_start=10", "training.max_cap=500", "training.device=cpu"),
    "patching.max_cameras=12",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scene and its run, in two patches, the first of which needed two attempts."""
    folder = tmp_path_factory.mktemp("finished")
    write_scene(folder / "scene", synthetic_scene(n_cameras=25, n_points=400))
    assert run(folder, TrainerDouble({"p000": {"fails": "sigsegv", "at": 20, "attempts": 1}}), merge=True) == 0
    return folder


@pytest.fixture
def folder(finished: Path) -> Path:
    """The finished run, to be damaged; a run folder knows its own place, so it stays there and is put back."""
    keep = finished.parent / "keep"
    shutil.copytree(finished, keep, symlinks=True)
    yield finished
    shutil.rmtree(finished)
    keep.rename(finished)


def run(folder: Path, trainer: TrainerDouble, merge: bool = False, out: str = "run", retrain: str | None = None) -> int:
    options = pipeline.RunOptions.resolve(folder / "scene", folder / out, None, SETTINGS, None, retrain)
    return pipeline.run(options, stop=threading.Event(), trainer=trainer, merge=merge)


def layout(folder: Path) -> RunLayout:
    return RunLayout(folder / "run")


def facts(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    """What the ledger knows of each patch's attempts."""
    rows = pipeline.status(layout(folder).root)["patches"]
    names = ("n", "class", "line", "step", "remedy", "why", "exit_status", "gaussians", "init_scaling", "trainer")
    return {row["id"]: [tuple(attempt[name] for name in names) for attempt in row["attempts"]] for row in rows}


class Untouchable(TrainerDouble):
    """Must not be asked to train anything."""

    def command(self, request: Any) -> Any:
        raise AssertionError(f"{request.patch_id} is trained again")


def damage(path: Path, how: str) -> None:
    match how:
        case "gone":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "not a database":
            path.write_bytes(b"no database at all" * 300)
        case "page":
            data = bytearray(path.read_bytes())
            data[8192:12288] = os.urandom(4096)
            path.write_bytes(data)
        case "cut":
            os.truncate(path, path.stat().st_size // 2)
        case "row":
            with closing(sqlite3.connect(path)) as db:
                db.execute("""UPDATE attempts SET request = '{"patch_id": ' WHERE patch = 'p001'""")
                db.commit()


@pytest.mark.parametrize("how", ["gone", "empty", "not a database", "page", "cut", "row"])
def test_a_lost_ledger_is_made_anew_and_nothing_is_trained_again(
    folder: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = facts(folder)
    assert len(before["p000"]) == 2
    ledger = layout(folder).ledger
    for beside in ("-wal", "-shm"):
        ledger.with_name(ledger.name + beside).unlink(missing_ok=True)
    damage(ledger, how)
    capsys.readouterr()
    assert run(folder, Untouchable()) == 0
    said = capsys.readouterr().err
    assert "the ledger was made anew from" in said
    assert facts(folder) == before
    assert how in ("gone", "empty") or list(ledger.parent.glob("ledger.sqlite.damaged1"))


def test_a_damaged_ledger_is_a_sentence_to_whoever_only_reads(folder: Path) -> None:
    damage(layout(folder).ledger, "row")
    with pytest.raises(LedgerDamaged, match="splatpipe run on this folder makes it anew"):
        pipeline.status(layout(folder).root)


def test_a_scene_that_was_moved_with_its_run_goes_on_where_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, moved = facts(folder), folder.with_name("moved")
    folder.rename(moved)
    try:
        assert run(moved, Untouchable(), merge=True) == 0
        assert "the folder was moved or copied" in capsys.readouterr().err
        assert facts(moved) == before
        assert pipeline.status(moved / "run")["merged"]["path"] == str(layout(moved).merged_splat)
        assert str(folder) not in layout(moved).run_yml.read_text()
        (moved / "scene").rename(moved / "scene2")
        options = pipeline.RunOptions.resolve(moved / "scene2", moved / "run", None, SETTINGS, None, None)
        assert pipeline.run(options, stop=threading.Event(), trainer=Untouchable(), merge=False) == 0
        links = list(layout(moved).patches.glob("*/images/*"))
        assert links and all(link.exists() for link in links)
    finally:
        moved.rename(folder)


def test_a_ledger_is_made_anew_even_where_attempts_have_left_no_record(folder: Path) -> None:
    for record in layout(folder).attempts.glob("*/*/attempt.json"):
        record.unlink()
    layout(folder).ledger.unlink()
    assert run(folder, Untouchable()) == 0


def test_a_retrained_patch_stays_retrained_in_a_ledger_made_anew(folder: Path) -> None:
    assert run(folder, TrainerDouble({"default": {}}), retrain="p001") == 0
    before = facts(folder)
    assert [attempt[0] for attempt in before["p001"]] == [2]
    layout(folder).ledger.unlink()
    assert run(folder, Untouchable()) == 0
    assert facts(folder) == before


@pytest.mark.parametrize("how", ["cut", "one bit", "gone"])
def test_a_damaged_splat_is_noticed_and_its_attempt_alone_goes_on(folder: Path, how: str) -> None:
    splat = layout(folder).attempt("p001", 1).splat
    whole = splat.read_bytes()
    if how == "one bit":
        data = bytearray(whole)
        data[len(data) // 2] ^= 1
        splat.write_bytes(data)
        read_splats(splat)  # nothing in the file itself betrays it
    else:
        damage(splat, how)

    class Only(TrainerDouble):
        def command(self, request: Any) -> Any:
            assert (request.patch_id, request.attempt) == ("p001", 1)
            return super().command(request)

    assert run(folder, Only({"default": {}}), merge=True) == 0
    assert splat.read_bytes() == whole
    assert layout(folder).merged_splat.stat().st_mtime >= splat.stat().st_mtime


def change(splat: Path, how: str) -> None:
    """What hands, editors and disks do to a splat."""
    splats, data = read_splats(splat), splat.read_bytes()
    end = data.index(b"end_header\n") + len(b"end_header\n")
    match how:
        case "thinned":
            write_splats(splat, splats.select(np.arange(len(splats)) % 2 == 0))
        case "without a number":
            rows = to_rows(splats)
            rows[:3, 4] = np.nan
            splat.write_bytes(data[:end] + rows.tobytes())
        case "empty":
            write_splats(splat, splats.select(np.arange(0)))
        case "ascii":
            splat.write_bytes(data.replace(b"binary_little_endian", b"ascii"))
        case "too long":
            splat.write_bytes(data + b"more")
        case _:
            damage(splat, how)


@pytest.mark.parametrize(("how", "left_out"), [("thinned", 0), ("without a number", 3)])
def test_a_splat_changed_by_hand_is_merged_as_it_is_and_named(
    folder: Path, how: str, left_out: int, capsys: pytest.CaptureFixture[str]
) -> None:
    splat, options = layout(folder).attempt("p001", 1).splat, pipeline.RunOptions.of_run(folder / "run", None)
    assert pipeline.merge(options, "p000,p001") == 0
    assert "warning: p001" not in capsys.readouterr().err
    change(splat, how)
    assert pipeline.merge(options, "p000,p001") == 0
    told = capsys.readouterr().err
    assert f"warning: p001: {splat} was changed after its training, and is taken as it is" in told
    assert (f"p001: {left_out} of its " in told) == bool(left_out)
    parts = [len(read_splats(layout(folder).attempt(*one).splat)) for one in (("p000", 2), ("p001", 1))]
    merged = read_splats(layout(folder).merged_part(["p000", "p001"]))
    assert 0 < len(merged) <= sum(parts) - left_out
    assert np.isfinite(to_rows(merged)).all()


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("gone", "cannot be read"),
        ("cut", "it was probably cut off"),
        ("empty", "it holds no Gaussian"),
        ("ascii", "only binary_little_endian is read, so save it as that"),
        ("too long", "4 bytes follow the"),
    ],
)
def test_a_splat_that_is_none_any_more_is_named_and_the_merged_one_stays(folder: Path, how: str, sentence: str) -> None:
    splat, merged = layout(folder).attempt("p001", 1).splat, layout(folder).merged_splat.read_bytes()
    change(splat, how)
    with pytest.raises(RunFolderError, match=sentence) as error:
        pipeline.merge(pipeline.RunOptions.of_run(folder / "run", None))
    assert str(error.value).startswith(f"p001 was trained, but its splat cannot be used: {splat}: ")
    assert str(error.value).endswith(
        "The next splatpipe run on this folder trains the patch on from its last checkpoint."
    )
    assert layout(folder).merged_splat.read_bytes() == merged
    assert pipeline.merge(pipeline.RunOptions.of_run(folder / "run", None), "p000") == 0, "the others can be merged"


class StopAt(threading.Event):
    """Set when it is asked for the n-th time."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.asked, self._n = 0, n

    def is_set(self) -> bool:
        self.asked += 1
        return self.asked >= self._n


def test_an_evaluation_can_be_stopped_between_two_views_and_changes_nothing(folder: Path) -> None:
    options, never = pipeline.RunOptions.of_run(folder / "run", None), StopAt(10**9)
    judged = pipeline.judge(options, never)
    on_record = layout(folder).evaluation.read_bytes()
    with pytest.raises(Interrupted, match="was judged; what was on record stays"):
        pipeline.judge(options, StopAt(never.asked - 1))
    assert layout(folder).evaluation.read_bytes() == on_record
    assert pipeline.judge(options) == judged


def test_a_merge_can_be_stopped_at_any_place_and_begun_again(folder: Path) -> None:
    options, never, before = (
        pipeline.RunOptions.of_run(folder / "run", None),
        StopAt(10**9),
        layout(folder).merged_splat,
    )
    assert pipeline.merge(options, stop=never) == 0
    whole = before.read_bytes()
    for n in (never.asked // 3, never.asked - 1):
        with pytest.raises(Interrupted):
            pipeline.merge(options, stop=StopAt(n))
        read_splats(layout(folder).merged_splat)
        assert not list(layout(folder).merged.rglob(".*.tmp"))
    assert pipeline.status(folder / "run")["merged"]["path"] is None, "or it would speak of another file"
    assert run(folder, Untouchable(), merge=True) == 0
    assert layout(folder).merged_splat.read_bytes() == whole


def test_the_record_in_an_attempts_folder_is_what_the_ledger_has(folder: Path) -> None:
    record = json.loads(layout(folder).attempt("p000", 1).record.read_text())
    with Ledger(layout(folder).ledger, read_only=True) as ledger:
        first, second = ledger.history("p000")
    assert (record["failure"], record["line"], record["last_step"]) == (first.failure, first.line, first.last_step)
    assert record["sha256"] is None
    assert json.loads(layout(folder).attempt("p000", 2).record.read_text())["sha256"] is not None
    assert second.failure is None


def test_a_run_that_was_moved_finds_its_attempts_when_the_ledger_is_made_anew(folder: Path) -> None:
    moved = folder / "moved"
    layout(folder).root.rename(moved)
    (moved / "ledger.sqlite").unlink()
    assert run(folder, Untouchable(), out="moved") == 0


def test_a_ledger_on_a_network_file_system_does_without_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for network, mode in ((True, "delete"), (False, "wal"), (True, "delete")):
        monkeypatch.setattr(database, "is_network", lambda path, network=network: network)
        with Ledger(tmp_path / "ledger.sqlite") as ledger:
            ledger.start_run("run", "hash")
        with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db:
            assert db.execute("PRAGMA journal_mode").fetchone()[0] == mode
