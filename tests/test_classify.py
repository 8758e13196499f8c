"""Real log lines to failure classes; the refs are rows of the collected reports (trainers.md C, rivals H)."""

from __future__ import annotations

import re

import pytest
from doubles.last_words import LAST_WORDS

from splatpipe.errors import ConfigError
from splatpipe.failures.classes import FailureClass
from splatpipe.failures.classify import (
    Evidence,
    classify,
    default_catalogue,
    extended_catalogue,
    warnings,
)

LINES = [
    # C1
    ("adam_step_cu kernel launch failed: invalid configuration argument", "launch_config"),
    ("RuntimeError: CUDA error: invalid configuration argument", "launch_config"),
    ("[error] CUDA error before adam_step_cu: invalid configuration argument", "launch_config"),
    ("diff_gaussian_rasterization: CUDA invalid configuration", "launch_config"),
    ("adam_step_quantized_cu kernel launch failed: invalid argument", "launch_config"),
    ("n_elements must be positive", "launch_config"),
    ("cudaMemPrefetchAsync: cudaErrorIllegalArgument", "launch_config"),
    ("parallel_for failed: cudaErrorInvalidDevice: invalid device ordinal", "launch_config"),
    # C2
    ("OUT_OF_MEMORY: Failed to allocate bucket buffers", "oom_raster"),
    ("FastGS: bucket-buffer overflow", "oom_raster"),
    ("OUT_OF_MEMORY: Failed to allocate FastGS sort buffer (1073741824 bytes)", "oom_raster"),
    ("Failed to allocate instance buffers", "oom_raster"),
    ("FastGS per-bucket arena allocation returned null", "oom_raster"),
    ("RasterizerMemoryArena allocation failed for 3277 MiB", "oom_raster"),
    ("Error computing photometric loss: CUDA driver error: out of memory", "oom_device"),
    ("cudaMallocAsync failed: out of memory", "oom_device"),
    ("OUT_OF_MEMORY: optimizer state", "oom_device"),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 5.32 GiB.", "oom_device"),
    ("torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 812.00 MiB", "oom_device"),
    ("RuntimeError: CUDA out of memory. Tried to allocate 67109892.01 GiB", "int_overflow"),
    ("bad allocation cudaErrorMemoryAllocation", "oom_device"),
    ("vkAllocateMemory failed", "oom_device"),
    ("Failed to allocate from memory pool", "oom_device"),
    # C3
    ("CUDA error: an illegal memory access was encountered", "illegal_access"),
    ("cudaMallocAsync failed: an illegal memory access was encountered", "illegal_access"),
    ("CUDA error in cudaMemcpy(n_instances) - cudaErrorIllegalAddress", "illegal_access"),
    ("CUDA_ERROR_ILLEGAL_ADDRESS", "illegal_access"),
    ("n_instances exceeds int range", "int_overflow"),
    ("signed 32-bit instance overflow", "int_overflow"),
    ("instance count exceeds signed 32-bit", "int_overflow"),
    ("FastGS instance count exceeds INT_MAX before CUB sort (count=2200000000)", "int_overflow"),
    ("n_tiles exceeds int range", "int_overflow"),
    ("gsplat intersection count 2241000000 exceeds int32 range", "int_overflow"),
    ("numel: integer multiplication overflow", "nan_divergence"),
    ("FastGS backward pass detected invalid rasterization state", "int_overflow"),
    ("NVRM: Xid (PCI:0000:01:00): 31, pid=77", "illegal_access"),
    ("number of categories cannot exceed 2^24", "int_overflow"),
    # C4
    (
        "returned an invalid gradient at index 2 - got [0, 0, 3] but expected shape compatible with [0, 16, 3]",
        "explosion",
    ),
    ("cannot reshape tensor of 0 elements into shape [0, -1]", "mcmc_collapse"),
    (
        "amax(): Expected reduction dim to be specified for input.numel() == 0. Specify with dim. numel() == 0",
        "mcmc_collapse",
    ),
    ("AttributeError: 'NoneType' object has no attribute 'clamp_min'", "data_error"),
    ("Number of points at initialisation : 0", "data_error"),
    # C5, C6
    ("Training [###] 54% [05:12<04:21] 16400/30000 | Loss: -nan(ind) | Splats: 10000 (+)", "nan_divergence"),
    ("loss=nan| sh degree=3|:  25%", "nan_divergence"),
    ("NaN/Inf loss at iteration 38620", "nan_divergence"),
    ("RuntimeError: probability tensor contains either `inf`, `nan` or element < 0", "nan_divergence"),
    ("invalid multinomial distribution (sum of probabilities <= 0)", "mcmc_collapse"),
    ("splat_count_mismatch_expected_1000000_actual_2", "mcmc_collapse"),
    # C7
    ("Killed", "killed"),
    # C8
    ("Missing required COLMAP files.", "data_error"),
    ("Images directory '/data/images' not found", "data_error"),
    ("points3D.bin: trailing bytes", "data_error"),
    ("No point cloud found", "data_error"),
    ("Camera ID 7 not found", "data_error"),
    ("Distorted images detected", "data_error"),
    ("Training on cameras with ortho model is not supported", "data_error"),
    ("terminate called after throwing an instance of 'nvjpeg::ExceptionJPEG'", "data_error"),
    ("[NvCodecImageLoader] Decode failed: FAIL", "data_error"),
    ("AssertionError: COLMAP directory /data/sparse does not exist.", "data_error"),
    ("ValueError: No images found in COLMAP.", "data_error"),
    ("Shape mismatch: rendered and gt_image must have same shape", "data_error"),
    ("tileOffsets width must match the number of tiles in image size", "data_error"),
    # C9
    ("Parse error: Flag could not be matched: no-save-eval-images", "config_error"),
    ("Config load failed: Error parsing optimization parameters", "config_error"),
    ("Error: --strategy conflicts with config file", "config_error"),
    ("init_scaling must be finite and positive", "config_error"),
    ("Invalid optimization strategy 'mrnf'", "config_error"),
    ("Headless mode requires --data-path", "config_error"),
    ("ERROR: --max-width cannot be higher than 4096", "config_error"),
    ("GUT/gsplat training with sh_degree > 0 is unsupported", "config_error"),
    ("Evaluating with pose optimization is not supported yet", "config_error"),
    ("SplatData.shN needs 720 bytes but region only holds 0", "config_error"),
    ("Unrecognized options: --data", "config_error"),
    # C10
    ("LichtFeld-Studio: error while loading shared libraries: libgtk-3.so.0", "environment"),
    ("CUDA error: no kernel image is available for execution on the device", "environment"),
    ("CUDA driver version is insufficient for CUDA runtime version", "environment"),
    ("no CUDA-capable device is detected", "environment"),
    ("CUDA error: invalid device ordinal", "environment"),
    ("torch.AcceleratorError: CUDA error: CUDA-capable device(s) is/are busy or unavailable", "environment"),
    ("RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized", "environment"),
    ("torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered", "environment"),
    ("torch.AcceleratorError: CUDA error: unspecified launch failure", "illegal_access"),
    ("torch.AcceleratorError: CUDA error: misaligned address", "illegal_access"),
    ("torch.AcceleratorError: CUDA error: device-side assert triggered", "illegal_access"),
    ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "oom_device"),
    ("AttributeError: 'NoneType' object has no attribute 'CameraModelType'", "environment"),
    ("ImportError: gsplat_cuda.so: cannot open shared object file: No such file or directory", "environment"),
    ("RuntimeError: Error building extension 'gsplat_cuda'", "environment"),
    ("Command '['ninja', '-v']' returned non-zero exit status 1.", "environment"),
    ("RuntimeError: Ninja is required to load C++ extensions", "environment"),
    ("ImportError: cannot import name 'csrc' from 'gsplat'", "environment"),
    ("The detected CUDA version (11.8) mismatches the version that was used to compile PyTorch", "environment"),
    ("ModuleNotFoundError: No module named 'packaging'", "environment"),
    ("fatal error: glm/glm.hpp: No such file or directory", "environment"),
    ("Failed to set maximum shared memory size (requested 65536 bytes), try lowering tile_size.", "environment"),
    ("Failed to initialize NVML: Driver/library version mismatch", "environment"),
    # C11
    ("Error: WebP lossless encode failed", "export_missing"),
    ("Headless training finished but a final export failed", "export_missing"),
    ("element vertex 0", "export_missing"),
    ("OSError: [Errno 28] No space left on device", "environment"),
    # host memory
    ("MemoryError", "host_oom"),
    ("terminate called after throwing an instance of 'std::bad_alloc'", "host_oom"),
    ("RuntimeError: [enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory", "host_oom"),
]


