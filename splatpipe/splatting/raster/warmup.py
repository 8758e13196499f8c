"""Compile every CPU kernel before it is needed, and say so when that takes a while."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import torch

from splatpipe.splatting.raster.compile import cache_folder, compiled_marker


def warm_up(announce: Callable[[str], None] | None = None) -> bool:
    """Run one tiny training step through every kernel; True if they had to be compiled first.

    `announce` gets one sentence beforehand in that case. Compiled code stays in `cache_folder()`, for this
    processor and these sources; later processes load it in about a second.
    """
    cold = not compiled_marker().exists()
    if cold and announce is not None:
        announce(f"compiling the CPU kernels, once for this machine (half a minute or more; kept in {cache_folder()})")
    if cold:
        _compile_elsewhere()
    _tiny_step()
    if cold:
        compiled_marker().touch()
    return cold


def _compile_elsewhere() -> None:
    """Fill the cache from another process.

    A process that compiles runs machine code that rounds differently, in the last bit, from what it leaves in
    the cache for later ones; the first training on a machine would differ from every other. If the other process
    fails, this one compiles for itself and shows why.
    """
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache_folder().parent)}
    subprocess.run([sys.executable, "-m", __name__], env=environment, capture_output=True, check=False)


def _tiny_step() -> None:
    from splatpipe.splatting.adam import Adam
    from splatpipe.splatting.loss import photometric_loss
    from splatpipe.splatting.noise import add_noise_
    from splatpipe.splatting.raster import rasterization

    n, width, height = 20, 24, 20
    along = torch.linspace(-1, 1, n)
    params = {
        "means": torch.stack([along, along.flip(0) * 0.5, 3 + along], 1),
        "quats": torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1),
        "scales": torch.full((n, 3), 0.2),
        "opacities": torch.full((n,), 0.5),
        "sh0": torch.zeros(n, 1, 3),
        "shN": torch.zeros(n, 15, 3),
    }
    params = {name: value.requires_grad_() for name, value in params.items()}
    view, K = torch.eye(4)[None], torch.tensor([[[20.0, 0, 12], [0, 20, 10], [0, 0, 1]]])
    means, quats, scales, opacities, sh0, shN = params.values()
    images, _, _ = rasterization(means, quats, scales, opacities, (sh0, shN), view, K, width, height, sh_degree=1)
    photometric_loss(images[0], torch.zeros(height, width, 3), 0.2).backward()  # type: ignore[no-untyped-call]
    optimizer = Adam(params, dict.fromkeys(params, 1e-3))
    with torch.no_grad():
        optimizer.step(torch.arange(n) % 2 == 0, active={"shN": 3})
        optimizer.step()
        add_noise_(means, quats, scales, opacities, 1.0, 0, 0)


if __name__ == "__main__":
    _tiny_step()
