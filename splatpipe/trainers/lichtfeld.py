"""LichtFeld Studio as a trainer: its binary, its command, its log, its result. See docs/lichtfeld.md."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from splatpipe.errors import EnvironmentProblem
from splatpipe.failures.classes import FailureClass
from splatpipe.files import write_json
from splatpipe.health.told import ToldHealth
from splatpipe.splatting.images import training_size
from splatpipe.splatting.ply import SplatFileError, antialiased_comment
from splatpipe.trainers.base import CollectProblem, Command, TrainerInfo, TrainRequest
from splatpipe.trainers.devices import visible_devices
from splatpipe.trainers.lichtfeld_checkpoint import Checkpoint, can_resume, newest, same_training, save_steps
from splatpipe.trainers.lichtfeld_config import IGNORED, complete, read_profile
from splatpipe.trainers.lichtfeld_dataset import facts, read_patch, stage
from splatpipe.trainers.lichtfeld_flags import Plan, arguments, width_limit
from splatpipe.trainers.lichtfeld_log import Event, Expected, LogReader
from splatpipe.trainers.lichtfeld_options import MIP_BLUR, option_arguments
from splatpipe.trainers.lichtfeld_probe import Binary, ask, find_binary
from splatpipe.trainers.lichtfeld_result import aim_of, check_count, convert, find_result

GIB = 1 << 30


class LichtfeldTrainer:
    """Trains with the LichtFeld Studio binary, whatever its version."""

    name = "lichtfeld"
    ignored = IGNORED

    def __init__(self, binary: Path | None = None, profile: Path | None = None, cache: Path | None = None) -> None:
        """`binary`: None looks at $LICHTFELD_BIN and PATH. `profile`: a JSON file under lfs_configs/, checked here.

        `cache`: where answers of binaries are kept, the user's cache folder by default. Raises ConfigError.
        """
        self._setting, self._cache = binary, cache
        self._profile = read_profile(profile) if profile else {}

    def probe(self) -> TrainerInfo:
        """Whether a LichtFeld Studio is here and starts; `capabilities` are its long flags, and "cuda".

        "cuda" says that GPUs can be told apart, as everywhere; without it LFS takes the first one by itself.
        """
        try:
            binary = self._binary
        except EnvironmentProblem as problem:
            return TrainerInfo(self.name, False, "", str(problem))
        import torch

        flags = binary.flags | {"cuda"} if torch.cuda.is_available() else binary.flags
        return TrainerInfo(self.name, True, binary.version, f"found at {binary.path}", flags)

    def command(self, request: TrainRequest) -> Command:
        """Stage configuration and data below `request.out` and say how to start LFS on them."""
        binary = self._binary
        config = complete(self._profile, request.settings, request.init_scaling)
        model = read_patch(request.patch, request.skip_cameras)
        files = _Files(request.out)
        checkpoint = None
        if can_resume(binary.flags):
            saves = save_steps(config["iterations"], request.settings.checkpoint_every)
            config["save_steps"] = sorted({*config["save_steps"], *saves})
            checkpoint = files.rescue(request, config)
        else:
            files.clear()
        data = stage(request.patch, model, request.skip_cameras, files.data)
        write_json(files.config, config)
        files.output.mkdir(parents=True)
        measured, settings = facts(model), request.settings
        wanted, _ = training_size(measured.widest, 1, settings.downscale, settings.max_width)
        plan = Plan(
            data=data,
            output=files.output,
            config=files.config,
            iterations=config["iterations"],
            max_cap=config["max_cap"],
            max_width=width_limit(measured.widest, wanted, binary.flags),
            spare_memory=0 < settings.image_cache_gb * GIB < measured.decoded_bytes,
            tile_mode=int(config.get("tile_mode", 1)),
            resume=checkpoint.path if checkpoint else None,
        )
        used = (*settings.options(), *(["masks"] if request.patch.masks.is_dir() else []))
        options = option_arguments(used, binary.flags)
        argv = (str(binary.path), *arguments(plan, binary.flags), *options)
        on_gpu = request.device.startswith("cuda")  # else it was not chosen by us: LFS trains on nothing but a GPU
        env = visible_devices(request.device, os.environ) if on_gpu else dict(os.environ)
        # Some builds ignored --output-path and wrote into the working folder (LFS #1900): make them one.
        return Command(argv=argv, env=env, cwd=files.output)

    def attend(self, request: TrainRequest) -> LichtfeldRun:
        """What reads the log of this attempt and fetches its result."""
        return LichtfeldRun(request, complete(self._profile, request.settings, request.init_scaling))

    def parse_line(self, line: str) -> dict[str, Any] | None:
        """LFS's lines only mean something together: see `attend`."""
        return None

    @cached_property
    def _binary(self) -> Binary:
        return ask(find_binary(self._setting), self._cache)


