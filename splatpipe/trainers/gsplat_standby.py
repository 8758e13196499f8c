"""What our own child does while it waits for its request: everything that does not touch the accelerator."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

import torch

from splatpipe.errors import SplatpipeError
from splatpipe.splatting import raster
from splatpipe.splatting.loop import camera_order
from splatpipe.splatting.views import DecodedViews, Views
from splatpipe.trainers.base import TrainRequest
from splatpipe.trainers.gsplat_run import load_views, use_threads

LOWEST = 19  # niceness: whoever trains meanwhile goes first


def load_kernels(request: TrainRequest) -> None:
    """What the first step would load. What goes wrong here goes wrong again where it is reported."""
    with contextlib.suppress(Exception):
        if request.device == "cpu":
            use_threads(torch.device("cpu"), request.threads)
            raster.warm_up()
        else:
            import gsplat.cuda._backend  # noqa: F401  # checks its build and loads it; opens no context


class Photographs:
    """Decodes a patch's photographs in the order of their use, in a thread of the lowest priority."""

    def __init__(self, request: TrainRequest, room: int) -> None:
        """`room`: most bytes to decode, beside `training.image_cache_gb`.

        Reads the patch in the caller's thread, with what has to be loaded for that.
        """
        if request.settings.image_cache_gb:
            room = min(room, int(request.settings.image_cache_gb * (1 << 30)))
        self._decoded: DecodedViews = {}
        self._enough = threading.Event()
        with contextlib.suppress(SplatpipeError, OSError, ValueError):  # told again by the training itself
            arguments = load_views(request), request.settings.seed, room
            threading.Thread(target=self._work, args=arguments, name="standby", daemon=True).start()

    def take(self) -> DecodedViews:
        """What has been decoded by now, to be kept by the caller alone; the photograph in hand is not waited for."""
        self._enough.set()
        decoded, self._decoded = self._decoded, {}
        return decoded

    def _work(self, views: Views, seed: int, room: int) -> None:
        _give_way()
        for index in camera_order(seed, 0, len(views)):
            if self._enough.is_set():
                return
            with contextlib.suppress(SplatpipeError, MemoryError):  # as above
                one = views.decode(int(index))
                room -= one.nbytes
                if room < 0:
                    return
                self._decoded[views.key(int(index))] = one


def _give_way() -> None:
    """Lower the priority of this thread alone, where the system can: nobody but root could raise it again."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
