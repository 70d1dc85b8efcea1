"""Commands of the command line that need more than the core: `timam data pedestrians`, `data oracle` and `studies`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from timam import arguments


@click.command()
@click.option("--output", type=arguments.FOLDER, required=True, help="Folder to make.")
@click.option(
    "--identities", type=click.IntRange(3), default=1000, help="Persons in all, split as CUHK-PEDES (11:1:1)."
)
@click.option("--val-identities", type=click.IntRange(1), help="Persons for validation, instead of their share.")
@click.option("--test-identities", type=click.IntRange(1), help="Persons for the test, instead of their share.")
@click.option("--images-per-identity", type=click.FloatRange(1), default=3.092, help="Mean number of pictures.")
@click.option("--height", type=click.IntRange(64, 512), default=192, help="Pixels.")
@click.option("--width", type=click.IntRange(32, 256), default=96, help="Pixels.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Same seed, same bytes.")
@click.option("--omission", type=click.FloatRange(0, 1), help="Share of attributes that a caption leaves out.")
@click.option("--mistake", type=click.FloatRange(0, 1), help="Share of stated attributes that are wrong.")
@click.option("--misspelling", type=click.FloatRange(0, 1), help="Share of misspelled words.")
@click.option("--remark", type=click.FloatRange(0, 1), help="Share of captions with an irrelevant remark.")
@click.option("--negation", type=click.FloatRange(0, 1), help="Share of captions that also say what is not there.")
@click.option(
    "--unseen-words", type=click.FloatRange(0, 1), help="Share of mentions in validation and test in new words."
)
@click.option("--describers", type=click.IntRange(1, 1000), help="Number of people who write.")
@click.option("--habits", type=click.FloatRange(0, 1), help="Share of their choices that follow a habit.")
@click.option("--shades", type=click.FloatRange(0, 1), help="Share of shades that one calls by another colour's name.")
@click.option("--occlusion", type=click.FloatRange(0, 1), help="Share of pictures that are partly hidden.")
@click.option("--company", type=click.FloatRange(0, 1), help="Share of pictures with other people.")
@click.option("--cut-off", type=click.FloatRange(0, 1), help="Share of pictures whose edge cuts the person.")
@click.option(
    "--smallest", type=click.IntRange(40, 300), help="Pixels: least height before a picture is brought to size."
)
@click.option("--near-duplicate", type=click.FloatRange(0, 1), help="Share of persons who resemble another.")
@click.option("--difficulty", type=click.Choice(["easy", "standard", "hard"]), default="standard",
              help="Settings of all shares that are not given.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1), help="Processes; all cores unless given.")
def pedestrians(output: Path, identities: int, workers: int | None, **options: Any) -> None:
    """Render the pedestrians: a person-search benchmark of our own in the layout of CUHK-PEDES."""
    from timam_lab.pedestrians import PedestrianSpec, render_pedestrians

    options = {name: value for name, value in options.items() if value is not None}
    asked = {split: options.pop(f"{split}_identities", None) for split in ("val", "test")}
    spec = PedestrianSpec.of_size(identities, **options)
    val, test = asked["val"] or spec.val_identities, asked["test"] or spec.test_identities
    if val + test >= identities:
        raise click.UsageError(f"--identities {identities} leaves none for training beside {val} and {test}")
    spec = replace(spec, train_identities=identities - val - test, val_identities=val, test_identities=test)
    render_pedestrians(output, spec, workers)
    click.echo(f"{output}: {identities} persons rendered")


@click.command()
@arguments.root
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="test", help="Pictures and captions.")
@arguments.json
def oracle(root: Path, split: str, as_json: bool) -> None:
    """The ceiling of rendered pedestrians: the ranking of a reader who knows what pictures show and captions state."""
    from timam_lab.oracle import oracle

    results = oracle(root, split)
    if as_json:
        click.echo(json.dumps(results, indent=2))
        return
    for direction, rows in results.items():
        click.echo(f"{direction}, {split} split (percent)")
        for name, row in rows.items():
            click.echo(f"  {name:15}" + "".join(f"  {key} {100 * value:5.1f}" for key, value in row.items()))


@click.group()
def studies() -> None:
    """Results of several runs."""


@studies.command("table")
@click.argument("runs", type=arguments.EXISTING_FOLDER)
@click.option("--csv", type=arguments.FILE, help="Also write it here, as fractions.")
def studies_table(runs: Path, csv: Path | None) -> None:
    """One row for each variant among the finished runs in the folder RUNS.

    Mean in percent with its 95 % interval over the seeds, the seeds and the commit. Runs whose settings differ in the
    seed only are one variant; it is named by the settings in which it differs from most others.
    """
    from timam_lab.studies import table, table_text

    frame = table(runs)
    click.echo(table_text(frame))
    if csv:
        frame.to_csv(csv, index=False)
