"""What several commands share: types of arguments, and options as decorators. `timam_lab.options` has more of them."""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from timam.data import DATASETS


class HomePath(click.Path):
    """A path in which ~ is the home folder: the shell leaves the ~ of `--output=~/run` to the program."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return super().convert(os.path.expanduser(value), param, ctx)


FOLDER = HomePath(path_type=Path, file_okay=False)


class _Root(HomePath):
    """A path, or ORG/NAME: the folder of a data set of the Hugging Face hub in the hub's cache. Nothing is fetched."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if re.fullmatch(r"[\w.-]+/[\w.-]+", str(value)) and not Path(value).exists():
            from huggingface_hub import snapshot_download
            from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

            with suppress(HFValidationError, LocalEntryNotFoundError):
                value = snapshot_download(str(value), repo_type="dataset", local_files_only=True)
        return super().convert(value, param, ctx)


ROOT = _Root(path_type=Path)


def _columns(context: click.Context, option: click.Parameter, pairs: tuple[str, ...]) -> str | None:
    """("caption=text", ...) -> "caption=text;...", the setting `data.columns`; None if there are none."""
    for pair in pairs:
        if not all(pair.partition("=")) or ";" in pair:
            raise click.BadParameter(f"{pair!r}: expected NAME=COLUMN, for example caption=text")
    if len({pair.partition("=")[0].strip() for pair in pairs}) < len(pairs):
        raise click.BadParameter("a name stands twice; several columns of captions are caption=FIRST,SECOND")
    return ";".join(pairs) or None


_COLUMN = "Read caption, image_path, identity or split from this column of a table; may be repeated."
_ROOT = "Folder of annotation file and pictures, one table, or ORG/NAME of the Hugging Face hub if it is downloaded."
columns = click.option("--column", "columns", metavar="NAME=COLUMN", multiple=True, callback=_columns, help=_COLUMN)
dataset = click.option("--dataset", type=click.Choice(list(DATASETS)), required=True, help="Layout of the data.")
root = click.option("--root", type=ROOT, required=True, help=_ROOT)
