"""Damaged input is a sentence or harmless: a few hundred new cases, and every file that once broke a reader.

`benchmarks/fuzz.py` runs any number of cases by hand; docs/reliability.md has the table of the last long run.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fuzzing.readers import READERS
from fuzzing.runner import make_seeds, run_cases, shares
from fuzzing.worker import run_case

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*/*"))
CASES = 150


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    make_seeds(folder, list(READERS))
    return folder


@pytest.mark.slow
def test_damaged_files_are_a_sentence_or_harmless(seeds: Path, tmp_path: Path) -> None:
    cases = shares(CASES, list(READERS), least=3)
    ended = list(run_cases(cases, seeds, tmp_path, seed=2026, timeout_s=60.0))
    bad = [f"{case.reader} {case.index}: {case.kind}: {case.error}" for case in ended if not case.good]
    assert not bad, "\n".join(bad)
    assert len(ended) == len(cases)
    assert {case.kind for case in ended} == {"clean", "sentence"}
    assert max(case.peak_mb for case in ended) < 2048


@pytest.mark.parametrize("name", list(READERS))
def test_whole_files_are_read_without_a_word(name: str, seeds: Path, tmp_path: Path) -> None:
    shutil.copytree(seeds / name, tmp_path / "case", symlinks=True)
    assert run_case(tmp_path / "case", name) == {"kind": "clean", "error": None}


@pytest.mark.parametrize("broken", CORPUS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_file_that_once_broke_a_reader_does_so_no_more(broken: Path, seeds: Path, tmp_path: Path) -> None:
    name, (_, _, target) = broken.parent.name, broken.name.partition(".")
    folder = tmp_path / "case"
    shutil.copytree(seeds / name, folder, symlinks=True)
    (place,) = (path for path in folder.glob(READERS[name].damage) if path.name == target)
    shutil.copy(broken, place)
    result = run_case(folder, name)
    assert result["kind"] in ("clean", "sentence"), result["error"]
