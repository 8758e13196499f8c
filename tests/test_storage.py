"""Scenes and runs in remote stores: fetched once and whole, uploaded with proof, gone on with on another machine."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from doubles.trainer_double import TrainerDouble
from scenes import synthetic_scene, write_scene
from typer.testing import CliRunner

from splatpipe import pipeline
from splatpipe.cli import app
from splatpipe.errors import ConfigError, EnvironmentProblem, Interrupted, RunFolderError, SceneError
from splatpipe.layout import RunLayout
from splatpipe.options import local_run, placed
from splatpipe.storage.address import parse_address
from splatpipe.storage.publishing import Publisher
from splatpipe.storage.staging import stage_scene
from splatpipe.storage.store import RemoteFile, Store

SETTINGS = [
    *("training.iterations=60", "training.refine_start=10", "training.max_cap=500", "training.device=cpu"),
    *("patching.max_cameras=12", "patching.holdout_every=0"),
]


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's store in memory, empty."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield store
    store.store.clear()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene") / "field"
    write_scene(folder, synthetic_scene(n_cameras=25, n_points=300))
    return folder


def store_at(url: str) -> Store:
    address = parse_address(url)
    assert address is not None
    return Store(address)


def said() -> tuple[list[str], Any]:
    sentences: list[str] = []
    return sentences, sentences.append


def run(scene: str, out: str, work: Path, trainer: TrainerDouble, *more: str) -> int:
    settings = [*SETTINGS, f"storage.work={work}", *more]
    with placed(scene, out, None, settings, None, None) as options:
        return pipeline.run(options, stop=threading.Event(), trainer=trainer)


class Untouchable(TrainerDouble):
    def command(self, request: Any) -> Any:
        raise AssertionError(f"{request.patch_id} is trained again")


@pytest.mark.parametrize("text", ["/data/scene", "scene", "C:\\scene", "./a:b"])
def test_paths_are_no_addresses(text: str) -> None:
    assert parse_address(text) is None


@pytest.mark.parametrize("text", ["s3://", "gs:///", "ftp2://host/scene"])
def test_an_address_that_names_nothing_is_a_sentence(text: str) -> None:
    with pytest.raises(ConfigError, match=r"names no folder|no store of the kind"):
        parse_address(text)


def test_a_scene_is_fetched_once_and_what_changed_again(memory: Any, scene: Path, tmp_path: Path) -> None:
    memory.put(str(scene), "/bucket/field", recursive=True)
    memory.pipe("/bucket/field/splatpipe/default/run.yml", b"a run, no part of the scene")
    sentences, say = said()
    folder = stage_scene(store_at("memory://bucket/field"), tmp_path / "copy", say)
    fetched = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and p.name != ".staged.json")
    assert fetched == sorted(p.relative_to(scene) for p in scene.rglob("*") if p.is_file())
    assert len(sentences) == 1 and "fetching 30 of 30 files" in sentences[0]
    stage_scene(store_at("memory://bucket/field"), folder, say)
    assert len(sentences) == 1
    (folder / "images" / "view_0003.jpg").unlink()
    memory.pipe("/bucket/field/images/view_0004.jpg", b"another photograph")
    memory.rm("/bucket/field/images/view_0005.jpg")
    stage_scene(store_at("memory://bucket/field"), folder, say)
    assert "fetching 2 of 29 files" in sentences[1]
    assert (folder / "images" / "view_0004.jpg").read_bytes() == b"another photograph"
    assert not (folder / "images" / "view_0005.jpg").exists()


def test_a_file_that_was_cut_off_is_gone_on_with(memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 400
    memory.pipe("/bucket/field/points3D.bin", data)
    store = store_at("memory://bucket/field")
    monkeypatch.setattr("splatpipe.storage.store.BLOCK", 1000)
    real, starts = store._fs.open, []

    def breaking(path: str, mode: str) -> Any:
        handle = real(path, mode)
        read, seek = handle.read, handle.seek
        left = iter([True] * 30)

        def cut(size: int) -> bytes:
            if len(starts) == 1 and not next(left, False):
                raise ConnectionResetError("the network is gone")
            return bytes(read(size))

        def note(at: int) -> int:
            starts.append(at)
            return int(seek(at))

        handle.read, handle.seek = cut, note
        return handle

    monkeypatch.setattr(store._fs, "open", breaking)
    with pytest.raises(EnvironmentProblem, match="the network is gone"):
        stage_scene(store, tmp_path, print)
    assert not (tmp_path / "points3D.bin").exists()
    stage_scene(store, tmp_path, print)
    assert (tmp_path / "points3D.bin").read_bytes() == data
    assert starts[0] == 0 and starts[-1] == 30_000


def test_the_beginning_of_an_older_version_is_not_gone_on_with(memory: Any, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(b"old")
    memory.pipe("/bucket/field/a.bin", b"new and longer")
    stage_scene(store_at("memory://bucket/field"), tmp_path, print)
    assert (tmp_path / "a.bin").read_bytes() == b"new and longer"


def test_what_arrives_damaged_is_not_taken(memory: Any, tmp_path: Path) -> None:
    memory.pipe("/bucket/field/a.bin", b"12345")
    file = RemoteFile("a.bin", 5, "", md5="0" * 32)
    with pytest.raises(EnvironmentProblem, match="not what the store announced"):
        store_at("memory://bucket/field").fetch(file, tmp_path / "a.bin")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["../../evil", "a/../../evil", "C:/evil", "a\\..\\evil"])
def test_a_key_that_leads_out_of_the_folder_is_refused(memory: Any, tmp_path: Path, key: str) -> None:
    store = store_at("memory://bucket/field")
    store._fs = type("Listing", (), {
        "invalidate_cache": lambda self: None,
        "find": lambda self, root, detail: {f"{store._root}/{key}": {"type": "file", "size": 1}},
    })()  # fmt: skip
    with pytest.raises(EnvironmentProblem, match="leads out of its folder"):
        stage_scene(store, tmp_path / "copy", print)
    assert not (tmp_path / "evil").exists()


def test_an_empty_address_is_no_scene(memory: Any, tmp_path: Path) -> None:
    with pytest.raises(SceneError, match="holds no file"):
        stage_scene(store_at("memory://bucket/nothing"), tmp_path, print)


def test_a_remote_run_is_uploaded_and_another_machine_goes_on_with_it(
    memory: Any, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory.put(str(scene), "/bucket/field", recursive=True)
    stop = threading.Event()

    class OnePatch(TrainerDouble):
        """Asks to stop when the second patch begins."""

        def command(self, request: Any) -> Any:
            if request.patch_id == "p001":
                stop.set()
            return super().command(request)

    here = [*SETTINGS, f"storage.work={tmp_path / 'here'}"]
    with (
        pytest.raises(Interrupted),
        placed("memory://bucket/field", "memory://bucket/run", None, here, None, None) as options,
    ):
        pipeline.run(options, stop=stop, trainer=OnePatch({"default": {"step_s": 0.05}}))
    assert memory.exists("/bucket/run/attempts/p000/01/splat.ply")
    assert memory.exists("/bucket/run/ledger.sqlite")
    shutil.rmtree(tmp_path / "here")

    class OnlySecond(TrainerDouble):
        def command(self, request: Any) -> Any:
            assert request.patch_id == "p001"
            return super().command(request)

    assert run("memory://bucket/field", "memory://bucket/run", tmp_path / "there", OnlySecond({"default": {}})) == 0
    assert "going on with the run in memory://bucket/run" in capsys.readouterr().err
    merged = next((tmp_path / "there" / "runs").glob("*/merged/splat.ply"))
    assert memory.cat("/bucket/run/merged/splat.ply") == merged.read_bytes()
    assert run("memory://bucket/field", "memory://bucket/run", tmp_path / "third", Untouchable()) == 0


def test_another_machine_goes_on_with_the_run_of_one_that_was_lost(
    memory: Any, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost, stop = tmp_path / "lost", threading.Event()

    class Stopped(TrainerDouble):
        def command(self, request: Any) -> Any:
            if request.patch_id == "p001":
                threading.Timer(0.5, stop.set).start()
            return super().command(request)

    options = pipeline.RunOptions.resolve(scene, lost, None, SETTINGS, None, None)
    with pytest.raises(Interrupted):
        pipeline.run(options, stop=stop, trainer=Stopped({"p001": {"step_s": 0.2}}))
    (lost / "attempts" / "p001" / "01" / "attempt.json").unlink(missing_ok=True)  # as it is while an attempt goes on
    Publisher(RunLayout(lost), store_at("memory://bucket/run"), print).sync()

    class NotTheFirst(TrainerDouble):
        def command(self, request: Any) -> Any:
            assert request.patch_id != "p000"
            return super().command(request)

    assert run(str(scene), "memory://bucket/run", tmp_path / "there", NotTheFirst({"default": {}})) == 0
    assert "going on with the run in memory://bucket/run" in capsys.readouterr().err
    (there,) = (tmp_path / "there" / "runs").iterdir()
    assert {patch["id"]: len(patch["attempts"]) for patch in pipeline.status(there)["patches"]}["p001"] == 1


def test_a_run_in_a_store_can_be_asked_how_it_went(
    memory: Any, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(str(scene), "memory://bucket/run", tmp_path / "there", TrainerDouble({"default": {}})) == 0
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(tmp_path / "there")
    told = CliRunner().invoke(app, ["status", "memory://bucket/run", "--json"])
    assert {patch["outcome"] for patch in json.loads(told.stdout)["patches"]} == {"trained"}
    told = CliRunner().invoke(app, ["explain", "memory://bucket/run", "p000"])
    assert "p000 is trained at the first attempt" in told.stdout
    told = CliRunner().invoke(app, ["export", "memory://bucket/run", "--to", "ply", "--json"])
    splat = Path(json.loads(told.stdout)["splat"])
    assert splat.read_bytes() == memory.cat("/bucket/run/merged/splat.ply")
    assert CliRunner().invoke(app, ["status", "memory://bucket/run"]).exit_code == 0
    assert splat.exists()
    with pytest.raises(RunFolderError, match=r"memory://bucket/nothing holds no run\.yml"):
        local_run("memory://bucket/nothing")


@pytest.mark.parametrize("command", [["merge"], ["report"], ["compare"], ["inspect"], ["split"], ["train"], ["view"]])
def test_a_command_that_takes_no_address_says_so(command: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*command, "s3://user:secret@bucket/run"])
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception).startswith("s3://user:***@bucket/run: this command takes folders of this machine only")


def test_the_local_copy_is_deleted_only_when_the_store_has_everything(memory: Any, scene: Path, tmp_path: Path) -> None:
    delete = "storage.delete_local=true"
    assert run(str(scene), "memory://bucket/run", tmp_path, TrainerDouble({"default": {}}), delete) == 0
    assert not list((tmp_path / "runs").iterdir())
    assert run(str(scene), "memory://bucket/run", tmp_path, Untouchable(), delete) == 0


def test_what_reads_back_differently_is_an_error_and_nothing_is_deleted(
    memory: Any, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Store._read_back

    def damaged(self: Store, path: str) -> str:
        return "0" * 64 if path.endswith("p001/01/splat.ply") else real(self, path)

    monkeypatch.setattr(Store, "_read_back", damaged)
    delete = "storage.delete_local=true"
    with pytest.raises(EnvironmentProblem, match=r"p001/01/splat.ply: read back, it is not what was written"):
        run(str(scene), "memory://bucket/run", tmp_path, TrainerDouble({"default": {}}), delete)
    assert len(list((tmp_path / "runs").glob("*/attempts/*/01/splat.ply"))) == 3
    monkeypatch.undo()
    assert run(str(scene), "memory://bucket/run", tmp_path, Untouchable()) == 0
    assert memory.exists("/bucket/run/attempts/p001/01/splat.ply")


def test_finished_attempts_are_uploaded_while_others_train_and_nothing_twice(tmp_path: Path, memory: Any) -> None:
    layout = RunLayout(tmp_path / "run")
    done, running = layout.attempt("p000", 1), layout.attempt("p001", 1)
    for files in (done, running):
        files.checkpoints.mkdir(parents=True)
        files.events.write_text("{}")
    done.splat.write_bytes(b"a splat")
    done.record.write_text("{}")
    (running.checkpoints / "step_0000020.pt").write_bytes(b"a checkpoint")
    publisher = Publisher(layout, store_at("memory://bucket/run"), print)
    publisher.sync()
    there = {name.removeprefix("/bucket/run/") for name in memory.find("/bucket/run")}
    p000 = {f"attempts/p000/01/{name}" for name in ("splat.ply", "attempt.json", "events.jsonl")}
    assert there == p000 | {"attempts/p001/01/checkpoints/step_0000020.pt"}
    for name in memory.find("/bucket/run"):
        memory.rm(name)
    Publisher(layout, store_at("memory://bucket/run"), print).sync()
    assert not memory.find("/bucket/run")  # the notes say that it is there; nothing is sent twice
    assert json.loads((layout.root / "uploaded.json").read_text())["attempts/p000/01/splat.ply"]["sha256"]


def test_a_folder_on_a_disk_is_a_store_like_any_other(scene: Path, tmp_path: Path) -> None:
    out = f"file://{tmp_path}/store/run"
    assert run(f"file://{scene}", out, tmp_path / "work", TrainerDouble({"default": {}})) == 0
    stored = tmp_path / "store" / "run"
    assert {path.name for path in stored.iterdir()} >= {"run.yml", "ledger.sqlite", "merged", "attempts"}
    assert not list(stored.rglob("*.part"))
    assert pipeline.status(stored)["exit_code"] == 0


def test_a_store_without_its_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(EnvironmentProblem, match=r"needs the Python package s3fs.*splatpipe\[remote\]"):
        store_at("s3://bucket/scene")


def test_a_remote_scene_needs_to_be_told_where_the_run_goes(memory: Any, tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="--out"),
        placed("memory://bucket/field", None, None, [], None, None),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="nothing can be written there"),
        placed("scene", "https://host/run", None, [], None, None),
    ):
        pass


def test_a_password_in_an_address_is_not_printed() -> None:
    address = parse_address("ssh://me:secret@host:22/scene")
    assert str(address) == "ssh://me:***@host:22/scene" and address is not None and "secret" in address.url


def test_a_password_is_not_kept_in_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scene(tmp_path / "scene", synthetic_scene(n_cameras=8, n_points=100))
    monkeypatch.setattr(sys, "argv", ["splatpipe", "run", "ssh://me:secret@host/scene"])
    given = pipeline.RunOptions.resolve(tmp_path / "scene", tmp_path / "run", None, [], None, None)
    pipeline.split(given, dry_run=False)
    written = [path.read_bytes() for path in (tmp_path / "run").glob("*.*")]
    assert any(b"ssh://me:***@host/scene" in text for text in written)
    assert not any(b"secret" in text for text in written)
