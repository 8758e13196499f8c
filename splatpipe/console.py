"""What is said beside results goes to stderr, so that stdout can be piped."""

from __future__ import annotations

import os
import sys


def say(text: str) -> None:
    """A line for whoever watches, at once. May be called by signal handlers."""
    try:
        print(text, file=sys.stderr, flush=True)
    except RuntimeError:  # the signal came while another line waits for its reader
        os.write(2, f"{text}\n".encode(errors="backslashreplace"))
