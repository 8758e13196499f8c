"""Commands and options; no logic. `--help` loads neither torch nor pycolmap."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console

from splatpipe import __version__
from splatpipe.console import say
from splatpipe.errors import ConfigError, EnvironmentProblem, Interrupted, SplatpipeError
from splatpipe.stopping import WHILE_PLANNING, Stop
from splatpipe.surroundings import (
    NO_THREAD,
    check_memory,
    check_threads,
    prepare_streams,
    short_of_memory,
    short_of_processes,
)

app = typer.Typer(
    name="splatpipe",
    help="One trained splat from a COLMAP scene too big for a single run, patch by patch, unattended.\n\n"
    "Begin with: splatpipe run SCENE. More: splatpipe COMMAND --help.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

EXIT_BUG = 1
_FREE_SPACE = "free some space and run again, what is trained is kept"
_MACHINE_ERRORS = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: "raise the limit for the size of files (ulimit -f) and run again",
    errno.EROFS: "choose a folder that can be written with --out",
    errno.EACCES: "choose a folder that you may write to with --out, or change its permissions",
    errno.EPERM: "choose a folder that you may write to with --out, or change its permissions",
    errno.EINTR: "the file system was interrupted; run again to continue",
    errno.EIO: "the disk reports an error; check it, then run again",
    errno.EMFILE: "raise the limit for open files (ulimit -n) and run again",
    errno.ENFILE: "too many files are open on this machine; run again when it is less busy",
    errno.EAGAIN: "raise the limit for processes (ulimit -u) and run again",
    errno.ENOMEM: "lower what the settings ask for, or free some memory",
}
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143
STOPPING = "stopping"
_debug = False
_stop_signal = 0


def _leave_at_once() -> None:
    """End the process while other threads compute; nothing was written that the next run could not use."""
    say(WHILE_PLANNING)
    os._exit(EXIT_TERMINATED if _stop_signal == signal.SIGTERM else EXIT_INTERRUPTED)


_stop = Stop(_leave_at_once)


def _folder(text: str) -> Path:
    """A path. Raises ConfigError for an address, where a command takes none."""
    from splatpipe.storage.address import parse_address

    if address := parse_address(text):
        raise ConfigError(
            f"{address}: this command takes folders of this machine only; splatpipe run fetches a scene or a run from "
            "a store and says where its copy is, and status, explain and export read a run in a store"
        )
    return Path(text)


Scene = Annotated[
    Path,
    typer.Argument(
        parser=_folder, metavar="SCENE", help="COLMAP scene: a folder with images/ and sparse/0, sparse, or the model."
    ),
]
Run = Annotated[Path, typer.Argument(parser=_folder, metavar="RUN_FOLDER", help="Run folder, as `run` printed it.")]
RunOrAddress = Annotated[
    str, typer.Argument(metavar="RUN_FOLDER", help="Run folder, as `run` printed it, or its address: s3://bucket/run.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings, e.g. training.iterations=2000.")
]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", parser=_folder, help="Run folder; default SCENE/splatpipe/default.")
]
SceneOrAddress = Annotated[
    str, typer.Argument(metavar="SCENE", help="As for the other commands, or an address: s3://bucket/scene, ssh://...")
]
OutOrAddress = Annotated[
    str | None, typer.Option("--out", "-o", help="Run folder or address; default SCENE/splatpipe/default.")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Settings file; default splat_config.yml beside the scene or here."),
]
Images = Annotated[str | None, typer.Option("--images", help="Image folder below the scene, e.g. images_4.")]
Retrain = Annotated[str | None, typer.Option("--retrain", help="Train these patches anew: p003,p007 or all.")]
NoHistory = Annotated[
    bool, typer.Option("--no-history", help="Choose first rungs without what similar patches went through.")
]
ExecutorKind = Annotated[
    str | None, typer.Option("--executor", help="Where patches are trained: local, ray or slurm (docs/cluster.md).")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"splatpipe {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    global _debug
    _debug = debug


@app.command()
def run(
    scene: SceneOrAddress,
    overrides: Overrides = None,
    out: OutOrAddress = None,
    config: ConfigFile = None,
    images: Images = None,
    retrain: Retrain = None,
    no_history: NoHistory = False,
    executor: ExecutorKind = None,
    batch: Annotated[
        bool, typer.Option("--batch", help="For batch systems: one line a minute and no bar, wherever stderr goes.")
    ] = False,
) -> None:
    """Split SCENE, train every patch, merge. Run again to continue: what is trained is not trained again."""
    from splatpipe import pages, pipeline
    from splatpipe.options import placed

    settings = [*(overrides or []), *(["retry.history=false"] if no_history else []), *_executor(executor)]
    with placed(scene, out, config, settings, images, retrain, batch) as options, _stopping():
        code = pipeline.run(options, stop=_stop)
        pages.add_splat_page(options.layout)
        _leave(code)


@app.command()
def inspect(
    scene: Scene, overrides: Overrides = None, config: ConfigFile = None, images: Images = None, as_json: Json = False
) -> None:
    """Facts and findings about SCENE; writes nothing."""
    from splatpipe import pipeline
    from splatpipe.options import RunOptions
    from splatpipe.tables import inspect_table

    options = RunOptions.resolve(scene, None, config, overrides or [], images, None)
    with _stopping(training=False):
        _print(pipeline.inspect(options, _stop), inspect_table, as_json)


@app.command()
def split(
    scene: Scene,
    overrides: Overrides = None,
    out: Out = None,
    config: ConfigFile = None,
    images: Images = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write no run folder.")] = False,
    picture: Annotated[
        Path | None, typer.Option("--map", help="Write the patches seen from above to this PNG.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Only split SCENE into patches on disk. With statistics, the first init_scaling of each and a map (map.png)."""
    from splatpipe import pipeline
    from splatpipe.options import RunOptions
    from splatpipe.tables import plan_table

    options = RunOptions.resolve(scene, out, config, overrides or [], images, None)
    with _stopping(training=False):
        _print(pipeline.split(options, dry_run=dry_run, picture=picture, stop=_stop), plan_table, as_json)


