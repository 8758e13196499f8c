"""Command line and configuration file as each build of LichtFeld Studio checks them: part of the double."""

from __future__ import annotations

import json
import math
import sys
from collections import UserDict
from pathlib import Path
from typing import Any

from doubles.lichtfeld_versions import KNOWN_KEYS, REQUIRED_KEYS, STRATEGIES, VERSION_TEXT, help_text, known


class Arguments(UserDict[str, str]):
    """Long flag to value ("" for switches); `error` or `text` when the run ends before it begins."""

    error = ""
    text = ""


def parse_arguments(argv: list[str], version: str) -> Arguments:
    """The command line, judged with the build's own messages."""
    arguments, flags = Arguments(), known(version)
    shorts = {flag.short: flag.name for flag in flags.values() if flag.short}
    words = list(argv)
    while words and not arguments.error:
        word = words.pop(0)
        name, joined, value = word.lstrip("-").partition("=")
        if word.startswith("-") and not word.startswith("--"):
            name = shorts.get(name, name)
        if not word.startswith("-"):
            arguments.error = f"Parse error: Passed in argument, but no positional arguments were ready: {word}"
        elif name not in flags:
            arguments.error = f"Parse error: Flag could not be matched: {name}"
        elif not flags[name].value:
            arguments[name] = ""
        elif name == "centralize" and not joined:
            arguments.error = "Parse error: centralize needs its value after ="
        elif joined or words:
            arguments[name] = value if joined else words.pop(0)
        else:
            arguments.error = f"Parse error: Flag '{name}' requires an argument"
    arguments.error = arguments.error or _wrong(arguments, version)
    if "help" in arguments:
        arguments.error, arguments.text = "", help_text(version)
    elif "version" in arguments:
        arguments.error, arguments.text = "", VERSION_TEXT[version]
    return arguments


def _wrong(arguments: Arguments, version: str) -> str:
    strategy, width = arguments.get("strategy"), arguments.get("max-width", "1")
    if strategy is not None and strategy not in STRATEGIES[version]:
        valid = ", ".join(STRATEGIES[version])
        return f"ERROR: Invalid optimization strategy '{strategy}'. Valid strategies are: {valid}"
    if "headless" not in arguments:
        return "cannot open display"
    if "data-path" not in arguments:
        return "ERROR: Headless mode requires --data-path" + (" or --resume" if version == "master" else "")
    if "output-path" not in arguments:
        return "ERROR: Training mode requires both --data-path and --output-path"
    if version in ("oct", "0.3") and int(width) > 4096:
        return "ERROR: --max-width cannot be higher than 4096"
    return "" if int(width) >= (0 if version not in ("oct", "0.3") else 1) else "ERROR: --max-width must be positive"


def read_config(arguments: Arguments, version: str) -> tuple[dict[str, Any], str]:
    """The optimisation parameters of the run, and what is wrong with them ("" if nothing)."""
    failed = (
        "Failed to load optimization parameters: "
        if version == "oct"
        else ("Config load failed: Error parsing optimization parameters: ")
    )
    try:
        given = json.loads(Path(arguments["config"]).read_text()) if "config" in arguments else {}
    except (OSError, ValueError) as error:
        return {}, failed + str(error)
    config = given if version == "oct" else given.get("optimization", given)
    for key in REQUIRED_KEYS if "config" in arguments else ():
        if key not in config:
            return {}, failed + f"[json.exception.out_of_range.403] key '{key}' not found"
        if not isinstance(config[key], int | float) or isinstance(config[key], bool):
            return {}, f"Invalid type for optimization.{key}; expected number"
    if error := _conflict(arguments, config, version):
        return {}, error
    if version == "oct" and (unknown := sorted(set(config) - KNOWN_KEYS)):
        print("Unknown parameters in JSON (will be ignored):\n  " + "\n  ".join(unknown), file=sys.stderr)
    usual = "mrnf" if version in ("0.5.2", "master") else "mcmc"
    strategy = arguments.get("strategy", config.get("strategy", usual))
    return {"init_scaling": 0.1, "max_cap": 1_000_000, **config, "strategy": strategy}, ""


def _conflict(arguments: Arguments, config: dict[str, Any], version: str) -> str:
    both = config.get("strategy"), arguments.get("strategy")
    if None not in both and both[0] != both[1]:
        old = "Conflict between strategy in config file and --strategy on command line"
        return old if version == "oct" else "--strategy conflicts with config file"
    scaling = config.get("init_scaling", 0.1)
    if version == "master" and not (isinstance(scaling, int | float) and 0 < scaling < math.inf):
        return f"Invalid optimization parameters: init_scaling must be finite and positive (got {scaling})"
    if version == "oct" and not 1 <= config.get("sh_degree", 3) <= 3:
        return "ERROR: --sh-degree must be 1, 2 or 3"
    return ""