def named(lines: list[str], **evidence: object) -> str:
    return classify(Evidence(exit_status=1, lines=lines, last_step=100, **evidence)).failure  # type: ignore[arg-type]


@pytest.mark.parametrize(("line", "failure"), LINES)
def test_a_real_message_has_its_class_and_decides(line: str, failure: str) -> None:
    verdict = classify(Evidence(exit_status=1, lines=["Scene scale: 1.0", line, "goodbye"], last_step=100))
    assert (verdict.failure, verdict.line) == (failure, line)


STAGES = {
    "start": Evidence(1, stepped=False),
    "early": Evidence(1, last_step=20),
    "late": Evidence(1, last_step=900),
    "collapsing": Evidence(1, last_step=900, relocated_share=0.8),
}
MORE = [  # verbatim texts of rows that LINES and LAST_WORDS do not reach
    ["Memory allocator error", "terminate called after throwing an instance of 'nvjpeg::ExceptionJPEG'"],
    ["RuntimeError: Unsupported camera-model id 12"],
    ["OSError: image file is truncated (3 bytes not processed)"],
    ["No solution found"],
    ["Conflict between strategy in config file and --strategy on command line"],
    ["Out of memory: Killed process 7 (LichtFeld-Studi)"],
    ["RuntimeError: Trying to create tensor with negative dimension -5: [-5]"],
    ["cudaErrorCudartUnloading: driver shutting down"],
    ["Unknown parameters in JSON (will be ignored):"],
    ["Warning: COLMAP Camera is not PINHOLE. Images have distortion."],
    ["CUDA 12.4 unsupported. Requires 12.8+ (driver 570+)"],
    ["gsplat: No CUDA toolkit found. gsplat will be disabled."],
    ["Image dimension mismatch detected!"],
]


