"""Runs whose scene or results are in a remote store: local copies to work on, and the way back."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import yaml

from splatpipe.errors import ConfigError, RunFolderError
from splatpipe.files import write_text
from splatpipe.layout import RunLayout
from splatpipe.storage.address import Address, parse_address
from splatpipe.storage.publishing import NOTES, Publisher
from splatpipe.storage.settings import StorageSettings
from splatpipe.storage.staging import fetch_all, stage, stage_scene
from splatpipe.storage.store import RemoteFile, Store
from splatpipe.yamltext import load_yaml

FOLDER = "splatpipe-work"
RUN_YML, LEDGER = "run.yml", "ledger.sqlite"


@dataclass(frozen=True)
class Places:
    """Where a run works. `out` None: the usual place below the scene."""

    scene: Path
    out: Path | None


@contextlib.contextmanager
def local_places(
    scene: str, out: str | None, settings: StorageSettings, say: Callable[[str], None]
) -> Iterator[Places]:
    """Local folders for a scene and a run folder, each a path or an address (`s3://bucket/scene`).

    A remote scene is fetched first. For a remote run folder what it holds is fetched where there is no local copy
    yet; while the block runs finished attempts are uploaded, at its end everything. Raises `ConfigError` for
    addresses that cannot be used, `EnvironmentProblem` when a store fails.
    """
    source, target = parse_address(scene), parse_address(out) if out else None
    if source is None and target is None:
        yield Places(Path(scene), Path(out) if out else None)
        return
    _check(source, out, target)
    work = Path(settings.work or FOLDER).expanduser().resolve()
    folder = stage_scene(Store(source), work / "scenes" / source.slug, say) if source else Path(scene)
    if target is None:
        yield Places(folder, Path(out) if out else None)
        return
    layout, store = RunLayout(work / "runs" / target.slug), Store(target)
    if not layout.run_yml.exists():
        fetch_run(store, layout, folder.expanduser().resolve(), say)
    publisher = Publisher(layout, store, say)
    with publisher.following():
        yield Places(folder, layout.root)
    say(f"everything is in {target}, read back and compared; the local copy is {layout.root}")
    if settings.delete_local:
        shutil.rmtree(layout.root)
        say(f"deleted the local copy {layout.root}")


def _check(source: Address | None, out: str | None, target: Address | None) -> None:
    if source and out is None:
        raise ConfigError(f"{source}: say with --out where the run shall be kept: a local folder, or an address")
    if target and not target.writable:
        raise ConfigError(f"--out {target}: nothing can be written there; give a local folder, or s3://, gs://, ssh://")


def run_copy(address: Address, settings: StorageSettings, parts: Sequence[str], say: Callable[[str], None]) -> Path:
    """A folder with what the store has of a run's settings and ledger, and of the files that match `parts`, to read.

    Raises `RunFolderError` when there is no run, `EnvironmentProblem` when the store fails.
    """
    store = Store(address)
    files = store.files()
    for key in (RUN_YML, LEDGER):
        if key not in files:
            raise RunFolderError(
                f"{address} holds no {key}: there is no run, or it has just begun; "
                f"splatpipe run SCENE --out {address} begins it or goes on with it"
            )
    wanted = {key: file for key, file in files.items() if any(fnmatch(key, part) for part in (RUN_YML, LEDGER, *parts))}
    folder = Path(settings.work or FOLDER).expanduser().resolve() / "copies" / address.slug
    stage(store, wanted, folder, say)
    for end in ("-wal", "-shm"):  # of the ledger that was there before
        (folder / f"{LEDGER}{end}").unlink(missing_ok=True)
    return folder


def fetch_run(store: Store, layout: RunLayout, scene: Path, say: Callable[[str], None]) -> None:
    """Bring an uploaded run here, to go on with it; nothing when the store holds none.

    The ledger stays where it is: it knows the folders of another machine, and is made anew from the attempts'
    records. So do patches, which are cut from the scene.
    """
    files = store.files()
    tried = [file for key, file in files.items() if key.startswith(("attempts/", "probes/"))]
    wanted = [file for file in tried if not file.key.endswith(".part")]
    if RUN_YML not in files:
        return
    say(f"going on with the run in {store.address}: fetching {len(wanted)} files into {layout.root}")
    layout.root.mkdir(parents=True, exist_ok=True)
    fetch_all(store, wanted, layout.root, {}, say)
    _fetch_settings(store, files[RUN_YML], layout, scene)


def _fetch_settings(store: Store, file: RemoteFile, layout: RunLayout, scene: Path) -> None:
    """run.yml with the scene's place on this machine; it comes last, for with it the local copy counts as begun."""
    draft = layout.root / ".run.yml.fetched"
    store.fetch(file, draft)
    run = load_yaml(draft.read_text(encoding="utf-8"))
    draft.unlink()
    write_text(layout.run_yml, yaml.safe_dump({**run, "scene": str(scene)}, sort_keys=False, allow_unicode=True))
    (layout.root / NOTES).unlink(missing_ok=True)
