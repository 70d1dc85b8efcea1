"""What several commands share: types of arguments, and options as decorators."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from timam.data import DATASETS
from timam.run import Run


class Threshold(click.ParamType):
    """A cosine similarity, or "auto"."""

    name = "auto|X"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        with suppress(ValueError):
            if value == "auto" or -1 <= float(value) <= 1:
                return value if value == "auto" else float(value)
        self.fail(f"{value}: expected auto or a cosine similarity, in [-1, 1]", param, ctx)


class _Path(click.Path):
    """A path in which ~ is the home folder: the shell leaves the ~ of `--output=~/run` to the program."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return super().convert(os.path.expanduser(value), param, ctx)


FOLDER, FILE = _Path(path_type=Path, file_okay=False), _Path(path_type=Path, dir_okay=False)
EXISTING_FOLDER = _Path(path_type=Path, file_okay=False, exists=True)
EXISTING_FILE = _Path(path_type=Path, dir_okay=False, exists=True)
dataset = click.option("--dataset", type=click.Choice(list(DATASETS)), required=True, help="Layout of the data.")
root = click.option("--root", type=FOLDER, required=True, help="Folder of annotation file and pictures.")
json = click.option("--json", "as_json", is_flag=True, help="For programs; fractions in [0, 1].")
run = click.argument("run", type=EXISTING_FOLDER, callback=lambda context, parameter, folder: Run(folder))