def test_every_row_decides_on_a_verbatim_message_at_some_stage() -> None:
    """No row is hidden by one above it, and none was written without a text."""
    catalogue = default_catalogue()
    texts = [[line] for line, _ in LINES] + list(LAST_WORDS.values()) + MORE
    reached = {
        catalogue.match(lines, index, evidence)
        for lines in texts
        for index in range(len(lines))
        for evidence in STAGES.values()
    }
    assert [(row.ref, row.pattern.pattern) for row in catalogue.rows if row not in reached] == []


def test_every_row_says_why_and_where_that_is_known_from() -> None:
    assert [row.pattern.pattern for row in default_catalogue().rows if not (row.cause and row.ref)] == []


def test_the_first_error_in_time_decides() -> None:
    lines = [
        "Training error: cudaMallocAsync failed: an illegal memory access was encountered",
        "Failed to allocate from memory pool",
        "Training error: Shape mismatch: rendered and gt_image must have same shape",
    ]
    assert named(lines) == "illegal_access"
    assert named(lines[1:]) == "oom_device"


def test_the_childs_own_error_event_wins_over_the_log() -> None:
    event = {"event": "error", "class": "explosion", "message": "means left the scene", "step": 90}
    verdict = classify(Evidence(exit_status=3, lines=["loss=nan"], errors=[event, {"class": "hang"}]))
    assert (verdict.failure, verdict.line) == ("explosion", "means left the scene")


def test_an_error_event_of_no_known_class_leaves_it_to_the_log() -> None:
    events = [{"event": "error", "class": "mystery"}, {"event": "error", "class": "unknown", "message": "?"}]
    assert named(["loss=nan"], errors=events) == "nan_divergence"


