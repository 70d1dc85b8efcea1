"""Commands that need more than the core: `timam data` (check, oracle, pedestrians), `evaluate`, `push`,
`search` and `studies`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from timam import arguments
from timam import config as configs
from timam.cli import require_data, results_table
from timam.data import DATASETS, load_dataset
from timam.run import Run
from timam_lab import options
from timam_lab.pedestrians.spec import DIFFICULTIES, PedestrianSpec
from timam_lab.search_command import search as search

MOST_SAID = 50  # lines of one kind: a wrong folder gives one for each of 40,000 pictures


@click.group()
def data() -> None:
    """Make or check data."""


@data.command()
@arguments.dataset
@arguments.root
@arguments.columns
@click.option("--max-words", type=click.IntRange(1), default=120, help="Warn of captions with more words.")
@click.option(
    "--preset",
    type=click.Choice(list(configs.PRESETS)),
    help="Count captions longer than it reads, and unknown tokens.",
)
@options.json
def check(dataset: str, root: Path, columns: str | None, max_words: int, preset: str | None, as_json: bool) -> None:
    """Count each split, compare with the published counts, decode every picture, and name every problem.

    The exit code is 1 for problems and warnings. Remarks are about captions, and may be intended.
    """
    from timam_lab.check import check_dataset

    renamed = configs.DataConfig(columns=columns or "").renamed
    tokens: dict[str, Any] = {}
    if preset is not None:
        from timam.models.weights import load_tokenizer

        model = configs.PRESETS[preset].model
        tokens = {"tokenizer": load_tokenizer(model.language_model), "max_tokens": model.max_tokens}
    report = check_dataset(dataset, root, renamed, max_words, not as_json, **tokens)
    remarks = report["remarks"]
    warnings = [line for line in report["warnings"] if line not in remarks]
    messages = {"problem": report["problems"], "warning": warnings, "remark": remarks}
    if as_json:
        click.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        click.echo(_report_text(report))
        for kind, lines in messages.items():
            for line in lines[:MOST_SAID]:
                click.echo(f"{kind}: {line}", err=True)
            if more := len(lines[MOST_SAID:]):
                click.echo(f"{kind}: ... and {more:,} more; --json has all of them", err=True)
        counts = ", ".join(f"{len(lines)} {kind}(s)" for kind, lines in messages.items())
        click.echo(f"{dataset} in {root}: {counts}")
    sys.exit(1 if messages["problem"] or messages["warning"] else 0)


def _report_text(report: dict[str, Any]) -> str:
    """One line for each split with the published counts in brackets, then the protocol and the notes."""
    from timam_lab.check import found_beside_published

    lines = []
    labels = "classes" if report["protocol"].startswith("class") else "identities"
    for row in found_beside_published(report):
        line = f"{row['split']:5}"
        for what, name, width in (("identities", labels, 6), ("images", "pictures", 7), ("captions", "captions", 7)):
            published = row[f"{what} (published)"]
            line += f"  {name} {row[what]:{width},}" + (f" (published {published:,})" if published else "")
        if counts := report["splits"].get(row["split"]):
            per_image = ", ".join(f"{n:,} with {k}" for k, n in counts["images_by_captions"].items())
            line += f"  words a caption {counts['words_mean']:.1f} (at most {counts['words_max']})"
            line += f"  pictures by captions: {per_image}"
        lines.append(line)
    return "\n".join([*lines, f"protocol: {report['protocol']}", *(f"note: {note}" for note in report["notes"])])


_SPEC = {  # field of `PedestrianSpec`: what the option's help says
    "images_per_identity": "Mean number of pictures.",
    "height": "Pixels.",
    "width": "Pixels.",
    "seed": "Same seed, same bytes.",
    "omission": "Share of attributes that a caption leaves out.",
    "mistake": "Share of stated attributes that are wrong.",
    "misspelling": "Share of misspelled words.",
    "remark": "Share of captions with an irrelevant remark.",
    "negation": "Share of captions that also say what is not there.",
    "unseen_words": "Share of mentions in validation and test in new words.",
    "describers": "Number of people who write.",
    "habits": "Share of their choices that follow a habit.",
    "shades": "Share of shades that one calls by another colour's name.",
    "occlusion": "Share of pictures that are partly hidden.",
    "company": "Share of pictures with other people.",
    "cut_off": "Share of pictures whose edge cuts the person.",
    "smallest": "Pixels: least height before a picture is brought to size.",
    "near_duplicate": "Share of persons who resemble another.",
}


def _spec_options(command: Any) -> Any:
    """An option for each of `_SPEC`, with the field's bounds; and its default, where --difficulty leaves that alone."""
    for name, text in reversed(_SPEC.items()):
        field = vars(PedestrianSpec)["__pydantic_fields__"][name]
        bounds = {key: value for limit in field.metadata for key, value in asdict(limit).items()}
        kind: Any = click.IntRange if field.annotation is int else click.FloatRange
        within = kind(bounds["ge"], bounds.get("le", bounds.get("lt")), max_open="lt" in bounds)
        default = None if name in DIFFICULTIES["easy"] else field.default
        command = click.option(f"--{name.replace('_', '-')}", type=within, default=default, help=text)(command)
    return command


