"""What is said beside results goes to stderr, so that stdout can be piped."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """A line for whoever watches, at once."""
    print(text, file=sys.stderr, flush=True)
