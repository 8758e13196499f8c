"""Pages that stand alone: one HTML file with its style and scripts inside, which asks the network for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from splatpipe.report import words

HERE = Path(__file__).resolve().parent
TEMPLATES, ASSETS = HERE / "templates", HERE / "assets"


def render_page(template: str, folders: Sequence[Path] = (), **values: Any) -> str:
    """The page `template` (a file name) as HTML. Every value is escaped: names may be hostile.

    Templates are looked for in `folders`, then beside this room's; most `{% extends "base.html" %}` and fill its
    blocks `title`, `lead`, `content`, `scripts`. `macros.html` has `chart`, `facts`, `badge` and `stat`.
    A chart is data: `charts.Chart(...).to_json()`.
    """
    return _environment(tuple(folders)).get_template(template).render(**values)


@cache
def _environment(folders: tuple[Path, ...]) -> Environment:
    """Kept, because it keeps the templates that it has compiled: a live report is rendered again and again."""
    loader = ChoiceLoader([FileSystemLoader(folder) for folder in (*folders, TEMPLATES)])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= words.FILTERS
    environment.globals["asset"] = _asset
    return environment


def _asset(name: str) -> Markup:
    """A file of our own, verbatim."""
    return Markup((ASSETS / name).read_text())
