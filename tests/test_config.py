"""Settings: every mistake gets its place, every key is documented with its default."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from splatpipe.config import Config, config_from_dict, find_config, known_keys, load_config
from splatpipe.errors import ConfigError
from splatpipe.trainers.lichtfeld_config import find_profile

ROOT = Path(__file__).resolve().parents[1]


def written(folder: Path, text: str) -> Path:
    path = folder / "splat_config.yml"
    path.write_text(text)
    return path


def problem(path: Path | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_the_file_at_the_top_documents_every_key_with_its_default() -> None:
    import yaml

    text = (ROOT / "splat_config.yml").read_text()
    assert load_config(ROOT / "splat_config.yml") == Config()
    assert {name: set(keys) for name, keys in yaml.safe_load(text).items()} == {
        name: set(keys) for name, keys in known_keys().items()
    }


def test_an_unknown_key_is_refused_with_its_line_and_the_nearest_known_one(tmp_path: Path) -> None:
    path = written(tmp_path, "training:\n  iterations: 100\n  iteratons: 5\n")
    assert problem(path) == f"{path}:3:3: training.iteratons: unknown key; did you mean 'training.iterations'?"


def test_an_unknown_section_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "\npatchin:\n  buffer: 0.1\n")
    assert problem(path) == f"{path}:2:1: patchin: unknown key; did you mean 'patching'?"


def test_a_key_in_the_wrong_section_is_pointed_to_the_right_one(tmp_path: Path) -> None:
    path = written(tmp_path, "patching:\n  iterations: 5\n")
    assert "did you mean 'training.iterations'?" in problem(path)


def test_all_mistakes_are_told_at_once_each_with_its_place(tmp_path: Path) -> None:
    path = written(tmp_path, "training:\n  iterations: lots\n  seed: -1\nmerge:\n  foo: 1\n")
    lines = problem(path, "training.sh_degree=9").splitlines()
    assert len(lines) == 4
    assert any(line.startswith(f"{path}:2:3: training.iterations:") and "'lots'" in line for line in lines)
    assert any(line.startswith(f"{path}:3:3: training.seed:") for line in lines)
    assert any(line.startswith(f"{path}:5:3: merge.foo:") for line in lines)
    assert any(line.startswith("command line 'training.sh_degree=9'") for line in lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training:\n  iterations: 3.5\n", ":2:3: training.iterations: must be a whole number (got 3.5)"),
        ("training:\n  iterations: 0\n", ":2:3: training.iterations: must be at least 1 (got 0)"),
        ("training:\n  means_lr: fast\n", ":2:3: training.means_lr: must be a number (got 'fast')"),
        ("training:\n  antialiased: maybe\n", ":2:3: training.antialiased: must be true or false (got 'maybe')"),
        ("training:\n  device: gpu\n", ":2:3: training.device: must be auto, cpu, cuda or cuda:1 (got 'gpu')"),
        ("training: 5\n", ":1:1: training: must be a section: its keys on indented lines below 'training:' (got 5)"),
        ("scene:\n  images: 5\n", ":2:3: scene.images: must be text (got 5)"),
        ("health:\n  sinks: wandb\n", ":2:3: health.sinks: must be a list (got 'wandb')"),
        ("health:\n  scene_scale: [5]\n", ":2:3: health.scene_scale.1: an entry is missing (got [5])"),
        ("patching:\n  grid: [1, 2, 3]\n", ":2:3: patching.grid: must have at most 2 entries (got [1, 2, 3])"),
        ("patching:\n  frame: zx\n", ":2:3: patching.frame: must be 'auto', 'xy', 'xz' or 'yz' (got 'zx')"),
        ("patching:\n  cells: [[[0, a]]]\n", ":2:3: patching.cells.0.0.1: must be a number (got 'a')"),
        (
            "patching:\n  buffer: 0.1\n  holdout_every: 1\n",
            ":3:3: patching.holdout_every: 1 would keep every view from training; use 0 or at least 2",
        ),
        ("init_scaling:\n  rungs: [0.4, 0.1]\n", ":2:3: init_scaling.rungs must ascend, got [0.4, 0.1]"),
        ("executor:\n  kind: lsf\n", ":2:3: executor.kind: must be 'local', 'ray' or 'slurm' (got 'lsf')"),
        (
            "training.seed: 3\n",
            ":1:1: training.seed: unknown key; in a file, write 'seed:' on an indented line below 'training:'",
        ),
    ],
)
def test_a_wrong_value_is_one_line_with_its_place_and_what_would_be_right(
    tmp_path: Path, text: str, expected: str
) -> None:
    path = written(tmp_path, text)
    assert problem(path) == f"{path}{expected}"


def test_a_key_set_twice_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "training:\n  seed: 1\n  seed: 2\n")
    assert problem(path) == f"{path}:3:3: training.seed: set twice (first at {path}:2:3)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training:\n  seed: [1\n", "not valid YAML"),
        ("- a\n- b\n", "key: value"),
        ("just words\n", "key: value"),
        ("training: 5\n", "training"),
        ("training:\n  device: {a: 1}\n", "training.device"),
        ("training:\n  device: tpu\n", "training.device"),
        ("training:\n  threads: 100000\n", "training.threads"),
        ("training:\n  means_lr: .inf\n", "training.means_lr: must be a number below"),
        ("patching:\n  grid: [3, 99999999999999999999]\n", "patching.grid: must be a number below"),
        ("7:\n  seed: 1\n", "7: unknown key"),
        ("!!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_rubbish_is_refused_with_the_file_named(tmp_path: Path, text: str, expected: str) -> None:
    path = written(tmp_path, text)
    message = problem(path)
    assert str(path) in message
    assert expected in message


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "splat_config.yml"
    path.write_bytes(b"\xff\xfe\x00training")
    assert str(path) in problem(path)


def test_overrides_win_and_numbers_may_be_written_as_people_write_them(tmp_path: Path) -> None:
    path = written(tmp_path, "training:\n  iterations: 100\n  means_lr: 1e-4\n")
    config = load_config(path, ["training.iterations=2000", "patching.max_cameras=8", "scene.images=images_4"])
    assert (config.training.iterations, config.training.means_lr) == (2000, 1e-4)
    assert (config.patching.max_cameras, config.scene.images) == (8, "images_4")


@pytest.mark.parametrize("override", ["training.iterations", "=5", "training..seed=1", "seed", "training.seed.x=1"])
def test_an_override_that_is_none_is_refused_and_shown(override: str) -> None:
    assert override in problem(None, override)


def test_an_empty_section_means_its_defaults(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "training:\n")) == Config()


def test_the_settings_of_a_run_read_back_as_they_were() -> None:
    config = load_config(None, ["training.iterations=7", "retry.unknown=[next_rung]", "init_scaling.fixed=0.25"])
    again = config_from_dict(json.loads(json.dumps(config.to_dict())), "run.yml")
    assert again == config
    assert again.hash() == config.hash() != Config().hash()


def test_the_p7_profile_is_found_beside_the_settings_or_in_the_checkout(tmp_path: Path) -> None:
    path = written(tmp_path, "training:\n  lfs_config: increase_init_scaling.json\n")
    config = load_config(path)
    assert config.training.lfs_config is not None
    assert find_profile(config.training.lfs_config, [tmp_path, ROOT]).is_file()


def test_a_profile_that_is_not_there_is_named_with_the_places_looked_at(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere.json") as caught:
        find_profile("nowhere.json", [tmp_path])
    assert str(tmp_path) in str(caught.value)


def test_a_users_message_must_be_a_row_of_the_catalogue(tmp_path: Path) -> None:
    path = written(tmp_path, "failures:\n  rows:\n    - {pattern: 'warp drive', class: sadness}\n")
    assert "failures.rows, row 1: 'class' is one of" in problem(path)
    good = load_config(written(tmp_path, "failures:\n  rows:\n    - {pattern: 'warp drive', class: hang}\n"))
    assert config_from_dict(json.loads(json.dumps(good.to_dict())), "run.yml") == good


def test_the_settings_beside_the_scene_come_before_those_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, here = tmp_path / "scene", tmp_path / "here"
    scene.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    assert find_config(scene) is None
    mine = written(here, "")
    assert find_config(scene) == mine
    theirs = written(scene, "")
    assert find_config(scene) == theirs


def test_refinement_that_ends_before_it_begins_is_one_line_with_both_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, "training:\n  refine_start: 900\n  refine_stop: 800\n")
    assert problem(path) == (
        f"{path}:3:3: training.refine_stop: must be above training.refine_start (900), or 0 for no refinement (got 800)"
    )
    load_config(path, ["training.refine_stop=0"])
    load_config(None, ["training.refine_stop=250"])  # a short training, without refinement