@data.command()
@click.option("--output", type=arguments.FOLDER, required=True, help="Folder to make.")
@click.option(
    "--identities", type=click.IntRange(3), default=1000, help="Persons in all, split as CUHK-PEDES (11:1:1)."
)
@click.option("--val-identities", type=click.IntRange(1), help="Persons for validation, instead of their share.")
@click.option("--test-identities", type=click.IntRange(1), help="Persons for the test, instead of their share.")
@_spec_options
@click.option("--difficulty", type=click.Choice(["easy", "standard", "hard"]), default="standard",
              help="Settings of all shares that are not given.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1), help="Processes; all cores unless given.")
def pedestrians(output: Path, identities: int, workers: int | None, **options: Any) -> None:
    """Render the pedestrians: a person-search benchmark of our own in the layout of CUHK-PEDES."""
    from timam_lab.pedestrians import render_pedestrians

    options = {name: value for name, value in options.items() if value is not None}
    asked = {split: options.pop(f"{split}_identities", None) for split in ("val", "test")}
    try:
        spec = PedestrianSpec.of_size(identities, **options)
        val, test = asked["val"] or spec.val_identities, asked["test"] or spec.test_identities
        if val + test >= identities:
            raise click.UsageError(f"--identities {identities} leaves none for training beside {val} and {test}")
        spec = replace(spec, train_identities=identities - val - test, val_identities=val, test_identities=test)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    render_pedestrians(output, spec, workers)
    click.echo(f"{output}: {identities} persons rendered")


@data.command()
@arguments.root
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="test", help="Pictures and captions.")
@options.json
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


@click.command()
@options.run_or_none
@click.option("--pretrained", metavar="NAME_OR_FOLDER", help="CLIP or SigLIP as it is, without training; needs --root.")
@click.option("--split", type=click.Choice(["val", "test"]), default="test", help="Pictures and captions to rank.")
@click.option("--dataset", type=click.Choice(list(DATASETS)), help="Layout of other data, instead of the run's own.")
@click.option("--root", type=arguments.ROOT, help="Folder of other data, instead of the run's own.")
@arguments.columns
@options.json
def evaluate(run: Run | None, pretrained: str | None, split: str, as_json: bool, **other: Any) -> None:
    """Measure a run's best model on a split of its own or of other data, both directions, in percent."""
    dataset, root, columns = (other[name] for name in ("dataset", "root", "columns"))
    if (run is None) == (pretrained is None):
        raise click.UsageError("give one of RUN and --pretrained")
    if (dataset is None) != (root is None) or (columns and dataset is None):
        raise click.UsageError("--dataset and --root go together, and --column with both")
    if run is not None:
        run.require_best()
    if dataset is not None:
        data = configs.DataConfig(dataset=dataset, root=str(root), columns=columns or "")
    elif run is not None:
        data = run.config().data
        if not Path(data.root).exists():
            there = f"--dataset {data.dataset} --root FOLDER says where the data are now"
            raise FileNotFoundError(f"{data.root}: no such folder, on which {run.folder} was trained; {there}")
    else:
        raise click.UsageError("--pretrained needs --dataset and --root")
    require_data(Path(data.root))
    read = load_dataset(data.dataset, data.root, columns=data.renamed)
    for line in (*read.notes, *(f"warning: {w}" for w in read.warnings)):
        click.echo(f"{read.name}: {line}", err=True)
    if run is not None and run.finished and dataset is None:
        then, now = run.metrics()["provenance"]["data_fingerprint"], read.fingerprint()
        if then != now:
            click.echo(f"warning: {data.root} has changed since the run: fingerprint {then} then, {now} now", err=True)
    from timam.models import TIMAM
    from timam_lab.evaluating import evaluate_model, pair_settings

    model = run.best_model() if run else TIMAM.pretrained(pair_settings(str(pretrained)), 1, [])
    results = evaluate_model(model, read, split, progress=not as_json)
    click.echo(json.dumps(results, indent=2) if as_json else results_table(results))


@click.command()
@options.run
@click.argument("repo_id", metavar="OWNER/NAME")
@click.option("--public", is_flag=True, help="Everybody may read it, if the repository is new; private otherwise.")
def push(run: Run, repo_id: str, public: bool) -> None:
    """Put a run's best model on the Hugging Face hub, with a model card made from the run.

    Log in first, with `hf auth login`. Model, tokenizer and card are sent; pictures and captions are not.
    """
    run.metrics()  # raises FileNotFoundError if the run is not finished
    from huggingface_hub.errors import HTTPError

    from timam_lab.card import of_run

    fields = of_run(run.folder) | {"repo_id": repo_id}
    try:
        click.echo(run.best_model().push_to_hub(repo_id, private=not public, model_card_kwargs=fields))
    except HTTPError as error:  # not always an OSError
        raise RuntimeError(
            f"{repo_id}: {error}\nIs there a connection, and are you logged in (`hf auth login`) as its owner?"
        ) from error


@click.group()
def studies() -> None:
    """Results of several runs."""


@studies.command("table")
@click.argument("runs", type=options.EXISTING_FOLDER)
@click.option("--csv", type=options.FILE, help="Also write it here, as fractions.")
@click.option("--figure", type=options.FILE, help="Also draw it here: mean and interval of each variant; .png, .pdf.")
def studies_table(runs: Path, csv: Path | None, figure: Path | None) -> None:
    """One row for each variant among the finished runs in the folder RUNS.

    Mean in percent with its 95 % interval over the seeds, the seeds and the commit. Runs whose settings differ in the
    seed only are one variant; it is named by the settings in which it differs from most others.
    """
    if figure is not None:
        from timam_lab.rankings import check_figure

        check_figure(figure)
    from timam_lab.studies import table, table_text

    frame = table(runs)
    click.echo(table_text(frame))
    if csv:
        frame.to_csv(csv, index=False)
    if figure is not None:
        from timam_lab.plots import variants

        variants(frame).savefig(figure, dpi=110, bbox_inches="tight")
