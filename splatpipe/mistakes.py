"""Mistakes in settings, one line each: where the key was written, what is wrong with it, what would be right."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

Keys = tuple[str, ...]
LARGEST = 2.0**53  # from which on not every whole number is one in double precision
SHOWN = 60  # characters of a wrong value, at most
_UNKNOWN_KEY = {"extra_forbidden", "unexpected_keyword_argument"}
_RULES = {  # pydantic's kind of error -> what would be right, with the numbers that pydantic gives
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "literal_error": "must be {expected}",
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "missing": "an entry is missing",
    "unexpected_positional_argument": "has too many entries",
}


class Origins(dict[Keys, str]):
    """Where each key was written: file:line:column, or the command line."""

    def place(self, keys: Keys) -> str:
        """The place of `keys`, of one below it, or of the nearest one above."""
        below = [text for written, text in self.items() if written[: len(keys)] == keys]
        if below and keys not in self:
            return below[0]
        while keys:
            if keys in self:
                return self[keys]
            keys = keys[:-1]
        return "settings"


def unknown_keys(data: Mapping[str, Any], known: Mapping[str, Sequence[str]], origins: Origins) -> list[str]:
    """A line for each section and key of `data` that is none, with the nearest of `known` (section to its keys)."""
    problems = []
    for section, values in data.items():
        if section not in known:
            problems.append(_unknown((section,), list(known), known, origins))
        elif isinstance(values, Mapping):
            strangers = [str(key) for key in values if str(key) not in known[section]]
            problems += [_unknown((section, key), known[section], known, origins) for key in strangers]
    return problems


def wrong_values(error: ValidationError, origins: Origins) -> list[str]:
    """A line for each value that pydantic refuses, unless it is that its key is unknown."""
    found = [one for one in error.errors() if one["type"] not in _UNKNOWN_KEY]
    return list(dict.fromkeys(_wrong(one, origins) for one in found if not _other_branch(one, found)))


def absurd_numbers(value: Any, origins: Origins, keys: Keys = ()) -> list[str]:
    """Numbers that pass every bound of a single setting, and that nothing can reckon with."""
    if isinstance(value, Mapping):
        return [line for key, inner in value.items() for line in absurd_numbers(inner, origins, (*keys, str(key)))]
    if isinstance(value, list | tuple):
        return [line for inner in value for line in absurd_numbers(inner, origins, keys)]
    if not isinstance(value, int | float) or abs(value) < LARGEST:
        return []
    return [f"{origins.place(keys)}: {'.'.join(keys)}: must be a number below {LARGEST:g} (got {value})"]


def no_time_to_refine(values: Mapping[str, Any], defaults: Mapping[str, Any], origins: Origins) -> list[str]:
    """The training section, where somebody has moved both ends of refinement so that the last is before the first."""
    names = ("refine_start", "refine_stop")
    start, stop = (values[name] for name in names)
    moved = all(values[name] != defaults[name] and ("training", name) in origins for name in names)
    if not moved or not 0 < stop <= start:
        return []
    return [
        f"{origins.place(('training', 'refine_stop'))}: training.refine_stop: must be above training.refine_start "
        f"({start}), or 0 for no refinement (got {stop})"
    ]


def _unknown(keys: Keys, choices: Sequence[str], known: Mapping[str, Sequence[str]], origins: Origins) -> str:
    near = difflib.get_close_matches(keys[-1], choices, n=1, cutoff=0.5)
    elsewhere = [f"{section}.{keys[-1]}" for section, names in known.items() if keys[-1] in names]
    section, _, key = keys[-1].partition(".")
    if key in known.get(section, ()):  # dots are for the command line
        advice = f"in a file, write '{key}:' on an indented line below '{section}:'"
    elif elsewhere:
        advice = f"did you mean {elsewhere[0]!r}?"
    elif near:
        advice = f"did you mean {'.'.join((*keys[:-1], near[0]))!r}?"
    else:
        advice = f"known keys are {', '.join(choices)}"
    return f"{origins.place(keys)}: {'.'.join(keys)}: unknown key; {advice}"


def _keys(error: Any) -> Keys:
    """The key as somebody writes it: without the names that pydantic gives to the branches of a union."""
    return tuple(str(part) for part in error["loc"] if not re.search(r"[\[-]|^str$", str(part)))


def _other_branch(error: Any, errors: Iterable[Any]) -> bool:
    """Whether a value that may be text or a list is of the other kind: what is wrong with that one tells more."""
    beside = any(one is not error and _keys(one)[: len(_keys(error))] == _keys(error) for one in errors)
    wrong_kind = error["type"] in ("string_type", "tuple_type")
    return beside and (wrong_kind or (error["type"] == "literal_error" and not isinstance(error["input"], str)))


def _wrong(error: Any, origins: Origins) -> str:
    keys, got = _keys(error), repr(error["input"])
    if error["type"] == "value_error":  # a sentence of our own, which names its key and what it got
        sentence = str(error["ctx"]["error"])
        named = re.match(r"(\w+)\.(\w+)", sentence)
        return f"{origins.place(named.groups() if named else keys)}: {sentence}"
    if error["type"] == "dataclass_type":
        rule = f"must be a section: its keys on indented lines below '{'.'.join(keys)}:'"
    else:
        rule = _RULES[error["type"]].format(**error.get("ctx", {})) if error["type"] in _RULES else error["msg"]
    return f"{origins.place(keys)}: {'.'.join(keys)}: {rule} (got {got if len(got) <= SHOWN else got[:SHOWN] + '...'})"
