"""The rooms of the house: who may import whom, so that each can be read, tested and lifted out by itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

LAYERS = (  # from below; a room imports rooms of its own layer and of those before it
    {"splatting", "scene"},
    {"failures", "health"},
    {"executors", "export", "merge", "patches", "policy", "report", "storage", "trainers"},
    {"diagnosis", "viewer"},
)
SETTINGS_KNOWN_IN = {"diagnosis/diagnose.py"}  # a command of its own, with its stages, as pipeline.py is one


@pytest.fixture(scope="module")
def imports(repository: Path) -> dict[str, set[str]]:
    """File below splatpipe/ -> modules of splatpipe that it imports while it runs, without the leading `splatpipe.`."""
    root = repository / "splatpipe"
    return {str(p.relative_to(root)): set(imported(ast.parse(p.read_text()))) for p in root.rglob("*.py")}


def imported(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.ImportFrom) and child.module and child.module.startswith("splatpipe."):
            yield child.module.removeprefix("splatpipe.")
        elif isinstance(child, ast.ImportFrom) and child.module == "splatpipe":
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.Import):
            yield from (a.name.removeprefix("splatpipe.") for a in child.names if a.name.startswith("splatpipe."))
        yield from imported(child)


def room_of(name: str) -> str:
    return name.replace("/", ".").partition(".")[0]


def test_every_room_has_its_layer(repository: Path) -> None:
    rooms = {p.parent.name for p in (repository / "splatpipe").glob("*/__init__.py")}
    assert rooms == set().union(*LAYERS)


def test_arrows_between_rooms_run_downwards_only(imports: dict[str, set[str]]) -> None:
    layer = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
    upwards = [
        f"{file} imports {module}"
        for file, modules in imports.items()
        for module in modules
        if room_of(file) in layer and layer.get(room_of(module), -1) > layer[room_of(file)]
    ]
    assert upwards == []


def test_no_two_rooms_need_each_other(imports: dict[str, set[str]]) -> None:
    needs: dict[str, set[str]] = {room: set() for rooms in LAYERS for room in rooms}
    for file, modules in imports.items():
        if room_of(file) in needs:
            needs[room_of(file)] |= {room_of(m) for m in modules} & needs.keys() - {room_of(file)}
    while leaves := [room for room, others in needs.items() if not others]:
        for room in leaves:
            del needs[room]
        for others in needs.values():
            others.difference_update(leaves)
    assert needs == {}


def test_the_training_core_can_be_lifted_out(imports: dict[str, set[str]]) -> None:
    used = {module for file, modules in imports.items() if room_of(file) == "splatting" for module in modules}
    assert {module for module in used if room_of(module) != "splatting"} == {"errors", "files"}


def test_rooms_take_values_and_not_the_settings_of_a_run(imports: dict[str, set[str]]) -> None:
    knowing = {file for file, modules in imports.items() if modules & {"config", "pipeline", "cli"} and "/" in file}
    assert knowing == SETTINGS_KNOWN_IN