@app.command()
def train(run_folder: Run, retrain: Retrain = None, executor: ExecutorKind = None) -> None:
    """Train what a run has not trained yet, without merging."""
    from splatpipe import pipeline
    from splatpipe.options import RunOptions

    with _stopping():
        options = RunOptions.of_run(run_folder, retrain, executor)
        _leave(pipeline.run(options, stop=_stop, merge=False))


@app.command()
def merge(
    run_folder: Run,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings of merge and evaluation, e.g. merge.match_colors=true."),
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", help="Just these patches, into a file of their own: p001,p002.")
    ] = None,
) -> None:
    """Merge the trained patches again and evaluate the result."""
    from splatpipe import pages, pipeline
    from splatpipe.options import RunOptions

    with _stopping(training=False):
        options = RunOptions.of_run(run_folder, None, overrides=overrides or [])
        code = pipeline.merge(options, only, _stop)
        pages.add_splat_page(options.layout)
        _leave(code)


@app.command("eval")
def evaluate(
    run_folder: Run,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings, e.g. evaluation.lpips_weights=FOLDER."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Hold-out quality of merged splat, patches and views. With what borders between patches cost."""
    from splatpipe import pipeline
    from splatpipe.options import JUDGING, RunOptions
    from splatpipe.tables import evaluation_table

    with _stopping(training=False):
        options = RunOptions.of_run(run_folder, None, overrides=overrides or [], sections=JUDGING)
        _print(pipeline.judge(options, _stop), evaluation_table, as_json)


@app.command()
def export(
    run_folder: RunOrAddress,
    to: Annotated[str, typer.Option("--to", help="ply, compressed, spz, sog, html, lod; several with commas.")],
    georeference: Annotated[
        Path | None,
        typer.Option("--georeference", help="Transform to the world: 4x4 matrix, JSON, or model_aligner's file."),
    ] = None,
    georeferenced: Annotated[
        bool, typer.Option("--georeferenced", help="Write in the world's coordinates instead of the scene's.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the merged splat in web formats. Through splat-transform, which needs Node.js."""
    from splatpipe.exporting import export_run
    from splatpipe.options import local_run
    from splatpipe.tables import export_table

    folder = local_run(run_folder, "merged/splat.ply")
    _print(export_run(folder, to, georeference, georeferenced, say), export_table, as_json)


@app.command()
def status(run_folder: RunOrAddress, as_json: Json = False) -> None:
    """What became of every patch of a run. May be asked while it runs."""
    from splatpipe.options import local_run
    from splatpipe.pipeline import status as facts_of
    from splatpipe.tables import status_table

    _print(facts_of(local_run(run_folder)), status_table, as_json)


@app.command()
def report(
    run_folder: Run,
    splat: Annotated[
        bool, typer.Option(help="Also a page with the merged splat in 3D, through splat-transform (needs Node.js).")
    ] = True,
    as_json: Json = False,
) -> None:
    """Write the run's page anew, report/index.html. Also while it runs; and the merged splat in 3D beside it."""
    from splatpipe.pages import write_pages

    _print(write_pages(run_folder, splat), lambda made: "\n".join(filter(None, made.values())), as_json)


@app.command()
def view(
    run_folder: Run,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on.")] = 8080,
    gaussians: Annotated[
        int, typer.Option("--gaussians", min=1, help="Most Gaussians to give to the browser.")
    ] = 300_000,
) -> None:
    """Show a run in 3D in the browser, also while it trains. Points, cameras, patches and splats (needs viser)."""
    from splatpipe.layout import RunLayout
    from splatpipe.viewer.serve import serve

    serve(RunLayout(run_folder.expanduser().resolve()), host, port, gaussians, threading.Event(), print)


@app.command()
def explain(
    run_folder: RunOrAddress,
    patch: Annotated[str, typer.Argument(help="Patch id, e.g. p007.")],
    as_json: Json = False,
) -> None:
    """The story of one patch: measured, foreseen, tried. With what each attempt died of, and what worked."""
    from splatpipe.explain import explain as tell
    from splatpipe.options import local_run

    story = tell(local_run(run_folder, f"attempts/{patch}/*.txt", f"attempts/{patch}/*.json*"), patch)
    print(json.dumps(story, indent=1, allow_nan=False) if as_json else "\n".join(story["story"]))


@app.command()
def compare(
    things: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] A B [C...]",
            help="Patches (p000) or attempts (p000/2) after their run folder, run folders, checkpoints, .ply files.",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Two things or more of one kind side by side, and a verdict. What differs most is on top."""
    from splatpipe.comparing import compare as facts_of
    from splatpipe.tables import compare_table

    for thing in things:
        _folder(thing)
    _print(facts_of(things), compare_table, as_json)


@app.command()
def diagnose(
    run_folder: Run,
    patch: Annotated[str, typer.Argument(help="Patch id, e.g. p007.")],
    against: Annotated[
        str | None, typer.Option("--against", help="A patch that works; default: the trained one most alike.")
    ] = None,
    budget: Annotated[str, typer.Option("--budget", help="Time for experiments, e.g. 90s, 10m, 1h.")] = "10m",
    as_json: Json = False,
) -> None:
    """Find out why a patch fails. Checks its data, trains variants of it briefly, ranks causes; run again to go on."""
    from splatpipe.diagnosing import diagnose_patch
    from splatpipe.options import RunOptions
    from splatpipe.tables import diagnosis_table

    with _stopping():
        options = RunOptions.of_run(run_folder, None)
        _print(diagnose_patch(options, patch, against, budget, stop=_stop), diagnosis_table, as_json)


@app.command("slurm-script")
def slurm_script(
    scene: SceneOrAddress,
    overrides: Overrides = None,
    out: OutOrAddress = None,
    config: ConfigFile = None,
    gpus: Annotated[int, typer.Option("--gpus", min=0, help="GPUs of the node; 0 trains on the CPU.")] = 1,
    chain: Annotated[
        int, typer.Option("--chain", min=1, help="Jobs in a row, each going on where the one before was cut off.")
    ] = 1,
) -> None:
    """Print an sbatch script that runs SCENE on one node. It survives time limits and preemption."""
    from splatpipe.batch import slurm_script as script_of
    from splatpipe.executors.sbatch import NodeShare

    print(script_of(scene, out, config, overrides or [], NodeShare(gpus, chain)), end="")


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine can do: CUDA, trainers, memory, disk."""
    from splatpipe.config import find_config, load_config
    from splatpipe.doctor import examine
    from splatpipe.tables import doctor_table

    binary = load_config(find_config(None)).training.lfs_binary
    _print(examine(lichtfeld=binary).to_json(), doctor_table, as_json)


def main() -> None:
    """Entry point: turns what a user can cause into one sentence and an exit code."""
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, _terminate)  # commands that can be stopped with care have their own
    if before[signal.SIGINT] is signal.default_int_handler:  # not where it is ignored, as in a script's background
        signal.signal(signal.SIGINT, _interrupt)
    try:
        prepare_streams()
        check_memory()
        check_threads()
        app(standalone_mode=True)
    except (Interrupted, KeyboardInterrupt) as error:
        if str(error):
            say(str(error))
        sys.exit(EXIT_TERMINATED if _stop_signal == signal.SIGTERM else EXIT_INTERRUPTED)
    except SplatpipeError as error:
        _explain(error)
        sys.exit(error.exit_code)
    except MemoryError as error:
        _explain(short_of_memory(str(error)))
        sys.exit(EnvironmentProblem.exit_code)
    except OSError as error:
        if error.errno not in _MACHINE_ERRORS:
            _explain(error, "this is a bug of splatpipe: ")
            sys.exit(EXIT_BUG)
        _explain(
            EnvironmentProblem(f"{error.filename or 'this machine'}: {error.strerror}; {_MACHINE_ERRORS[error.errno]}")
        )
        sys.exit(EnvironmentProblem.exit_code)
    except Exception as error:
        if str(error) == NO_THREAD:
            _explain(short_of_processes())
            sys.exit(EnvironmentProblem.exit_code)
        _explain(error, "this is a bug of splatpipe: ")
        sys.exit(EXIT_BUG)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Leave at once; said here, because typer turns the exception into an exit code without a word."""
    say("stopped")
    raise KeyboardInterrupt


def _terminate(number: int, frame: FrameType | None) -> None:
    """Leave at once, also from the middle of an import: nothing goes on that must be brought to a good end."""
    say("stopped")
    sys.exit(EXIT_TERMINATED)


def _explain(error: Exception, prefix: str = "") -> None:
    if _debug:
        traceback.print_exception(error)
        return
    name = f"{type(error).__name__}: " if prefix else ""
    hint = " (splatpipe --debug ... shows where)" if prefix else ""
    say(f"splatpipe: {prefix}{name}{error}{hint}")


def _print(facts: Any, table: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts, indent=1, allow_nan=False))
        return
    terminal = sys.stdout.isatty()
    Console(width=None if terminal else 160, highlight=False).print(table(facts))


def _executor(kind: str | None) -> list[str]:
    return [f"executor.kind={kind}"] if kind else []


def _leave(exit_code: int) -> None:
    if exit_code:
        raise typer.Exit(exit_code)


class _stopping:
    """While the block runs, SIGINT and SIGTERM ask the pipeline to stop; a second SIGINT interrupts at once."""

    def __init__(self, training: bool = True) -> None:
        self._words = f"{STOPPING}: attempts that are running write a checkpoint first" if training else STOPPING

    def __enter__(self) -> None:
        self._before = {n: signal.signal(n, self._ask) for n in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        global _stop_signal
        if _stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        _stop_signal = number
        _stop.set()
        say(STOPPING if _stop.within_harmless else self._words)


if __name__ == "__main__":
    main()
