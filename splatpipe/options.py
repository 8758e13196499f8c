"""What a command was asked to do: scene, run folder and settings, from a command line or from a run's record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from splatpipe.config import Config, config_from_dict, find_config, load_config
from splatpipe.console import say
from splatpipe.errors import ConfigError
from splatpipe.layout import RunLayout
from splatpipe.runfolder import read_run
from splatpipe.storage.address import parse_address
from splatpipe.storage.settings import StorageSettings

SOURCE = Path(__file__).resolve().parents[1]  # lfs_configs/ of a source checkout
MERGING, JUDGING = ("merge", "evaluation"), ("evaluation",)  # sections of settings that a finished run may change


@dataclass(frozen=True)
class RunOptions:
    """What a command was asked to do, resolved."""

    scene: Path
    layout: RunLayout
    config: Config
    profile_folders: tuple[Path, ...]  # where lfs_configs/ is looked for
    retrain: frozenset[str] = frozenset()
    batch: bool = False  # lines instead of a bar, wherever stderr goes

    @classmethod
    def resolve(
        cls,
        scene: Path,
        out: Path | None,
        config_file: Path | None,
        overrides: Sequence[str],
        images: str | None,
        retrain: str | None,
        batch: bool = False,
    ) -> RunOptions:
        """From a command line. Raises `ConfigError`."""
        scene = scene.expanduser().resolve()
        path = config_file or find_config(scene)
        config = load_config(path, [*overrides, *([f"scene.images={images}"] if images else [])], scene)
        layout = RunLayout((out or scene / "splatpipe" / "default").expanduser().resolve())
        _check_name(scene)
        _check_name(layout.root)
        folders = tuple(dict.fromkeys([path.resolve().parent if path else Path.cwd(), scene, Path.cwd(), SOURCE]))
        return cls(scene, layout, config, folders, patch_ids(retrain), batch)

    @classmethod
    def of_run(
        cls,
        run_folder: Path,
        retrain: str | None,
        executor: str | None = None,
        overrides: Sequence[str] = (),
        sections: Sequence[str] = MERGING,
    ) -> RunOptions:
        """From a run folder, to be trained by another kind of `executor` if one is given.

        `overrides` may change settings of `sections`, from now on. Raises `RunFolderError`, `ConfigError`.
        """
        for override in overrides:
            if override.split("=")[0].split(".")[0].strip() not in sections:
                raise ConfigError(
                    f"{override!r}: of a run's settings, only those of {' and '.join(sections)} change here"
                )
        layout = RunLayout(run_folder.expanduser().resolve())
        run = read_run(layout)
        if executor:
            run["settings"].setdefault("executor", {})["kind"] = executor
        config = config_from_dict(run["settings"], str(layout.run_yml), overrides)
        return cls(run["scene"], layout, config, (run["scene"], Path.cwd(), SOURCE), patch_ids(retrain))


def _check_name(folder: Path) -> None:
    """ConfigError for a folder whose name no file that names it could hold."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{folder}: its name is no UTF-8, or this shell's locale does not know its letters; "
            "rename the folder, or set LC_ALL=C.UTF-8"
        ) from None


@contextlib.contextmanager
def placed(
    scene: str,
    out: str | None,
    config_file: Path | None,
    overrides: Sequence[str],
    images: str | None,
    retrain: str | None,
    batch: bool = False,
) -> Iterator[RunOptions]:
    """The options of a run whose scene and run folder are paths or addresses (s3://...), with local copies of these.

    What the block has done is uploaded at its end. Raises a `SplatpipeError` for what cannot be fetched or put.
    """
    from splatpipe.storage.remote import local_places

    remote = any(parse_address(name) for name in (scene, out) if name)
    settings = load_config(config_file or find_config(None), overrides).storage if remote else StorageSettings()
    with local_places(scene, out, settings, say) as places:
        yield RunOptions.resolve(places.scene, places.out, config_file, overrides, images, retrain, batch)


def local_run(name: str, *parts: str) -> Path:
    """The folder of a run to read; of one in a store a copy, with settings, ledger and the files that match `parts`."""
    from splatpipe.storage.remote import run_copy

    address = parse_address(name)
    return run_copy(address, load_config(find_config(None)).storage, parts, say) if address else Path(name)


def patch_ids(named: str | None) -> frozenset[str]:
    """Of a list with commas."""
    return frozenset(part.strip() for part in (named or "").split(",") if part.strip())
