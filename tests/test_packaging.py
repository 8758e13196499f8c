"""The project's own files: what is pinned, what is promised, and how an environment is chosen."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

from splatpipe.cli import app

IMPORT_NAMES = {"yaml": "pyyaml", "PIL": "pillow", "pynvml": "nvidia-ml-py", "llvmlite": "numba"}


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins(repository: Path) -> dict[str, str]:
    lines = (repository / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(r.name): str(r.specifier) for r in map(Requirement, (s for s in lines if s[0] != "#"))}


@pytest.fixture(scope="module")
def bootstrap(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", repository / "tools" / "bootstrap.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_promised_dependency_is_pinned_to_one_version_within_its_range(
    project: dict[str, Any], pins: dict[str, str]
) -> None:
    extras = project["optional-dependencies"]
    promised = project["dependencies"] + [line for name in ("test", "cuda", "view", "remote") for line in extras[name]]
    for requirement in map(Requirement, promised):
        pin = pins[canonicalize_name(requirement.name)]
        assert re.fullmatch(r"==[\w.]+", pin), requirement.name
        assert requirement.specifier.contains(pin[2:]), f"{requirement} was tested with {pin}"


def test_the_tests_run_with_the_pinned_versions(pins: dict[str, str]) -> None:
    for name in ("numpy", "scipy", "torch", "numba", "pycolmap", "pydantic"):
        assert version(name).partition("+")[0] == pins[name][2:], name


def test_everything_imported_is_a_declared_dependency(repository: Path, project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    named = ("cuda", "view", "wandb", "ray", "slurm", "remote")
    required = project["dependencies"] + [line for name in named for line in extras[name]]
    declared = {canonicalize_name(Requirement(line).name) for line in required}
    imported = set()
    for path in (repository / "splatpipe").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    foreign = imported - sys.stdlib_module_names - {"splatpipe"}
    assert {IMPORT_NAMES.get(name, canonicalize_name(name)) for name in foreign} <= declared


def test_importing_splatpipe_and_its_command_line_loads_no_heavy_library() -> None:
    code = "import sys, splatpipe.cli; print([m for m in ('torch', 'numba', 'pycolmap', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_arguments_every_command_is_listed_in_a_whole_sentence_as_the_readme_does(repository: Path) -> None:
    shown = CliRunner().invoke(app, [], env={"COLUMNS": "80"}).output
    listed = [line.split(None, 1) for line in shown.partition("Commands:")[2].splitlines() if line.strip()]
    assert [sentence for _, sentence in listed if not sentence.endswith(".") or sentence.endswith("...")] == []
    table = re.findall(r"^\| `([a-z-]+)(?: [^`]*)?` \|", (repository / "README.md").read_text(), re.M)
    assert [name for name, _ in listed] == table


def test_every_page_is_listed_in_the_readme_and_every_link_leads_somewhere(repository: Path) -> None:
    pages = sorted((repository / "docs").glob("*.md"))
    listed = (repository / "README.md").read_text()
    assert [page.name for page in pages if f"(docs/{page.name})" not in listed] == []
    for page in (repository / "README.md", *pages):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_no_committed_text_names_a_path_of_somebodys_machine(repository: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    foreign = re.compile(rb"/(?:work|root|home/\w+)/(?:main|shared|\w+/)")
    for name in filter(None, listed.stdout.split("\0")):
        path = repository / name
        if path.suffix in (".py", ".md", ".toml", ".txt", ".yml", ".json") and path.is_file():
            found = foreign.search(path.read_bytes())
            assert found is None or path == Path(__file__), f"{name}: {found}"


def test_a_gpu_is_recognised_by_the_files_of_its_driver(bootstrap: ModuleType, tmp_path: Path) -> None:
    assert not bootstrap.has_nvidia_gpu(tmp_path)
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").touch()
    assert bootstrap.has_nvidia_gpu(tmp_path)


def test_the_environment_of_these_tests_needs_no_other_torch(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bootstrap.torch_in(Path(sys.executable)) == bootstrap.pinned_torch()
    monkeypatch.setattr(bootstrap, "pip", lambda *_, **__: pytest.fail("pip was started"))
    bootstrap.install_torch(Path(sys.executable), gpu=False)


def test_an_old_python_is_one_sentence(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "OLDEST", (99, 0))
    with pytest.raises(bootstrap.BootstrapError, match=r"Python 3\.11 or newer is needed"):
        bootstrap.find_python()
