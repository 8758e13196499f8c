"""A LichtFeld Studio without a GPU: strict about each build's contract, and failing as real builds have failed.

`install(folder, version, **behaviour)` leaves an executable. Behaviour, all optional:
  rules         list of {do, at, below_init_scaling, above_init_scaling, above_cap, above_width}: the first whose
                conditions hold ends the run at step `at` in the way `do` (lichtfeld_failures, or nan, collapse,
                spiral, diverge, hang, hang_deaf, kill, segfault)
  start         libraries, no_driver or old_driver: it does not even answer --help
  end           no_ply, project_only, half_ply, two_splats, not_finite, flung, giant, faded, other_count, in_cwd,
                stuck (never grows)
  status        exit status after a complete run
  points        how many points it says it has read
  step_seconds  time for each step
  torn_at       the save step in which it is killed, half of the checkpoint written
  train         really train, through splatpipe's own loop (lichtfeld_training)
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

if __name__ == "__main__":  # started by its wrapper, not imported by a test
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from doubles.lichtfeld_arguments import Arguments, parse_arguments, read_config
from doubles.lichtfeld_checkpoints import read_checkpoint, write_checkpoint
from doubles.lichtfeld_data import Dataset, read_dataset, write_result
from doubles.lichtfeld_failures import ABORTS, DOES_NOT_START, STEP_FAILED
from doubles.lichtfeld_versions import FAILURE_STATUS, SUCCESS_LINE, VERSION_TEXT

BETWEEN_LINES = 100  # steps between two refreshes of the bar
RESUMING = ("0.3", "0.5.0", "0.5.2")  # builds with `.resume` files
VARIABLE = "LICHTFELD_DOUBLE"


def install(folder: Path, version: str, **behaviour: Any) -> Path:
    """An executable that is that build, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "LichtFeld-Studio"
    settings = shlex.quote(json.dumps({"version": version, **behaviour}))
    python, script = shlex.quote(sys.executable), shlex.quote(str(Path(__file__).resolve()))
    path.write_text(f'#!/bin/sh\n{VARIABLE}={settings} exec {python} {script} "$@"\n')
    path.chmod(0o755)
    return path


