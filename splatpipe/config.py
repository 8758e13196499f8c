"""splat_config.yml as typed, validated settings; each room's settings class holds its own defaults."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Le
from pydantic import TypeAdapter, ValidationError

from splatpipe.errors import ConfigError
from splatpipe.executors.settings import ExecutorSettings
from splatpipe.export.settings import ExportSettings
from splatpipe.failures.classify import Catalogue, extended_catalogue
from splatpipe.health.settings import HealthSettings
from splatpipe.merge.settings import EvaluationSettings, MergeSettings
from splatpipe.mistakes import Origins, absurd_numbers, no_time_to_refine, unknown_keys, wrong_values
from splatpipe.namedfiles import wrong_files
from splatpipe.patches.settings import PatchingSettings
from splatpipe.policy.init_scaling import InitScalingSettings
from splatpipe.policy.probe import ProbeSettings
from splatpipe.policy.remedies import RetrySettings
from splatpipe.splatting.settings import TrainSettings
from splatpipe.storage.settings import StorageSettings
from splatpipe.trainers.base import Limits
from splatpipe.yamltext import YamlProblem, compose_yaml, load_yaml

FILE_NAME = "splat_config.yml"
STRICT: Any = {"extra": "forbid"}


@dataclass(frozen=True)
class SceneSettings:
    """Where the photographs are and what to do when some are not."""

    __pydantic_config__ = STRICT

    images: str | None = None  # image folder below the scene, e.g. images_4; None: found by itself
    missing_images: Literal["error", "skip"] = "error"
    masks: str | None = None  # folder of masks below the scene, e.g. masks; None: none are used
    outside_links: Literal["refuse", "follow"] = "refuse"  # images that are links to places outside the scene
    offset: Literal["auto"] | tuple[float, float, float] = "auto"  # taken off all positions; auto: where it is needed


@dataclass(frozen=True)
class TrainingSection(TrainSettings):
    """`training:`, which adds to the hyper-parameters where and by what they are used."""

    __pydantic_config__ = STRICT

    trainer: Literal["auto", "gsplat", "lichtfeld"] = "auto"
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    threads: Annotated[int, Ge(0), Le(1024)] = 0  # CPU threads of one training; 0: all there are
    share_cap: bool = True  # give each patch the part of max_cap that its area and points deserve
    lfs_config: str | None = None  # a profile under lfs_configs/
    lfs_binary: str | None = None  # LichtFeld Studio, or its folder; None: $LICHTFELD_BIN, else PATH

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"training.device: must be auto, cpu, cuda or cuda:1 (got {self.device!r})")

    def hyper_parameters(self) -> TrainSettings:
        """The part that the training loop knows."""
        return TrainSettings(**{f.name: getattr(self, f.name) for f in dataclasses.fields(TrainSettings)})


@dataclass(frozen=True)
class FailureSettings:
    """What messages mean, beyond the catalogue that splatpipe comes with."""

    __pydantic_config__ = STRICT

    rows: tuple[dict[str, Any], ...] = ()  # of failures/catalogue.yml, tried before its own

    def __post_init__(self) -> None:
        try:
            self.catalogue()
        except ConfigError as error:
            raise ValueError(str(error)) from error

    def catalogue(self) -> Catalogue:
        """The user's rows, then splatpipe's."""
        return extended_catalogue(self.rows, "failures.rows")


@dataclass(frozen=True)
class Config:
    """All settings of a run, resolved."""

    __pydantic_config__ = STRICT

    scene: SceneSettings = field(default_factory=SceneSettings)
    patching: PatchingSettings = field(default_factory=PatchingSettings)
    init_scaling: InitScalingSettings = field(default_factory=InitScalingSettings)
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    training: TrainingSection = field(default_factory=TrainingSection)
    limits: Limits = field(default_factory=Limits)
    health: HealthSettings = field(default_factory=HealthSettings)
    retry: RetrySettings = field(default_factory=RetrySettings)
    failures: FailureSettings = field(default_factory=FailureSettings)
    executor: ExecutorSettings = field(default_factory=ExecutorSettings)
    merge: MergeSettings = field(default_factory=MergeSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    export: ExportSettings = field(default_factory=ExportSettings)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, tuples as lists."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def hash(self) -> str:
        """Twelve hex digits that identify the settings."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]


