"""splatpipe: one trained splat from a COLMAP scene too big for a single run, patch by patch."""

__version__ = "0.1.0"
