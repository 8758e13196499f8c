"""How LichtFeld Studio has died, verbatim (trainers.md C, rivals_reefs.md C and H): data of the double.

`step_failed` texts are thrown in a training step and reported by the build's own error path; `aborts` end in
SIGABRT after what the C++ run time prints.
"""

from __future__ import annotations

STEP_FAILED = {
    "launch_config": "adam_step_cu kernel launch failed: invalid configuration argument",
    "oom_raster": "OUT_OF_MEMORY: Failed to allocate bucket buffers",
    "oom_sort": "OUT_OF_MEMORY: Failed to allocate FastGS sort buffer (2147483648 bytes)",
    "oom_arena": "RasterizerMemoryArena allocation failed for 3277 MiB",
    "oom_device": "Error computing photometric loss: CUDA driver error: out of memory",
    "int_overflow": "n_instances exceeds int range",
    "illegal_access": "CUDA error in cudaMemcpy(n_instances) - cudaErrorIllegalAddress",
    "distorted": "Distorted images detected.  You can use --gut option to train on cameras with distortion.",
    "disk_full": "filesystem error: cannot write: No space left on device",
}
ABORTS = {
    "launch_config_c10": (
        "terminate called after throwing an instance of 'c10::Error'",
        "  what():  CUDA error: invalid configuration argument",
        "frame #5: torch::autograd::generated::MulBackward1::apply(...)",
    ),
    "jpeg": (
        "terminate called after throwing an instance of 'nvjpeg::ExceptionJPEG'",
        "  what():  Unsupported JPEG",
    ),
    "loader_memory": (
        "terminate called after throwing an instance of 'nvjpeg::ExceptionJPEG'",
        "  what():  Memory allocator error",
    ),
}
DOES_NOT_START = {
    "libraries": (
        127,
        "{name}: error while loading shared libraries: libOpenMeshCore.so.11.0: cannot open shared "
        "object file: No such file or directory",
    ),
    "no_driver": (
        127,
        "{name}: error while loading shared libraries: libcuda.so.1: cannot open shared object file: "
        "No such file or directory",
    ),
    "old_driver": (1, "terminate called: CUDA driver version is insufficient for CUDA runtime version"),
}