def load_config(path: Path | None, overrides: Sequence[str] = (), scene: Path | None = None) -> Config:
    """Read `path` (None: defaults only), apply `key.sub=value` overrides, validate.

    With the folder of a `scene`, files that settings name are looked at too.
    Raises `ConfigError` with every problem in it, each with file:line:column or the override.
    """
    data: dict[str, Any] = {}
    origins = Origins()
    problems: list[str] = []
    if path is not None:
        data = _read_yaml(path, origins, problems)
    for override in overrides:
        _apply_override(data, override, origins, problems)
    config = _validated(data, origins, problems)
    if scene and (wrong := list(wrong_files(config.export, config.evaluation, scene, origins))):
        raise ConfigError("\n".join(wrong))
    return config


def config_from_dict(data: dict[Any, Any], origin: str, overrides: Sequence[str] = ()) -> Config:
    """Settings that `Config.to_dict` gave, read back from `origin`, with `overrides`. Raises `ConfigError`."""
    data = {str(section): values for section, values in data.items()}
    origins, problems = Origins({(section,): origin for section in data}), list[str]()
    for override in overrides:
        _apply_override(data, override, origins, problems)
    return _validated(data, origins, problems)


def _validated(data: dict[str, Any], origins: Origins, problems: list[str]) -> Config:
    problems = [*problems, *unknown_keys(data, known_keys(), origins)]
    try:
        config = TypeAdapter(Config).validate_python(data)
        values = dataclasses.asdict(config)
        problems += absurd_numbers(values, origins)
        problems += no_time_to_refine(values["training"], dataclasses.asdict(TrainingSection()), origins)
    except ValidationError as error:
        problems += wrong_values(error, origins)
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def find_config(scene: Path | None) -> Path | None:
    """splat_config.yml beside the scene, else in the working folder, else None."""
    folders = ([scene] if scene else []) + [Path.cwd()]
    return next((folder / FILE_NAME for folder in folders if (folder / FILE_NAME).is_file()), None)


# ------------------------------------------------------------------ reading


def _read_yaml(path: Path, origins: Origins, problems: list[str]) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is no text in UTF-8; name a settings file with --config") from error
    try:
        root, data = compose_yaml(text)
    except YamlProblem as error:
        place = f"{path}:{error.line}:{error.column}" if error.line else str(path)
        raise ConfigError(f"{place}: not valid YAML ({error.problem})") from error
    if data is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}:1: must hold `key: value` lines at its top")
    for keys, node in _walk(root, ()):
        place = f"{path}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
        if keys in origins:
            problems.append(f"{place}: {'.'.join(keys)}: set twice (first at {origins[keys]})")
        origins[keys] = place
    # A section whose keys are all commented out is there, but empty: that means its defaults.
    return {str(key): {} if value is None else value for key, value in data.items()}


def _walk(node: yaml.Node, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            keys = (*above, str(key.value))
            yield keys, key
            yield from _walk(value, keys)


def _apply_override(data: dict[str, Any], override: str, origins: Origins, problems: list[str]) -> None:
    name, equals, text = override.partition("=")
    keys = tuple(name.strip().split("."))
    if not equals or not all(keys):
        problems.append(f"{override!r}: an override looks like training.iterations=2000")
        return
    try:
        value = load_yaml(text) if text.strip() else None
    except YamlProblem:
        value = text
    place = data
    for key in keys[:-1]:
        inner = place.setdefault(key, {})
        if not isinstance(inner, dict):
            problems.append(f"{override!r}: {key} is a single value, it has no key {keys[-1]!r}")
            return
        place = inner
    place[keys[-1]] = value
    origins[keys] = f"command line {override!r}"


def known_keys() -> dict[str, tuple[str, ...]]:
    """Section name to its keys."""
    return {
        section.name: tuple(f.name for f in dataclasses.fields(section.default_factory))  # type: ignore[arg-type]
        for section in dataclasses.fields(Config)
    }