class _Files:
    """Where an attempt's LFS files are; they are splatpipe's own, and made anew for each start."""

    def __init__(self, out: Path) -> None:
        root = out.resolve() / "lichtfeld"
        self.root = root
        self.config = root / "config.json"
        self.data = root / "data"
        self.output = root / "output"
        self.resume = root / "resume"  # the checkpoint that this start goes on from

    def rescue(self, request: TrainRequest, config: dict[str, Any]) -> Checkpoint | None:
        """The furthest checkpoint of earlier starts of the same training; one of this attempt is moved to `resume`.

        Whenever this is cut off, the next start finds that checkpoint again: `config.json` stays until the new one is
        written, and only what is behind it is cleared away.
        """
        starts = [self, *(_Files(files.root) for files in request.continued)]
        starts = [files for files in starts if same_training(files.config, config)]
        found = newest([folder for files in starts for folder in (files.output, files.resume)], config["iterations"])
        if found is not None and found.path.is_relative_to(self.root):
            self.resume.mkdir(exist_ok=True)
            found = found.moved(self.resume)
        self.clear(found)
        return found

    def clear(self, but: Checkpoint | None = None) -> None:
        shutil.rmtree(self.data, ignore_errors=True)
        shutil.rmtree(self.output, ignore_errors=True)
        for path in self.resume.glob("*"):
            if but is None or path != but.path:
                path.unlink()


class LichtfeldRun:
    """One attempt: its log becomes events, its output folder becomes `splat.ply`."""

    def __init__(self, request: TrainRequest, config: dict[str, Any]) -> None:
        self._request, self._config = request, config
        model = read_patch(request.patch, request.skip_cameras)
        measured = facts(model)
        self._points = model.points
        self._log = LogReader(Expected(measured.images, measured.points, measured.scene_scale, config["iterations"]))
        self._health = ToldHealth(request.health)

    def read_line(self, line: str) -> Sequence[Event]:
        """The events of one line of output, with the verdicts that follow from them."""
        events = []
        for event in self._log.read(line):
            events += [event, *self._health.add(event)]
        self._log.condemned = self._log.condemned or any(event["event"] == "error" for event in events)
        return events

    def collect(self) -> Sequence[Event]:
        """Turn what LFS left into `splat.ply`; the last events of the attempt. CollectProblem if it is no result."""
        log = self._log
        if log.condemned or log.stopped_at is not None:
            raise CollectProblem(FailureClass.EXPORT_MISSING, f"the run ended early{_at(log.stopped_at)}.")
        output = _Files(self._request.out).output
        aim = aim_of(self._config, self._points)
        try:
            header = find_result(output, aim)
            if not log.finished:
                sentence = f"{header.path.name} is there, but LichtFeld Studio never said that training was completed."
                raise CollectProblem(FailureClass.EXPORT_MISSING, sentence)
            notes = check_count(header, aim, log.final_count)
            request = self._request
            comments = [f"splatpipe patch {request.patch_id} attempt {request.attempt} lichtfeld"]
            comments += [antialiased_comment(MIP_BLUR)] if request.settings.antialiased else []
            count = convert(header, aim, request.similarity, request.files.splat, comments)
        except SplatFileError as error:
            raise CollectProblem(FailureClass.EXPORT_MISSING, str(error)) from error
        _Files(request.out).clear()  # splat.ply holds all of it
        done = {"event": "done", "step": aim.iterations, "gaussians": count, "seconds": log.seconds}
        return [*log.flush(), *({"event": "warning", "message": note} for note in notes), done]


def _at(step: int | None) -> str:
    return "" if step is None else f", at iteration {step}"
