"""Our own trainer: `splatting/` in a child process, on gsplat's CUDA rasteriser or on the CPU one."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Callable
from functools import cached_property
from importlib import metadata
from typing import Any, ClassVar

from splatpipe.trainers.base import Command, TrainerInfo, TrainRequest
from splatpipe.trainers.devices import visible_devices
from splatpipe.trainers.gsplat_build import build_environment, ensure_built
from splatpipe.trainers.gsplat_child import STANDBY


class GsplatTrainer:
    """Trains through `splatpipe.trainers.gsplat_child`."""

    name = "gsplat"
    ignored: frozenset[str] = frozenset()
    _ready: ClassVar[set[str]] = set()  # devices on which this process has had a picture rendered

    def probe(self) -> TrainerInfo:
        """CPU training is always there; CUDA training when torch sees a GPU and gsplat is installed."""
        import torch

        cuda = torch.cuda.is_available() and importlib.util.find_spec("gsplat") is not None
        version = f"torch {torch.__version__}"
        if cuda:
            version += f", gsplat {metadata.version('gsplat')}"
        detail = f"{torch.cuda.device_count()} CUDA device(s)" if cuda else "no CUDA device: trains on the CPU"
        return TrainerInfo(self.name, True, version, detail, frozenset({"cpu", "cuda"} if cuda else {"cpu"}))

    def prepare(self, device: str, say: Callable[[str], None], stop: threading.Event) -> None:
        """Have gsplat's kernels compiled, and a picture rendered with them, before any child needs them."""
        if device.startswith("cuda") and device not in self._ready:
            ensure_built(visible_devices(device, self._cuda_environment), say, stop=stop)
            self._ready.add(device)

    def prepare_here(self, device: str, say: Callable[[str], None], stop: threading.Event) -> None:
        """The same for this very process, which gets the children's flags: with others torch would compile again."""
        self.prepare(device, say, stop)
        os.environ.update(self._cuda_environment)

    @cached_property
    def _cuda_environment(self) -> dict[str, str]:
        return build_environment(os.environ)

    def command(self, request: TrainRequest) -> Command:
        """The child for `request`; on CUDA it sees one device only, so that its ordinal is always 0."""
        return self._child(str(request.files.request), request)

    def standby(self, request: TrainRequest) -> Command:
        """The same child, which imports, loads kernels and decodes photographs until it is told what to train."""
        return self._child(STANDBY, request)

    def _child(self, argument: str, request: TrainRequest) -> Command:
        argv = (sys.executable, "-m", "splatpipe.trainers.gsplat_child", argument)
        environment = self._cuda_environment if request.device.startswith("cuda") else os.environ
        return Command(argv=argv, env=visible_devices(request.device, environment))

    def parse_line(self, line: str) -> dict[str, Any] | None:
        return None
