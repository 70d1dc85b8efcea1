"""The command line. Exit code 2 for a wrong call, 1 for a failed run, 130 after Ctrl-C and 143 after SIGTERM.

Importing torch takes seconds. Each command imports it only after it has checked the call.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from timam import __version__, arguments
from timam import config as configs
from timam.data import DATASETS, load_dataset
from timam.run import Run

if TYPE_CHECKING:
    from torch import Tensor

    from timam.models import TIMAM
    from timam.search import Gallery

_IMAGES = "Folder of pictures, or a Parquet file with the columns path and embedding; may be repeated."
_THRESHOLD = """Leave out pictures of at most this cosine similarity. auto: the threshold at which 10 % of the
    validation sentences about somebody who was not there got an answer. In a larger gallery it will be more."""


class _Commands(click.Group):
    """The commands below and those of `timam_lab`, which is imported when one of them is asked for."""

    lab = ("data", "push", "studies")

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
    """Train, select on validation, test once. Rates are per step; epochs count from 1; sizes are in pixels."""
    given = [f"{name}={value}" for name, value in short.items() if value is not None]  # --seed, --init, --column
    data = [f"data.dataset={dataset}", f"data.root={root.resolve()}"]
    try:
        config = configs.override(configs.PRESETS[preset], [*data, *given, *settings])
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    _require_data(root)
    from timam.training import fit

    finished = Run(output).finished
    metrics = fit(config, output, resume)
    if os.environ.get("RANK", "0") != "0":  # of several processes, one prints
        return
    if finished:
        click.echo(f"{output} is complete already; nothing to do")
    click.echo(_table(metrics))
    click.echo(f"run: {output}")


@cli.command()
@arguments.run_or_none
@click.option("--pretrained", metavar="NAME_OR_FOLDER", help="CLIP or SigLIP as it is, without training; needs --root.")
@click.option("--split", type=click.Choice(["val", "test"]), default="test", help="Pictures and captions to rank.")
@click.option("--dataset", type=click.Choice(list(DATASETS)), help="Layout of other data, instead of the run's own.")
@click.option("--root", type=arguments.ROOT, help="Folder of other data, instead of the run's own.")
@arguments.columns
@arguments.json
def evaluate(
    run: Run | None,
    pretrained: str | None,
    split: str,
    dataset: str | None,
    root: Path | None,
    columns: str | None,
    as_json: bool,
) -> None:
    """Measure a run's best model on a split of its own or of other data, both directions."""
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
    else:
        raise click.UsageError("--pretrained needs --dataset and --root")
    _require_data(Path(data.root))
    found = load_dataset(data.dataset, data.root, required_splits=(split,), columns=data.renamed)
    from timam.evaluation import evaluate_model
    from timam.models import TIMAM
    from timam.models.weights import pair_settings

    model = run.best_model() if run else TIMAM.pretrained(pair_settings(str(pretrained)), 1, [])
    results = evaluate_model(model, found, split, progress=not as_json)
    click.echo(json.dumps(results, indent=2) if as_json else _table(results))


