"""Arguments and options that several commands of this package share, beside those of `timam.arguments`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from timam.arguments import HomePath
from timam.run import Run

FILE = HomePath(path_type=Path, dir_okay=False)
EXISTING_FOLDER = HomePath(path_type=Path, file_okay=False, exists=True)
EXISTING_FILE = HomePath(path_type=Path, dir_okay=False, exists=True)

json = click.option("--json", "as_json", is_flag=True, help="For programs; fractions in [0, 1].")
_run: Any = {"type": EXISTING_FOLDER, "callback": lambda context, parameter, folder: folder and Run(folder)}
run = click.argument("run", **_run)
run_or_none = click.argument("run", required=False, **_run)
