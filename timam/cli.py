"""The command line. Exit code 2 for a wrong call, 1 for a failed run, 130 after Ctrl-C and 143 after SIGTERM.

Importing torch takes seconds. Each command imports it only after it has checked the call.
"""

import io
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from timam import __version__, arguments
from timam import config as configs
from timam.run import Run


class _Commands(click.Group):
    """The commands below and those of `timam_lab`, which is imported when one of them is asked for."""

    lab = ("data", "evaluate", "push", "search", "studies")

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted([*super().list_commands(context), *self.lab])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in self.lab:
            return super().get_command(context, name)
        from timam_lab import commands

        return getattr(commands, name)


@click.group(cls=_Commands, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """TIMAM: one embedding space for pictures and sentences (Sarafianos et al., ICCV 2019)."""


@cli.command()
@click.option("--preset", type=click.Choice(list(configs.PRESETS)), default="quick", help="Settings to start from.")
@arguments.dataset
@arguments.root
@arguments.columns
@click.option("--output", type=arguments.FOLDER, required=True, help="The run's folder.")
@click.option("--seed", type=click.IntRange(0), help="Short for --set train.seed=...  [default: 0]")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Override a setting: train.epochs=3.")
@click.option("--init", metavar="RUN_OR_HUB_ID", help="Start from a trained model. Short for --set train.init=...")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
def train(
    preset: str, dataset: str, root: Path, output: Path, settings: tuple[str, ...], resume: bool, **short: Any
) -> None:
    """Train, select on validation, test once. Epochs count from 1; sizes are in pixels."""
    given = [f"{name}={value}" for name, value in short.items() if value is not None]  # --seed, --init, --column
    data = [f"data.dataset={dataset}", f"data.root={root.resolve()}"]
    try:
        config = configs.override(configs.PRESETS[preset], [*data, *given, *settings])
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    require_data(root)
    from timam.training import fit

    finished = Run(output).finished
    metrics = fit(config, output, resume)
    if os.environ.get("RANK", "0") != "0":  # of several processes, one prints
        return
    if finished:
        click.echo(f"{output} is complete already; nothing to do")
    click.echo(results_table(metrics))
    click.echo(f"run: {output}")


def require_data(root: Path) -> None:
    if not root.exists():
        hint = f"`hf download --repo-type dataset {root}` fetches it, if it is a data set of the Hugging Face hub"
        raise FileNotFoundError(f"{root}: no such folder" + (f"; {hint}" if len(root.parts) == 2 else ""))


def results_table(metrics: dict[str, Any]) -> str:
    """Both directions as a table in percent; below it the folds and the class level, where a data set has them."""
    from timam.metrics import RETRIEVAL_METRICS

    keys = list(RETRIEVAL_METRICS)

    def rows(part: dict[str, Any]) -> Iterator[str]:
        for direction in ("text_to_image", "image_to_text"):
            values = "".join(f"{100 * part[direction][key]:9.2f}" for key in keys)
            sizes = "{queries:,.0f} queries, gallery of {gallery:,.0f}".format(**part[direction])
            chance = f", chance {100 * part[direction]['chance']:.2f}" if "chance" in part[direction] else ""
            yield f"{direction:14}{values}   {sizes}{chance}"

    lines = [f"{metrics['dataset']}, {metrics['split']} split (percent)", " " * 14 + "".join(f"{k:>9}" for k in keys)]
    lines += rows(metrics)
    if folds := metrics.get("folds"):
        lines += [f"mean over {folds['folds']} parts of the pictures, each searched on its own", *rows(folds)]
    if level := metrics.get("class_level"):
        ap, rank = 100 * level["text_to_image_ap_50"], 100 * level["image_to_text_rank_1"]
        lines.append(f"class level, text-to-image AP@50  {ap:6.2f}   one averaged query a class, cosine")
        lines.append(f"class level, image-to-text rank-1 {rank:6.2f}   the nearest caption's class, cosine")
    if open_set := metrics.get("open_set"):
        found = open_set["text_to_image"]["detection_identification_rate"]
        lines.append(
            "open set: the pictures of every second identity are removed. At the threshold where 1 / 10 % of their "
            f"captions still get an answer, {100 * found['0.01']:.2f} / {100 * found['0.1']:.2f} of the other captions "
            "have a right picture first and above it"
        )
    return "\n".join(lines)


def main() -> None:
    """Entry point. An error that the user can mend is a message, not a traceback."""
    for stream in (sys.stdout, sys.stderr):  # a file's name may have characters that the terminal lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    try:
        cli(prog_name="timam", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        cause = error.__cause__ or error  # click makes an Abort of a KeyboardInterrupt
        click.echo(str(cause) or "interrupted", err=True)
        sys.exit(getattr(cause, "exit_code", 130))
    except (OSError, RuntimeError, ValueError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