class Double:
    """One process of the double."""

    def __init__(self, behaviour: dict[str, Any]) -> None:
        self.behaviour = behaviour
        self.version: str = behaviour["version"]
        self.begun = time.monotonic()

    def main(self, argv: list[str]) -> int:
        if start := self.behaviour.get("start"):
            status, text = DOES_NOT_START[start]
            print(text.format(name=Path(sys.argv[0]).name), file=sys.stderr)
            return status
        arguments = parse_arguments(argv, self.version)
        if arguments.error:
            return self.refuse(arguments.error)
        if arguments.text:
            print(arguments.text)
            return 0
        config, error = read_config(arguments, self.version)
        return self.refuse(error) if error else self.run(arguments, config)

    def refuse(self, message: str) -> int:
        early = self.version in FAILURE_STATUS
        print(f"Failed to parse arguments: {message}" if early else f"Error: {message}", file=sys.stderr)
        return FAILURE_STATUS.get(self.version, 1)

    def fail(self, message: str) -> int:
        """The build's own error path."""
        prefix = "" if self.version == "oct" else self.stamp("error", "application.cpp:190")
        print(f"\n{prefix}Training error: {message}", flush=True)
        return FAILURE_STATUS.get(self.version, 1)

    def stamp(self, level: str, place: str) -> str:
        seconds = time.monotonic() - self.begun
        return f"[{time.strftime('%H:%M:%S')}.{int(seconds * 1000) % 1000:03d}] [{level}] {place}  "

    def log(self, message: str, place: str = "training_setup.cpp:42", level: str = "info") -> None:
        print(self.stamp(level, place) + message, flush=True)

    def run(self, arguments: Arguments, config: dict[str, Any]) -> int:
        restored = (0, 0)
        if "resume" in arguments:
            self.log(f"Resuming from checkpoint: {arguments['resume']}", "application.cpp:81")
            step, count, config, wrong = read_checkpoint(Path(arguments["resume"]))
            if wrong:
                self.log(f"Failed to load checkpoint: {wrong}", "application.cpp:312", "error")
                return FAILURE_STATUS.get(self.version, 1)
            restored = (step, count)
        data, error = self.load(arguments, config, resumed_from=restored[0])
        if error is not None or data is None:
            return self.fail(f"Failed to load dataset: {error}")
        output = Path(arguments["output-path"]) if self.behaviour.get("end") != "in_cwd" else Path.cwd()
        output.mkdir(parents=True, exist_ok=True)
        (output / "training_config.json").write_text(json.dumps(config))
        training = Training(self, arguments, config, data, output)
        training.restore(*restored)
        if self.version == "master":
            signal.signal(signal.SIGTERM, training.interrupted)
        status = training.run()
        return self.behaviour.get("status", 0) if status is None else status

    def load(
        self, arguments: Arguments, config: dict[str, Any], resumed_from: int
    ) -> tuple[Dataset | None, str | None]:
        """The start-up lines, in the order of trainers.md A5."""
        print(f"LichtFeld Studio\n{VERSION_TEXT.get(self.version, 'version v0.3.0-195-g99ce575e | tag 99ce575e')}")
        self.log("CUDA driver version: 12.8")
        if not resumed_from:
            self.log("Starting headless training...")
        self.log(f"Loading dataset from: {arguments['data-path']}")
        data, error = read_dataset(Path(arguments["data-path"]), arguments.get("images", "images"))
        if data is None:
            return None, error
        self.log("Loading COLMAP in binary format", "colmap.cpp:601")
        self.log(f"Read {data.cameras} cameras and {len(data.names)} images from COLMAP", "colmap.cpp:733")
        self.log(f"Training with {len(data.names)} images")
        if not data.points:
            self.log("No point cloud found - will use random initialization", level="warn")
            data.points = [((0.1 * (i % 10), 0.1 * (i // 10), 0.0), (128, 128, 128)) for i in range(100)]
        read = self.behaviour.get("points", len(data.points))
        self.log(f"Loaded {read} points from COLMAP", "colmap.cpp:810")
        self.log("Dataset loaded successfully using COLMAP loader")
        if not resumed_from:
            self.log(f"Using point cloud with {read} points")
            print(f"Scene scale: {data.scene_scale:.6g}")
            print(f"Initialized SplatData with:\n  - {read} points")
        self.log(f"Strategy: {config['strategy']}", "trainer.cpp:310")
        self.log("Trainer initialization complete", "trainer.cpp:400")
        if resumed_from:
            self.log(f"Restored training state from checkpoint at iteration {resumed_from}", "trainer.cpp:1260")
            self.log(f"Resumed from iteration {resumed_from}", "application.cpp:340")
        self.log(f"Starting training loop with {arguments.get('max-width', '3840')} pixels at most", "trainer.cpp:902")
        return data, None


class Training:
    """The steps of one run and its end."""

    def __init__(
        self, double: Double, arguments: Arguments, config: dict[str, Any], data: Dataset, output: Path
    ) -> None:
        self.double, self.arguments, self.config, self.data, self.output = double, arguments, config, data, output
        self.total = int(arguments.get("iter", config["iterations"]))
        self.cap = int(arguments.get("max-cap", config.get("max_cap", 1_000_000)))
        self.count = len(data.points)
        self.step = 0
        self.loss = 0.25
        self.doom = next((rule for rule in double.behaviour.get("rules", ()) if self.applies(rule)), None)
        self.share = 0.05

    def restore(self, step: int, count: int) -> None:
        """Go on behind `step`, with the checkpoint's number of steps whatever the command line says."""
        if step:
            self.step, self.count = step, count
            self.total, self.cap = self.config["iterations"], self.config["max_cap"]

    def applies(self, rule: dict[str, Any]) -> bool:
        scaling = self.config.get("init_scaling", 0.1)
        width = int(self.arguments.get("max-width", "3840"))
        return (
            scaling < rule.get("below_init_scaling", 1e9)
            and scaling > rule.get("above_init_scaling", -1)
            and self.cap > rule.get("above_cap", -1)
            and width > rule.get("above_width", -1)
        )

    def run(self) -> int | None:
        """An exit status, or None after a complete run."""
        if self.data.distorted:
            return self.double.fail(f"Training step failed: {STEP_FAILED['distorted']}")
        if self.double.behaviour.get("train"):
            from doubles.lichtfeld_training import train

            train(self)
            self.say_goodbye()
            return None
        while self.step < self.total:
            status = self.one_step()
            if status is not None:
                return status
        self.finish()
        return self.leave()

    def one_step(self) -> int | None:
        self.step += 1
        time.sleep(self.double.behaviour.get("step_seconds", 0.0))
        if self.doom and self.step >= self.doom["at"]:
            status = self.meet(self.doom["do"])
            if status is not None:
                return status
        self.refine()
        self.save()
        # The bar is not drawn at the very end, so the last line of a complete run stands 100 steps short.
        if self.step % BETWEEN_LINES == 0 and self.step < self.total:
            self.draw()
        return None

    def save(self) -> None:
        """A splat and a checkpoint at each save step but the last, which the end of the run writes."""
        if self.step not in self.config.get("save_steps", ()) or self.step == self.total:
            return
        if self.double.version in RESUMING:
            torn = self.double.behaviour.get("torn_at") == self.step
            folder = self.output / "checkpoints"
            write_checkpoint(folder, self.double.version, self.step, self.count, self.config, torn)
            if torn:
                os.kill(os.getpid(), signal.SIGKILL)
        if self.double.version != "master" and self.double.behaviour.get("end") not in ("no_ply", "project_only"):
            write_result(self.output / f"splat_{self.step}.ply", self.data, self.count, self.config, "")

    def refine(self) -> None:
        c = self.config
        if not (c["start_refine"] < self.step < c["stop_refine"] and self.step % c["refine_every"] == 0):
            return
        grown = max(self.count, min(self.cap, int(1.05 * self.count)))
        if self.double.behaviour.get("end") == "stuck":
            grown = self.count
        self.report_refinement(self.step, int(self.share * self.count), grown - self.count, grown)
        self.count = grown

    def report_refinement(self, step: int, relocated: int, added: int, total: int) -> None:
        """The two lines that builds of v0.5 print when asked for debug messages."""
        if self.arguments.get("log-level") != "debug" or not self.double.version.startswith("0.5"):
            return
        self.double.log(f"MCMC: Relocated {relocated} dead Gaussians at iteration {step}", "mcmc.cpp:210", "debug")
        if added:
            text = f"MCMC: Added {added} new Gaussians at iteration {step} (total: {total})"
            self.double.log(text, "mcmc.cpp:311", "debug")

    def draw(self) -> None:
        share = self.step / self.total
        bar = "█" * int(40 * share) + " " * (40 - int(40 * share))
        mark = " (+)" if self.config["start_refine"] < self.step < self.config["stop_refine"] else ""
        loss = self.loss if isinstance(self.loss, str) else f"{self.loss * (1 - 0.5 * share):.4f}"
        sys.stdout.write(
            f"\r\x1b[36m\x1b[1mTraining [{bar}] {int(100 * share)}% [00:{self.step // 1000:02d}<00:09] "
            f"{self.step}/{self.total} | Loss: {loss} | Splats: {self.count}{mark}\x1b[0m\x1b[K"
        )
        sys.stdout.flush()

    def meet(self, what: str) -> int | None:
        """End in that way, or go on sick (None)."""
        if what in STEP_FAILED:
            return self.double.fail(f"Training step failed: {STEP_FAILED[what]}")
        if what in ABORTS:
            print("\n" + "\n".join(ABORTS[what]), file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGABRT)
        if what == "nan":
            self.loss = "nan"
        elif what == "collapse":
            self.share = min(self.share * 1.3, 0.98)
        elif what == "spiral":
            self.share = 0.6
        elif what == "diverge":
            self.loss = 2.0
        elif what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif what in ("hang", "hang_deaf"):
            self.hang(deaf=what == "hang_deaf")
        return None

    def hang(self, deaf: bool) -> NoReturn:
        if deaf:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(60)

    def interrupted(self, number: int, frame: FrameType | None) -> NoReturn:
        """Newest builds save first and then leave with a status of their own."""
        print(f"\nTraining stopped by user at iteration {self.step} (checkpoint saved)", flush=True)
        (self.output / "project.licht").write_bytes(b"LICHT")
        os._exit(143)

    def finish(self) -> None:
        print(f"\n✓ Training completed in {self.total * 0.004:.3f}s (avg 243.1 iter/s)")
        print(f"✓ Final splats: {self.count}", flush=True)

    def say_goodbye(self) -> None:
        self.double.log(SUCCESS_LINE.get(self.double.version, "Headless training completed"), "application.cpp:240")

    @property
    def result_path(self) -> Path:
        name = self.arguments.get("output-name")
        return self.output / (f"{name}.ply" if name else f"splat_{self.total}.ply")

    def leave(self) -> int | None:
        """The files of a complete run, or what has been seen instead; the last line."""
        end = self.double.behaviour.get("end", "")
        if self.double.version == "master":
            (self.output / "project.licht").write_bytes(b"LICHT")
        exports = self.double.version != "master" or "ply" in self.arguments.get("export", "").split(",")
        if end == "project_only":
            (self.output / "project.licht").write_bytes(b"LICHT")
        elif end != "no_ply" and exports:
            write_result(self.result_path, self.data, self.count, self.config, end)
        self.say_goodbye()
        if self.double.behaviour.get("status"):
            print("cudaErrorCudartUnloading: driver shutting down", file=sys.stderr)
        return None


if __name__ == "__main__":
    result = Double(json.loads(os.environ[VARIABLE])).main(sys.argv[1:])
    sys.stdout.flush()
    sys.exit(result)
