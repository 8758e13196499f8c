"""YAML from outside: plain data only, no aliases, and every complaint with its line and column."""

from __future__ import annotations

from typing import Any

import yaml


class YamlProblem(ValueError):
    """What is wrong with a text that should be YAML; `line` and `column` count from 1, 0 when not known."""

    def __init__(self, problem: str, line: int = 0, column: int = 0) -> None:
        super().__init__(f"line {line}, column {column}: {problem}" if line else problem)
        self.problem, self.line, self.column = problem, line, column


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Makes no objects but plain ones, and no aliases: a few nested ones stand for more data than fits in memory."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read; write the value out", mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


def compose_yaml(text: str) -> tuple[yaml.Node | None, Any]:
    """The node tree, which knows where each key stands, and the plain data of one YAML document.

    Raises `YamlProblem` for anything that is no such document, however odd.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return node, None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise YamlProblem(error.problem or str(error), *((mark.line + 1, mark.column + 1) if mark else ())) from error
    except yaml.YAMLError as error:
        raise YamlProblem(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise YamlProblem("nested too deeply") from error
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:  # of scalars: no such date
        raise YamlProblem(f"a value cannot be read ({error})") from error


def load_yaml(text: str) -> Any:
    """The plain data of one YAML document. Raises `YamlProblem`."""
    return compose_yaml(text)[1]
