"""splatpipe's command line with the trainer double in place of every trainer: `cli_with_double.py run SCENE ...`.

Behaviours come from the environment variable TRAINER_DOUBLE (see trainer_double.py).
"""

from __future__ import annotations

from trainer_double import TrainerDouble

from splatpipe import cli, pipeline
from splatpipe.crew import Crew

if __name__ == "__main__":
    double = TrainerDouble()
    pipeline.choose_crew = lambda config, folders: Crew(double, double.probe())
    cli.main()
