"""Hold-out quality of a splat that another trainer made, by our own rasteriser, in a child process of its own.

Run as `python -m splatpipe.trainers.holdout REQUEST.json`; writes `holdout.json` beside the request.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from splatpipe.errors import SplatpipeError
from splatpipe.files import read_json, write_json
from splatpipe.trainers.base import Command, TrainRequest
from splatpipe.trainers.devices import visible_devices
from splatpipe.trainers.gsplat_build import build_environment
from splatpipe.trainers.process import RECORD, ChildProcess

LIMIT_S = 1200.0  # many large views on a busy CPU; kernels may have to be compiled first
POLL_S = 0.05
RESULT = "holdout.json"


def judge_holdout(request: TrainRequest, stop: threading.Event) -> list[dict[str, Any]]:
    """The `eval` event of `request.files.splat`; a `warning` where it cannot be had, nothing without hold-out views.

    Ends early, with nothing, when `stop` is set. Never raises: the splat is whole, and that is what counts.
    """
    if not (request.patch.holdout / "sparse" / "0").is_dir() or stop.is_set():
        return []
    result = request.out / RESULT
    try:
        result.unlink(missing_ok=True)
        said = _run(request, stop)
        if stop.is_set() and not result.exists():
            return []
        return [{"event": "eval", **read_json(result)}] if result.exists() else [_warning(said)]
    except (SplatpipeError, OSError, ValueError) as error:
        return [_warning(str(error))]


def _warning(said: str) -> dict[str, Any]:
    return {"event": "warning", "message": f"the hold-out views could not be rendered: {said}"}


def _run(request: TrainRequest, stop: threading.Event) -> str:
    """Have the child do it; its last words."""
    argv = (sys.executable, "-m", "splatpipe.trainers.holdout", str(request.files.request.resolve()))
    environment = build_environment(os.environ) if request.device.startswith("cuda") else os.environ
    child = ChildProcess(Command(argv, visible_devices(request.device, environment)), request.out)
    said, deadline = b"", time.monotonic() + LIMIT_S
    try:
        while not child.has_exited():
            if stop.is_set() or time.monotonic() > deadline:
                said = b"it took too long"
                break
            said = (said + child.read())[-2000:]
            time.sleep(POLL_S)
        child.kill()
        while not child.has_exited():
            time.sleep(POLL_S)
        child.clear()
        child.reap()
        said += child.read()
    finally:
        child.close()
        (request.out / RECORD).unlink(missing_ok=True)
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else f"exit status {child.exit_status}"


def main(argv: list[str]) -> None:
    """Render the hold-out views of the request in `argv` and write how good they are."""
    request = TrainRequest.from_json(read_json(Path(argv[0])))
    import torch

    from splatpipe.splatting.ply import read_splats, to_training
    from splatpipe.trainers.gsplat_run import evaluate, load_holdout, use_threads

    cuda = request.device.startswith("cuda") and torch.cuda.is_available() and importlib.util.find_spec("gsplat")
    device = torch.device("cuda:0" if cuda else "cpu")
    use_threads(device, request.threads)
    splats = to_training(read_splats(request.files.splat), request.similarity)
    names = ("means", "quats", "scales", "opacities", "sh0", "shN")
    params = {name: torch.from_numpy(getattr(splats, name)).to(device) for name in names}
    found: dict[str, Any] = {}
    evaluate(params, load_holdout(request), request, device, lambda event, **values: found.update({event: values}))
    write_json(Path(argv[0]).with_name(RESULT), json.loads(json.dumps(found["eval"])))


if __name__ == "__main__":
    main(sys.argv[1:])