@cli.command()
@arguments.run
@click.argument("sentence", required=False)
@click.option("--images", "folders", type=arguments.ROOT, multiple=True, required=True, help=_IMAGES)
@click.option("--sentences", type=arguments.EXISTING_FILE, help="File with a sentence a line, instead of SENTENCE.")
@click.option("--like", type=arguments.EXISTING_FILE, help="Picture to search by, instead of SENTENCE.")
@click.option("-k", type=click.IntRange(1), default=10, help="Number of pictures to list.")
@click.option("--approximate", is_flag=True, help="Use a faiss index, for 100,000 pictures or more.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", help="Encode here, or on Ray.")
@click.option("--gpus", type=click.FloatRange(0), default=0.0, help="GPUs of each Ray task.")
@click.option("--threshold", type=arguments.Threshold(), metavar="auto|X", help=_THRESHOLD)
@arguments.json
@click.option("--figure", type=arguments.FILE, help="Draw the answers, at most 200 pictures: .png, .pdf.")
def search(run: Run, folders: tuple[Path, ...], k: int, figure: Path | None, as_json: bool, **options: Any) -> None:
    """Rank the pictures of folders by a sentence: cosine similarity in [-1, 1] and path, best first.

    A folder with its subfolders is encoded once, into RUN/galleries; later only what is new or changed in it. Without
    SENTENCE, --sentences and --like, each line of the standard input is answered at once; with --json, by one line.
    """
    sentence, file, like, threshold = (options.pop(n) for n in ("sentence", "sentences", "like", "threshold"))
    queries = _queries(sentence, file, like)
    if like and threshold == "auto":
        raise click.UsageError("--threshold auto is measured with sentences; with --like give a number")
    if figure is not None:
        from timam_lab.rankings import check_figure, draw_answers

        check_figure(figure, math.inf if queries is None else len(queries) * k)
    for folder in folders:
        _require(folder)
    run.require_best()
    least = _saved_threshold(run) if threshold == "auto" else -math.inf if threshold is None else threshold
    from timam.images import read_image

    queries = [read_image(like)] if like else queries
    model = run.best_model()
    galleries = [_open(model, path, run.gallery(path), not as_json, **options) for path in folders]
    for problem in itertools.chain(*(gallery.problems for _, gallery in galleries)):
        click.echo(f"warning: {problem}", err=True)
    for part in _typed() if queries is None else [queries]:
        embeddings = model.encode_images(part) if like else model.encode_texts(part)
        found = _best(galleries, embeddings, k, least)
        answers = [{"sentence": query, "answers": best} for query, best in zip(part, found, strict=True)]
        if not as_json:
            click.echo("\n".join(_text(answer, not (sentence or like)) for answer in answers))
        elif queries is None:
            click.echo(json.dumps(answers[0]))
        else:
            click.echo(json.dumps(answers if file else found[0], indent=2))
        if figure is not None:
            draw_answers(answers, figure)


def _require(folder: Path) -> None:
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such folder")


def _require_data(root: Path) -> None:
    if not root.exists():
        hint = f"`hf download --repo-type dataset {root}` fetches it, if it is a data set of the Hugging Face hub"
        raise FileNotFoundError(f"{root}: no such folder" + (f"; {hint}" if len(root.parts) == 2 else ""))


def _queries(sentence: str | None, file: Path | None, like: Path | None) -> list[Any] | None:
    """The sentence, the lines of the file or the picture; None for the standard input. Raises UsageError."""
    if sum(given is not None for given in (sentence, file, like)) > 1:
        raise click.UsageError("give one of SENTENCE, --sentences FILE and --like PICTURE")
    if like is not None:
        return [like]
    if sentence is None and file is None:
        return None
    try:
        lines = [sentence] if file is None else file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{file}: {error}") from error
    if queries := [line.strip() for line in lines if line and line.strip()]:
        return queries
    raise click.UsageError("the sentence is empty")


def _typed() -> Iterator[list[str]]:
    """Each line of the standard input that is not blank; with a prompt on a terminal."""
    prompt = "sentence: " if sys.stdin.isatty() and sys.stdout.isatty() else ""
    with suppress(EOFError):
        while True:
            if sentence := input(prompt).removeprefix("\ufeff").strip():
                yield [sentence]
    click.echo("\n" if prompt else "", nl=False)


