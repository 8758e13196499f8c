"""LichtFeld Studio: what its builds accept, what its log says, and what its configuration holds."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.lichtfeld_double import install
from doubles.lichtfeld_request import SETTINGS, lichtfeld_request
from doubles.lichtfeld_versions import REQUIRED_KEYS, VERSIONS, help_text, known
from hypothesis import given
from hypothesis import strategies as st

from splatpipe.errors import ConfigError, EnvironmentProblem, SceneError
from splatpipe.scene.colmap import read_model
from splatpipe.splatting.settings import TrainSettings
from splatpipe.splatting.spacing import initial_scales_gsplat, initial_scales_lfs
from splatpipe.trainers import lichtfeld_probe
from splatpipe.trainers.lichtfeld import LichtfeldTrainer
from splatpipe.trainers.lichtfeld_config import complete, lfs_scaling, read_profile, relative_scaling, settings_of
from splatpipe.trainers.lichtfeld_flags import Plan, arguments, parse_help, width_limit
from splatpipe.trainers.lichtfeld_log import Expected, LogReader
from splatpipe.trainers.lichtfeld_probe import explain
from splatpipe.trainers.tail import LineSplitter

PLAN = Plan(Path("/d"), Path("/o"), Path("/c.json"), iterations=30_000, max_cap=1_000_000)
COMMON = (
    "--data-path /d --output-path /o --config /c.json --iter 30000 --strategy mcmc --max-cap 1000000 --images images"
)
GOLDEN = {
    "oct": f"--headless {COMMON}",
    "0.3": f"--headless --train {COMMON} --no-splash --no-interop",
    "0.5.0": f"--headless --train {COMMON} --no-splash --no-interop --log-level debug",
    "0.5.2": (
        f"--headless --train {COMMON} --centralize=off --no-splash --no-interop --output-name splat --log-level debug"
    ),
    "master": (
        f"--headless --train {COMMON} --centralize=off --no-save-eval-images --no-splash --no-interop "
        "--output-name splat --export ply --log-level debug"
    ),
}


@pytest.fixture
def trainer(tmp_path: Path) -> LichtfeldTrainer:
    return LichtfeldTrainer(install(tmp_path / "bin", "0.5.2"), cache=tmp_path / "cache")


# ------------------------------------------------------------------ flags


@pytest.mark.parametrize("version", VERSIONS)
def test_each_build_gets_exactly_the_flags_that_it_knows(version: str) -> None:
    flags = parse_help(help_text(version))
    assert flags == frozenset(known(version))
    assert " ".join(arguments(PLAN, flags)) == GOLDEN[version]


def test_tile_mode_and_memory_flags_reach_only_builds_that_have_them() -> None:
    plan = replace(PLAN, tile_mode=2, spare_memory=True, max_width=1024)
    words = {version: arguments(plan, frozenset(known(version))) for version in VERSIONS}
    assert [version for version in VERSIONS if "--tile-mode" in words[version]] == ["0.3", "0.5.0", "0.5.2"]
    assert [version for version in VERSIONS if "--no-cpu-cache" in words[version]] == ["0.5.2", "master"]
    assert all("--max-width 1024" in " ".join(line) for line in words.values())


def test_flags_named_in_descriptions_are_not_taken_for_flags() -> None:
    text = (
        "  OPTIONS:\n\n      -i[n], --iter=[n]    Steps; see --pose-opt\n      --undistort\n          replaces --gut\n"
    )
    assert parse_help(text) == {"iter", "undistort"}


@pytest.mark.parametrize(
    ("version", "widest", "wanted", "limit"),
    [
        ("oct", 800, 800, 0),
        ("oct", 6000, 6000, 4096),  # more is refused by that build
        ("oct", 6000, 3000, 3000),
        ("0.5.2", 3900, 3900, 3900),  # its own default would shrink them to 3840
        ("0.5.2", 8000, 8000, 8000),
        ("master", 3840, 3840, 0),
        ("master", 800, 400, 400),
    ],
)
def test_images_train_at_the_width_that_was_asked_for(version: str, widest: int, wanted: int, limit: int) -> None:
    assert width_limit(widest, wanted, frozenset(known(version))) == limit


# ------------------------------------------------------------------ probe


def test_a_binary_is_found_by_setting_then_environment_then_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binaries = {name: install(tmp_path / name, version) for name, version in zip("abc", VERSIONS, strict=False)}
    monkeypatch.delenv("LICHTFELD_BIN", raising=False)
    monkeypatch.setenv("PATH", f"{binaries['c'].parent}:{os.environ['PATH']}")
    cache = tmp_path / "cache"
    assert LichtfeldTrainer(cache=cache).probe().detail == f"found at {binaries['c']}"
    monkeypatch.setenv("LICHTFELD_BIN", str(binaries["b"]))
    assert LichtfeldTrainer(cache=cache).probe().detail == f"found at {binaries['b']}"
    info = LichtfeldTrainer(binaries["a"].parent, cache=cache).probe()  # its folder is enough
    assert (info.available, info.detail) == (True, f"found at {binaries['a']}")
    assert "pose-opt" in info.capabilities


def test_a_binary_is_asked_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    run = lichtfeld_probe._run

    def counted(path: Path, flag: str) -> tuple[int, str]:
        asked.append(flag)
        return run(path, flag)

    monkeypatch.setattr(lichtfeld_probe, "_run", counted)
    path, cache = install(tmp_path, "0.5.0"), tmp_path / "cache"
    first = LichtfeldTrainer(path, cache=cache).probe()
    assert LichtfeldTrainer(path, cache=cache).probe() == first
    assert asked == ["--help", "--version"]
    for damaged in cache.glob("*.json"):
        damaged.write_text("{")
    assert LichtfeldTrainer(path, cache=cache).probe() == first
    install(tmp_path, "0.5.2")
    assert LichtfeldTrainer(path, cache=cache).probe().version == "LichtFeld Studio v0.5.2-128-gc4eb3dea (c4eb3dea)"
    assert asked == ["--help", "--version"] * 3


def test_builds_without_a_version_flag_are_named_by_what_they_can(tmp_path: Path) -> None:
    names = {
        version: LichtfeldTrainer(install(tmp_path / version, version), cache=tmp_path).probe().version
        for version in ("oct", "0.3")
    }
    assert names == {"oct": "before v0.3", "0.3": "v0.3 or v0.4"}


@pytest.mark.parametrize(
    ("start", "advice"),
    [
        ("libraries", "libOpenMeshCore.so.11.0 is missing: install it, or add its folder to LD_LIBRARY_PATH"),
        ("no_driver", "libcuda.so.1 is missing: install the NVIDIA driver"),
        ("old_driver", "The NVIDIA driver is missing or too old"),
    ],
)
def test_a_binary_that_does_not_start_says_what_to_install(tmp_path: Path, start: str, advice: str) -> None:
    info = LichtfeldTrainer(install(tmp_path, "0.5.2", start=start), cache=tmp_path / "cache").probe()
    assert not info.available
    assert advice in info.detail


def test_what_is_no_lichtfeld_studio_is_told_apart(tmp_path: Path) -> None:
    def detail(name: str, content: bytes, mode: int = 0o755) -> str:
        path = tmp_path / name
        path.write_bytes(content)
        path.chmod(mode)
        return LichtfeldTrainer(path, cache=tmp_path / "cache").probe().detail

    assert "chmod +x" in detail("plain", b"#!/bin/sh\n", 0o644)
    assert "another kind of machine" in detail("arm", b"\x7fELF\x02\x01\x01" + bytes(60))
    assert "does not offer --headless" in detail("other", b"#!/bin/sh\necho '  --config FILE  settings'\n")
    assert "illegal instruction" in detail("old-cpu", b"#!/bin/sh\nkill -ILL $$\n")
    assert "GLIBCXX_3.4.32" in explain(1, "/lib/libstdc++.so.6: version `GLIBCXX_3.4.32' not found (required by x)")
    missing = LichtfeldTrainer(tmp_path / "nothing").probe().detail
    assert missing == f"training.lfs_binary: there is no LichtFeld Studio at {tmp_path / 'nothing'}; correct the path."


def test_a_command_without_a_binary_is_a_problem_of_the_machine(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="no LichtFeld Studio at"):
        LichtfeldTrainer(tmp_path / "nothing").command(lichtfeld_request(tmp_path))


# ------------------------------------------------------------------ configuration


def test_the_shipped_profiles_are_complete_and_differ_in_init_scaling_only(repository: Path) -> None:
    default = read_profile(repository / "lfs_configs" / "default.json")
    increased = read_profile(repository / "lfs_configs" / "increase_init_scaling.json")
    assert default == complete({}, TrainSettings(), 0.1)
    assert increased == default | {"init_scaling": 0.3}


def test_a_partial_profile_is_completed_and_its_unknown_keys_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"optimization": {"opacity_reg": 0.002, "_note": "p7", "tile_mode": 2}}))
    config = complete(read_profile(path), TrainSettings(), 0.2)
    assert set(REQUIRED_KEYS) <= set(config)
    assert (config["opacity_reg"], config["_note"], config["tile_mode"]) == (0.002, "p7", 2)
    assert (config["strategy"], config["init_scaling"], config["save_steps"]) == ("mcmc", 0.2, [30_000])


def test_the_attempt_wins_over_the_profile_and_the_profile_over_defaults() -> None:
    profile = {"init_scaling": 0.4, "opacity_lr": 0.025, "max_cap": 6_000_000, "scale_reg": 0.05}
    config = complete(profile, TrainSettings(max_cap=250_000), 0.1)
    assert config["init_scaling"] == 0.1  # the rung of this attempt
    assert config["max_cap"] == 250_000  # the patch's share of the cap
    assert (config["opacity_lr"], config["scale_reg"]) == (0.025, 0.05)
    assert config["lambda_dssim"] == 0.2


def test_means_lr_keeps_its_ratio_to_each_trainers_preset() -> None:
    assert complete({}, TrainSettings(), 0.1)["means_lr"] == 1.6e-5
    assert complete({}, TrainSettings(means_lr=0.8e-4), 0.1)["means_lr"] == 0.8e-5
    assert settings_of({"means_lr": 1.6e-5, "iterations": 7000.0, "gut": True}) == {
        "means_lr": 1.6e-4,
        "iterations": 7000,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"init_scaling": 0.3,}', r"mine\.json:1:\d+: not valid JSON"),
        ("[1]", r"mine\.json: must hold one JSON object"),
        ('{"init_scaling": "0.3"}', "init_scaling must be a number"),
        ('{"means_lr": NaN}', "means_lr must be a number"),
        ('{"iterations": 10.5}', "iterations must be a whole number"),
        ('{"strategy": "adc"}', 'strategy must be "mcmc" under splatpipe, not "adc"'),
        ('{"steps_scaler": 2}', "steps_scaler must be 0 or 1"),
    ],
)
def test_a_profile_that_lfs_could_not_use_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        LichtfeldTrainer(profile=path)


def test_sh_degree_zero_is_refused_because_lfs_crashes_on_it() -> None:
    with pytest.raises(ConfigError, match=r"training\.sh_degree"):
        complete({}, TrainSettings(sh_degree=0), 0.1)


@given(st.floats(0.01, 10), st.floats(1e-4, 100))
def test_both_meanings_of_init_scaling_are_each_others_inverse(relative: float, distance: float) -> None:
    assert math.isclose(relative_scaling(lfs_scaling(relative, distance), distance), relative, rel_tol=1e-12)


@pytest.mark.parametrize("spacing", [0.001, 0.05, 1.0, 20.0])
def test_the_converted_init_scaling_gives_lfs_the_gaussians_that_gsplat_starts_from(spacing: float) -> None:
    grid = np.stack(np.meshgrid(*[np.arange(5) * spacing] * 3), -1).reshape(-1, 3)  # every distance is `spacing`
    ours = initial_scales_gsplat(grid, 0.1)
    np.testing.assert_allclose(initial_scales_lfs(grid, lfs_scaling(0.1, spacing)), ours, rtol=1e-6)


# ------------------------------------------------------------------ data set


def test_a_patch_is_trained_in_place_and_reduced_only_without_its_blind_cameras(
    trainer: LichtfeldTrainer, tmp_path: Path
) -> None:
    request = lichtfeld_request(tmp_path)
    argv = trainer.command(request).argv
    assert argv[argv.index("--data-path") + 1] == str(request.dataset)
    names = read_model(request.patch.sparse).names
    argv = trainer.command(replace(request, skip_cameras=(names[0], names[5]))).argv
    staged = Path(argv[argv.index("--data-path") + 1])
    model = read_model(staged / "sparse" / "0")
    assert staged.is_relative_to(request.out)
    assert set(model.names) == set(names) - {names[0], names[5]}
    assert len(model.points) == 400
    assert all((staged / "images" / name).exists() for name in model.names)
    pycolmap = pytest.importorskip("pycolmap")
    assert pycolmap.Reconstruction(str(staged / "sparse" / "0")).num_reg_images() == len(names) - 2


def test_a_patch_whose_cameras_are_all_blind_is_refused(trainer: LichtfeldTrainer, tmp_path: Path) -> None:
    request = lichtfeld_request(tmp_path)
    with pytest.raises(SceneError, match="0 images and 400 points are left"):
        trainer.command(replace(request, skip_cameras=read_model(request.patch.sparse).names))


def test_a_gpu_is_chosen_among_the_visible_ones(
    trainer: LichtfeldTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    request = lichtfeld_request(tmp_path)
    assert trainer.command(replace(request, device="cuda:1")).env["CUDA_VISIBLE_DEVICES"] == "5"
    assert trainer.command(request).env["CUDA_VISIBLE_DEVICES"] == "3,5"


def test_downscaled_photographs_are_asked_for_by_width(trainer: LichtfeldTrainer, tmp_path: Path) -> None:
    request = lichtfeld_request(tmp_path, settings=replace(SETTINGS, downscale=2.0))
    assert "--max-width 32" in " ".join(trainer.command(request).argv)  # the photographs are 64 pixels wide


# ------------------------------------------------------------------ log

EXPECTED = Expected(images=12, points=400, scene_scale=1.4, iterations=30_000)


def read(*lines: str) -> list[dict[str, Any]]:
    reader = LogReader(EXPECTED)
    return [event for line in lines for event in reader.read(line)]


def test_the_progress_bar_becomes_steps_however_the_bytes_arrive() -> None:
    raw = (
        "\r\x1b[36m\x1b[1mTraining [████      ] 54% [05:12<04:21] 16400/30000 | Loss: 0.0828 | Splats: 10000000 (+)"
        "\x1b[0m\x1b[K\r\x1b[36mTraining [████      ] 55% [05:14<04:19] 16500/30000 | Loss: 8.1e-02 | Splats: 99 (-)\n"
    ).encode()
    expected = [(16400, 0.0828, 10_000_000), (16500, 0.081, 99)]
    for size in (1, 7, len(raw)):
        splitter, lines = LineSplitter(), []
        for start in range(0, len(raw), size):
            lines += splitter.feed(raw[start : start + size])
        events = read(*lines)
        assert [(e["step"], e["loss"], e["gaussians"]) for e in events] == expected
        assert events[0]["steps_per_s"] == round(16400 / 312, 2)


@pytest.mark.parametrize("loss", ["nan", "-nan", "nan(0x8000)", "inf", "-nan(ind)"])
def test_a_loss_that_is_no_number_ends_the_attempt(loss: str) -> None:
    (event,) = read(f"Training [█] 2% [00:01<00:50] 600/30000 | Loss: {loss} | Splats: 500 (+)")
    assert (event["event"], event["class"], event["step"]) == ("error", "nan_divergence", 600)


def test_startup_is_summed_up_in_one_event() -> None:
    (event,) = read(
        "[12:00:00.001] [info] colmap.cpp:733  Read 1 cameras and 12 images from COLMAP",
        "[12:00:00.002] [info] colmap.cpp:810  Loaded 400 points from COLMAP",
        "[12:00:00.003] [info] trainer.cpp:1  Using point cloud with 400 points",
        "Scene scale: 1.41",
        "[12:00:00.004] [info] trainer.cpp:902  Starting training loop with 1 workers",
    )
    assert event["event"] == "start"
    assert (event["images"], event["points"], event["scene_scale"]) == (12, 400, 1.41)


@pytest.mark.parametrize(
    ("line", "event", "said"),
    [
        ("Read 1 cameras and 11 images from COLMAP", "warning", "read 11 images, the patch has 12"),
        ("Read 1 cameras and 0 images from COLMAP", "error", "read 0 images"),
        ("Loaded 396 points from COLMAP", "warning", "read 396 points, the patch has 400"),
        ("Loaded 100 points from COLMAP", "error", "read 100 points, the patch has 400"),
        ("No point cloud found - will use random initialization", "error", "random"),
        ("Scene scale: 1400", "warning", "scene scale of 1400, splatpipe 1.4"),
    ],
)
def test_lfs_reading_something_else_than_the_patch_is_noticed(line: str, event: str, said: str) -> None:
    (found,) = read(line)
    assert (found["event"], said in found["message"]) == (event, True)
    assert found.get("class") == ("data_error" if event == "error" else None)


def test_relocations_become_refinements_also_at_the_cap_and_behind_the_bar() -> None:
    events = read(
        "Training [█] 2% 600/30000 | Loss: 0.1 | Splats: 1000 (+)"
        "[12:00:00.000] [debug] mcmc.cpp:210  MCMC: Relocated 110 dead Gaussians at iteration 700",
        "[12:00:00.000] [debug] mcmc.cpp:311  MCMC: Added 50 new Gaussians at iteration 700 (total: 1050)",
        "[12:00:01.000] [debug] mcmc.cpp:210  MCMC: Relocated 90 dead Gaussians at iteration 800",
        "Training [█] 2% 800/30000 | Loss: 0.1 | Splats: 1050 (+)",
    )
    refinements = [(e["step"], e["relocated"], e["added"], e["gaussians"]) for e in events if e["event"] == "refine"]
    assert refinements == [(700, 110, 50, 1050), (800, 90, 0, 1050)]


def test_a_refinement_that_finds_nearly_everything_dead_ends_the_attempt() -> None:
    events = read(
        "Training [█] 2% 600/30000 | Loss: 0.1 | Splats: 1000 (+)",
        "MCMC: Relocated 760 dead Gaussians at iteration 700",
    )
    assert [e["event"] for e in events] == ["step", "refine", "error"]
    assert events[-1]["class"] == "mcmc_collapse"


def test_the_final_lines_bring_the_last_step() -> None:
    reader = LogReader(EXPECTED)
    reader.read("29900/30000 | Loss: 0.1 | Splats: 1500000")
    (event,) = reader.read("✓ Training completed in 123.456s (avg 243.1 iter/s)")
    reader.read("✓ Final splats: 1500000")
    assert (event["step"], event["total"], event["loss"]) == (30_000, 30_000, 0.1)
    assert (reader.finished, reader.final_count, reader.seconds) == (True, 1_500_000, 123.456)


@given(st.text(max_size=200) | st.text("0123456789.e-+nainf()", max_size=12))
def test_no_line_breaks_the_reader(text: str) -> None:
    read(text, f"16400/30000 | Loss: {text} | Splats: 5", f"Scene scale: {text}")
