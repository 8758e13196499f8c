"""`python -m splatpipe`, for where the environment's bin/ is not on the PATH."""

from splatpipe.cli import main

main()
