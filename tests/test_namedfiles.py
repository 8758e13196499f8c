"""Files that settings name for after training are refused before it, with the line that names them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from scenes import synthetic_scene, write_scene

from splatpipe import cli
from splatpipe.config import load_config
from splatpipe.errors import ConfigError


def written(folder: Path, text: str) -> Path:
    path = folder / "splat_config.yml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("holds", "sentence"),
    [
        (None, r"splat_config\.yml:2:3: export\.georeference: georeference .*geo\.txt cannot be read \(No such file"),
        (
            "1 2 3",
            r"splat_config\.yml:2:3: export\.georeference: georeference .*geo\.txt: 3 numbers; it must hold a 4x4",
        ),
        ("1 0 0 0 0 1 0 0 0 0 -1 0 0 0 0 1", r"splat_config\.yml:2:3: export\.georeference: .*mirrors"),
    ],
)
def test_a_georeference_that_is_none_is_refused_with_its_line(tmp_path: Path, holds: str | None, sentence: str) -> None:
    path = written(tmp_path, "export:\n  georeference: geo.txt\n")
    if holds:
        (tmp_path / "geo.txt").write_text(holds)
    with pytest.raises(ConfigError, match=sentence):
        load_config(path, [], tmp_path)


def test_a_georeference_in_the_scene_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "geo.txt").write_text("2.5 1 0 0 0 431250.5 5700123.25 87")
    path = written(tmp_path, "export:\n  georeference: geo.txt\n")
    assert load_config(path, [], tmp_path).export.georeference == "geo.txt"


def test_lpips_weights_that_are_none_are_refused_with_where_they_were_named(tmp_path: Path) -> None:
    named = [f"evaluation.lpips_weights={tmp_path}"]
    match = r"^command line 'evaluation\.lpips_weights=.*': evaluation\.lpips_weights: .* has no LPIPS weights; it must"
    with pytest.raises(ConfigError, match=match):
        load_config(None, named, tmp_path)


@pytest.mark.parametrize("command", ["run", "split"])
def test_a_run_with_both_wrong_names_both_and_trains_nothing(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scene(tmp_path / "scene", synthetic_scene(n_cameras=9, n_points=80))
    named = ["export.georeference=nowhere.txt", f"evaluation.lpips_weights={tmp_path}"]
    out = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["splatpipe", command, str(tmp_path / "scene"), "--out", str(out), *named])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert "export.georeference" in said and "evaluation.lpips_weights" in said and "Traceback" not in said
    assert not out.exists()
