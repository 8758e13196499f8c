"""What real trainers print when they die, word for word (trainers.md section C, rivals_reefs.md section H)."""

from __future__ import annotations

ASYNC = (
    "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below "
    "might be incorrect."
)


def traceback(*frames: str, error: str) -> list[str]:
    """A Python traceback through the functions named."""
    lines = ["Traceback (most recent call last):"]
    for frame in frames:
        lines += [f'  File "/opt/gsplat/{frame}.py", line 127, in {frame}', f"    {frame}()"]
    return [*lines, *error.splitlines()]


LAST_WORDS: dict[str, list[str]] = {
    "lfs_adam": [
        "[12:00:00.123] [error] training_manager.cpp:538  Training error: Training step failed: "
        "adam_step_cu kernel launch failed: invalid configuration argument",
    ],
    "lfs_c10": [
        "terminate called after throwing an instance of 'c10::Error'",
        "  what():  CUDA error: invalid configuration argument",
        "Exception raised from MulBackward1::apply",
    ],
    "lfs_bucket": [
        "[12:00:00.123] [error] trainer.cpp:77  Training error: OUT_OF_MEMORY: Failed to allocate bucket buffers",
    ],
    "gsplat_launch": traceback(
        "train",
        "rasterization",
        error=f"RuntimeError: CUDA error: invalid configuration argument\n{ASYNC}",
    ),
    "gsplat_multinomial": traceback(
        "step_post_backward",
        "_relocate_gs",
        "_multinomial_sample",
        error=f"RuntimeError: CUDA error: invalid configuration argument\n{ASYNC}",
    ),
    "cuda_oom": traceback(
        "train",
        "isect_tiles",
        error="torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 5.32 GiB. GPU 0 has a total capacity "
        "of 23.65 GiB of which 1.21 GiB is free.",
    ),
    "int_overflow": ["Training error: n_instances exceeds int range"],
    "illegal_access": traceback(
        "train", error=f"RuntimeError: CUDA error: an illegal memory access was encountered\n{ASYNC}"
    ),
    "memory_error": traceback("load_images", error="MemoryError"),
    "disk_full": traceback("save", error="OSError: [Errno 28] No space left on device"),
    "module_missing": traceback("main", error="ModuleNotFoundError: No module named 'packaging'"),
    "no_driver": traceback("main", error="RuntimeError: Found no NVIDIA driver on your system."),
    "bad_flag": ["Parse error: Flag could not be matched: no-save-eval-images"],
    "bad_data": ["Error: Missing required COLMAP files. Looked in sparse/0"],
    "own_bug": traceback("train", error="KeyError: 'opacities'"),
}