def test_an_invalid_configuration_is_told_apart_by_the_stage_and_the_traceback() -> None:
    def at(step: int, words: str, **evidence: object) -> str:
        given = Evidence(1, LAST_WORDS[words], last_step=step, refine_start=500, **evidence)  # type: ignore[arg-type]
        return classify(given).failure

    assert at(20, "gsplat_multinomial") == "launch_config"
    assert at(600, "gsplat_multinomial") == "mcmc_collapse"
    assert at(600, "gsplat_launch") == "launch_config"
    assert at(600, "gsplat_launch", relocated_share=0.8) == "mcmc_collapse"
    assert at(600, "gsplat_launch", relocated_share=0.8, blind_cameras=3) == "launch_config"
    assert at(4554, "lfs_adam") == "launch_config"


def test_a_device_that_is_missing_at_the_start_is_the_machines_fault_and_a_mad_size_too() -> None:
    for line in ("parallel_for failed: cudaErrorInvalidDevice: invalid device ordinal", "Tried to allocate 87000 GiB"):
        assert classify(Evidence(1, [line], stepped=False)).failure == "environment"


def test_noise_of_a_shutdown_does_not_decide() -> None:
    lines = ["Unknown parameters in JSON: foo", "cudaErrorCudartUnloading: driver shutting down"]
    verdict = classify(Evidence(exit_status=-11, lines=lines, last_step=30))
    assert (verdict.failure, verdict.line) == ("unknown", "died of SIGSEGV at step 30")


@pytest.mark.parametrize(
    ("evidence", "failure"),
    [
        (Evidence(-9), "killed"),
        (Evidence(137), "killed"),
        (Evidence(-9, oom_killer=True), "host_oom"),
        (Evidence(-15), "interrupted"),
        (Evidence(143), "interrupted"),
        (Evidence(-2), "interrupted"),
        (Evidence(-4), "environment"),
        (Evidence(139), "unknown"),
        (Evidence(127), "environment"),
        (Evidence(None), "unknown"),
        (Evidence(3), "unknown"),
        (Evidence(-15, ended_by="silence"), "hang"),
        (Evidence(143, ended_by="wall"), "hang"),
        (Evidence(143, ended_by="stop", lines=["CUDA error: out of memory"]), "interrupted"),
        (Evidence(-15, ended_by="silence", lines=["CUDA error: out of memory"]), "oom_device"),
        (Evidence(0, output_problem="there is no splat.ply"), "export_missing"),
    ],
)
def test_without_a_known_line_the_ending_decides(evidence: Evidence, failure: str) -> None:
    verdict = classify(evidence)
    assert verdict.failure == failure
    assert verdict.line


def test_an_unknown_crash_shows_the_end_of_its_traceback() -> None:
    lines = [*LAST_WORDS["own_bug"], "During handling", *LAST_WORDS["own_bug"][:-1], "ValueError: the second", "bye"]
    assert classify(Evidence(1, lines)).line == "ValueError: the second"
    assert classify(Evidence(1, ["something", "the last words"])).line == "the last words"


def test_warnings_are_kept_once_and_are_no_failure() -> None:
    lines = ["CUDA 12.2 unsupported. Requires 12.8+ (driver 570+)", "Image dimension mismatch detected! a"]
    assert warnings([*lines, "Image dimension mismatch detected! b"]) == tuple(lines)
    assert classify(Evidence(1, lines)).failure == FailureClass.UNKNOWN


def test_a_users_row_wins_and_a_wrong_one_is_refused_with_its_place() -> None:
    mine = extended_catalogue([{"pattern": "MemoryError in layer 7", "class": "config_error"}], "splat_config.yml")
    assert classify(Evidence(1, ["MemoryError in layer 7"]), mine).failure == "config_error"
    assert classify(Evidence(1, ["MemoryError in layer 8"]), mine).failure == "host_oom"
    for row, saying in [
        ({"pattern": "("}, "class"),
        ({"pattern": "(", "class": "hang"}, "no regular expression"),
        ({"pattern": "a", "class": "sadness"}, "launch_config"),
        ({"pattern": "a", "class": "hang", "regex": "b"}, "unknown key 'regex'"),
        ({"pattern": "a", "class": "hang", "when": "never"}, "'when' is one of"),
        ({"class": "hang"}, "needs at least 'pattern'"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(saying)) as error:
            extended_catalogue([{"pattern": "fine", "class": "hang"}, row], "splat_config.yml")
        assert "splat_config.yml, row 2" in str(error.value)
