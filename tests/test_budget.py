"""What a run will take, what fits, how two patches differ, and the picture of a split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scenes import synthetic_scene, write_scene

from splatpipe.budget import disk_finding, within_budget
from splatpipe.comparing import compare
from splatpipe.config import config_from_dict
from splatpipe.errors import ConfigError, RunFolderError
from splatpipe.layout import RunLayout
from splatpipe.patches.map import draw_map
from splatpipe.patches.partition import split
from splatpipe.patches.settings import PatchingSettings
from splatpipe.planning import check_plan, make_plan, write_datasets
from splatpipe.policy.init_scaling import InitScalingSettings, RungChoice, rung_for
from splatpipe.policy.vram import MARGIN, gaussians_within, predict
from splatpipe.splatting.settings import TrainSettings


def test_more_gaussians_need_more_memory_and_what_fits_fits() -> None:
    needs = [predict(n, 0.5, 2_000_000).vram_bytes for n in (10_000, 100_000, 1_000_000, 4_000_000)]
    assert needs == sorted(needs)
    for budget in (2e9, 8e9, 24e9):
        most = gaussians_within(budget, 2_000_000)
        assert predict(most, 1.0, 2_000_000).vram_bytes <= MARGIN * budget
        assert predict(most + 1000, 1.0, 2_000_000).vram_bytes > MARGIN * budget


def test_the_model_foretells_what_gsplat_published_and_a_little_more() -> None:
    """Its documentation: the MCMC preset on an A100, Mip-NeRF360 (images of about 1.3 megapixels), in 10^9 bytes."""
    for millions, published in ((1, 1.98e9), (2, 3.43e9), (3, 4.99e9)):
        foretold = predict(millions * 1_000_000, 1.0, 1_300_000).vram_bytes
        assert published < foretold < 1.2 * published


def test_a_budget_lowers_the_caps_of_gaussians_and_cameras_alike() -> None:
    scene = synthetic_scene(40, 300)
    hyper = TrainSettings(max_cap=10_000_000)
    patching, capped, findings = within_budget(scene, PatchingSettings(vram_gb=8, max_cameras=200), hyper)
    assert capped.max_cap < 10_000_000
    assert patching.max_cameras == 200 * capped.max_cap // 10_000_000
    assert f"{capped.max_cap:,} Gaussians" in findings[0].message
    assert within_budget(scene, PatchingSettings(), hyper)[1:] == (hyper, ())
    with pytest.raises(ConfigError, match="too few to train images"):
        within_budget(scene, PatchingSettings(vram_gb=0.3), hyper)


def test_a_disk_that_is_too_small_is_told_before() -> None:
    assert disk_finding(10, 20) == ()
    assert "needs about 3.0 GB" in disk_finding(3_000_000_000, 1_000_000_000)[0].message


def test_the_coverage_policy_takes_the_first_rung_that_covers_the_image_and_both_are_recorded() -> None:
    choice = RungChoice(0.1, 1.0, 5.0, "by extent")
    by_extent = rung_for(choice, None, 0.25, InitScalingSettings())
    assert (by_extent.init_scaling, by_extent.by_coverage) == (0.1, 0.3)
    coverage = InitScalingSettings(policy="coverage")
    assert rung_for(choice, None, 0.25, coverage).init_scaling == 0.3
    assert rung_for(choice, None, 7.0, coverage).init_scaling == 0.4
    assert rung_for(choice, 0.4, 0.05, coverage).init_scaling == 0.4, "blind cameras ask for more"
    assert rung_for(choice, None, 0.25, replace(coverage, fixed=0.2)).init_scaling == 0.1, "the user has decided"


def test_two_patches_side_by_side_with_the_largest_difference_on_top(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene", synthetic_scene(24, 400))
    layout = RunLayout(tmp_path / "run")
    plan = make_plan(scene, config_from_dict({"patching": {"max_cameras": 12}}, "test"))
    write_datasets(plan, layout)
    rows = compare([str(layout.root), "p000", "p001"])["rows"]
    ratios = [abs(np.log(row["ratio"])) for row in rows if row["ratio"]]
    assert np.all(np.diff(ratios) < 1e-9)
    cameras = next(row for row in rows if row["name"] == "cameras")
    assert cameras["values"][0] == len(plan.patches[0].patch.camera_index)
    with pytest.raises(RunFolderError, match="no readable patch p9; it has p000 to p00"):
        compare([str(layout.root), "p000", "p9"])
    assert layout.map.is_file()


def test_the_map_shows_a_colour_for_every_patch_and_a_cross_for_every_lost_camera(tmp_path: Path) -> None:
    scene = synthetic_scene(36, 500)
    cut = split(scene, PatchingSettings(max_cameras=12, holdout_every=0))
    draw_map(scene, cut, tmp_path / "plain.png")
    draw_map(scene, cut, tmp_path / "crossed.png", blind=[scene.names[0]])
    plain, crossed = (
        np.asarray(Image.open(tmp_path / name).convert("RGB"), int) for name in ("plain.png", "crossed.png")
    )
    colors = {tuple(color) for color in plain.reshape(-1, 3) if max(color) - min(color) > 100}
    assert len(colors) >= len(cut.patches)

    def red(image: np.ndarray) -> int:
        return int((np.abs(image - (205, 20, 30)).sum(axis=-1) < 10).sum())

    assert red(plain) == 0 < red(crossed)


def test_photographs_that_would_become_too_small_to_compare_are_a_sentence() -> None:
    config = config_from_dict({"training": {"max_width": 1}}, "test")
    with pytest.raises(ConfigError, match=r"training.max_width.*would be trained at 1x1 pixels; 11 each way"):
        check_plan(synthetic_scene(), config)
