"""Where health signals go beside `events.jsonl` and the ledger: TensorBoard and Weights & Biases, both optional.

TensorBoard files lie in the attempt's folder (`tensorboard --logdir RUN/attempts` shows all of a run). W&B runs
offline unless WANDB_MODE says otherwise; `wandb sync RUN/attempts/*/*/wandb/offline-run-*` uploads them later.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from splatpipe.errors import ConfigError

SIGMAS = ("sigma_q05", "sigma_median", "sigma_q95", "sigma_q99", "sigma_max")
GROUPED = {"gradients": "grad_norm", "updates": "update_ratio", "quiet": "no_gradient_share"}
PROJECT = "splatpipe"


class Sink(Protocol):
    """Takes numbers by name."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def check_sinks(names: Sequence[str]) -> None:
    """Raise ConfigError, naming the extra, when the package of a sink is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"health.sinks: {name} is not installed; pip install 'splatpipe[{name}]', or take it out of the list"
            )


def scalars(event: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of one event of docs/contracts.md by name: `health/alive_share`, `grad_norm/means`, `eval/psnr`."""
    match event["event"]:
        case "health":
            return _of_health(event)
        case "step":
            return _numbers("train", event, ("loss", "gaussians", "alive", "steps_per_s"))
        case "refine":
            return _numbers("refine", event, ("relocated", "added", "gaussians"))
        case "eval":
            return _numbers("eval", event, ("psnr", "ssim"))
    return {}


def _of_health(event: Mapping[str, Any]) -> dict[str, float]:
    plain = [key for key in event if key not in ("t", "event", "step", "sigmas", *GROUPED)]
    found = _numbers("health", event, plain)
    found |= _numbers("health", dict(zip(SIGMAS, event.get("sigmas") or (), strict=False)), SIGMAS)
    for key, name in GROUPED.items():
        group = event.get(key) or {}
        found |= _numbers(name, group, tuple(group))
    return found


def _numbers(prefix: str, values: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    return {f"{prefix}/{n}": float(values[n]) for n in names if isinstance(values.get(n), int | float)}


class Sinks:
    """The sinks of one attempt. One that breaks is closed and told of once: no training ends of it."""

    def __init__(self, names: Sequence[str], folder: Path, title: str, warn: Callable[[str], None]) -> None:
        self._warn, self._step = warn, 0
        self._open: dict[str, Sink] = {}
        for name in names:
            self._guarded(name, partial(self._begin, name, folder, title))

    def add(self, event: Mapping[str, Any]) -> None:
        """Take in one event of docs/contracts.md; an event without a step belongs to the last one."""
        self._step = event["step"] if isinstance(event.get("step"), int) else self._step
        values = scalars(event)
        if values:
            for name, sink in list(self._open.items()):
                self._guarded(name, partial(sink.write, self._step, values))

    def close(self) -> None:
        """Write out what is still in memory."""
        for name, sink in list(self._open.items()):
            self._guarded(name, sink.close)
        self._open.clear()

    def _begin(self, name: str, folder: Path, title: str) -> None:
        self._open[name] = _SINKS[name](folder, title)

    def _guarded(self, name: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # whatever a foreign package raises, training goes on without it
            self._open.pop(name, None)
            self._warn(f"health.sinks: {name} gave up ({type(error).__name__}: {error}); events.jsonl has everything")


class TensorBoardSink:
    """Event files below `folder`/tensorboard."""

    def __init__(self, folder: Path, title: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """A W&B run below `folder`/wandb, offline unless WANDB_MODE says otherwise."""

    def __init__(self, folder: Path, title: str) -> None:
        import wandb

        mode: Any = os.environ.get("WANDB_MODE", "offline")
        settings = wandb.Settings(silent=True, console="off")
        self._run = wandb.init(
            project=PROJECT, name=title, dir=str(folder), mode=mode, reinit="create_new", settings=settings
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def close(self) -> None:
        self._run.finish()


_SINKS: dict[str, Callable[[Path, str], Sink]] = {"tensorboard": TensorBoardSink, "wandb": WandbSink}