def _open(
    model: TIMAM, path: Path, kept: Path, progress: bool, approximate: bool, engine: str, gpus: float
) -> tuple[Path, Gallery]:
    """A folder of pictures and its gallery, or those of a Parquet file of embeddings."""
    from timam.search import Gallery, open_gallery

    encode_parts = None
    if engine == "ray":
        from timam_lab.ray_shards import encode_on_ray

        encode_parts = partial(encode_on_ray, gpus=gpus, progress=progress)
    if path.is_file():
        folder, gallery = path.parent, Gallery.from_parquet(path)
    else:
        folder, gallery = path, open_gallery(model, path, kept, progress, encode_parts)
    if approximate:
        from timam_lab.approximate import IndexedGallery

        gallery = IndexedGallery.of(gallery) if path.is_file() else IndexedGallery.open(gallery, kept)
    return folder, gallery


def _best(
    galleries: list[tuple[Path, Gallery]], queries: Tensor, k: int, threshold: float
) -> list[list[dict[str, Any]]]:
    """For each query the k best pictures of all galleries above the threshold, best first."""
    found: list[dict[str, float]] = [{} for _ in queries]  # by path: a folder may lie in another one
    for folder, gallery in galleries:
        for scores, *ranking in zip(found, *gallery.search(queries, k), strict=True):
            ranked = ((float(score), row) for score, row in zip(*ranking, strict=True) if row >= 0)
            scores |= {str(folder / gallery.paths[row]): score for score, row in ranked if score > threshold}
    best = (sorted(scores.items(), key=lambda item: -item[1])[:k] for scores in found)
    return [[{"path": path, "score": score} for path, score in ranked] for ranked in best]


def _text(answer: dict[str, Any], heading: bool) -> str:
    # format_filename: names need not be UTF-8
    lines = [f"{found['score']:.4f}  {click.format_filename(found['path'])}" for found in answer["answers"]]
    return "\n".join([answer["sentence"]] * heading + (lines or ["nothing here fits"]))


def _saved_threshold(run: Run) -> float:
    """The cosine similarity that 10 % of the best answers to unknown validation queries exceed. Raises RuntimeError."""
    try:
        return run.metrics()["open_set"]["threshold"]["0.1"]
    except KeyError:
        raise RuntimeError(
            f"{run.folder} has no threshold: its validation split has fewer than 10 identities, or an older version "
            "made the run. Give a number, --threshold 0.3 for example"
        ) from None


def _table(metrics: dict[str, Any]) -> str:
    """Both directions as a table in percent; below it the folds and the class level, where a data set has them."""
    from timam.metrics import RETRIEVAL_METRICS

    keys = list(RETRIEVAL_METRICS)

    def rows(part: dict[str, Any]) -> list[str]:
        return [
            f"{direction:14}" + "".join(f"{100 * part[direction][key]:9.2f}" for key in keys)
            + "   {queries:,.0f} queries, gallery of {gallery:,.0f}".format(**part[direction])
            for direction in ("text_to_image", "image_to_text")
        ]  # fmt: skip

    lines = [f"{metrics['dataset']}, {metrics['split']} split (percent)", " " * 14 + "".join(f"{k:>9}" for k in keys)]
    lines += rows(metrics)
    if folds := metrics.get("folds"):
        lines += [f"mean over {folds['folds']} parts of the pictures, each searched on its own", *rows(folds)]
    if level := metrics.get("class_level"):
        ap, rank = 100 * level["text_to_image_ap_50"], 100 * level["image_to_text_rank_1"]
        lines += [
            f"class level, text-to-image AP@50  {ap:6.2f}   one averaged query a class, cosine",
            f"class level, image-to-text rank-1 {rank:6.2f}   the nearest caption's class, cosine",
        ]
    if open_set := metrics.get("open_set"):
        found = open_set["text_to_image"]["detection_identification_rate"]
        lines.append(
            "half of the identities taken out: at a threshold that answers 1 / 10 % of their captions in vain, "
            f"{100 * found['0.01']:.2f} / {100 * found['0.1']:.2f} of the others find their picture first and above it"
        )
    return "\n".join(lines)


def main() -> None:
    """Entry point. An error that the user can mend is a message, not a traceback."""
    for stream in (sys.stdout, sys.stderr):  # a file's name may have characters that the terminal lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
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
