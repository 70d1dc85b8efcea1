"""`timam search`: ranks the pictures of folders by sentences or by a picture."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from timam import arguments
from timam.run import Run
from timam_lab import options

if TYPE_CHECKING:
    from torch import Tensor

    from timam.models import TIMAM
    from timam.search import Gallery

_IMAGES = "Folder of pictures, or a Parquet file with the columns path and embedding; may be repeated."
_THRESHOLD = """Leave out pictures of at most this cosine similarity. auto: the threshold at which 10 % of the
    validation sentences about absent people still got an answer. A larger gallery gives more such false answers.
    Runs with fewer than 10 people in validation or test have no such threshold."""


class _Threshold(click.ParamType):
    """A cosine similarity, or "auto"."""

    name = "auto|X"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        with suppress(ValueError):
            if value == "auto" or -1 <= float(value) <= 1:
                return value if value == "auto" else float(value)
        self.fail(f"{value}: expected auto or a cosine similarity, in [-1, 1]", param, ctx)


@click.command()
@options.run
@click.argument("sentence", required=False)
@click.option("--images", "folders", type=arguments.ROOT, multiple=True, required=True, help=_IMAGES)
@click.option("--sentences", type=options.EXISTING_FILE, help="File with a sentence a line, instead of SENTENCE.")
@click.option("--like", type=options.EXISTING_FILE, help="Picture to search by, instead of SENTENCE.")
@click.option("-k", type=click.IntRange(1), default=10, help="Number of pictures to list.")
@click.option("--approximate", is_flag=True, help="Use a faiss index, for 100,000 pictures or more.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", help="Encode here, or on Ray.")
@click.option("--gpus", type=click.FloatRange(0), default=0.0, help="GPUs of each Ray task.")
@click.option("--threshold", type=_Threshold(), metavar="auto|X", help=_THRESHOLD)
@click.option("--centered", is_flag=True, help="Subtract each modality's mean on validation before comparing.")
@options.json
@click.option("--figure", type=options.FILE, help="Draw the answers, at most 200 pictures: .png, .pdf.")
def search(run: Run, folders: tuple[Path, ...], k: int, figure: Path | None, as_json: bool, **more: Any) -> None:
    """Rank the pictures of folders by a sentence: cosine similarity in [-1, 1] and path, best first.

    A folder with its subfolders is encoded once, into RUN/galleries; later only what is new or changed in it. Without
    SENTENCE, --sentences and --like, each line of the standard input is answered at once; with --json, by one line.
    """
    sentence, file, like, threshold = (more.pop(n) for n in ("sentence", "sentences", "like", "threshold"))
    queries, center = _queries(sentence, file, like), more.pop("centered")
    if center and (threshold == "auto" or more["approximate"]):
        raise click.UsageError("--threshold auto and --approximate are for similarities that are not --centered")
    if like and threshold == "auto":
        raise click.UsageError("--threshold auto is measured with sentences; with --like give a number")
    if figure is not None:
        from timam_lab.rankings import check_figure, draw_answers

        check_figure(figure, math.inf if queries is None else len(queries) * k)
    for folder in folders:
        if not folder.exists():
            raise FileNotFoundError(f"{folder}: no such folder")
    run.require_best()
    least = _saved_threshold(run) if threshold == "auto" else -math.inf if threshold is None else threshold
    from timam.images import read_image
    from timam.models.joint import IMAGE, TEXT

    queries = [read_image(like)] if like else queries
    model = run.best_model()
    galleries = [_open(model, path, run.gallery(path), not as_json, **more) for path in folders]
    if center:
        from timam_lab.centering import centered, centered_gallery

        galleries = [(folder, centered_gallery(model, gallery)) for folder, gallery in galleries]
    for problem in itertools.chain(*(gallery.problems for _, gallery in galleries)):
        click.echo(f"warning: {problem}", err=True)
    for part in _typed() if queries is None else [queries]:
        try:
            embeddings = model.encode_images(part) if like else model.encode_texts(part)
        except ValueError as error:
            if queries is not None:
                raise
            click.echo(f"error: {error}", err=True)  # the next line may be a sentence
            continue
        embeddings = centered(model, embeddings, IMAGE if like else TEXT) if center else embeddings
        rankings = _best(galleries, embeddings, k, least)
        answers = [{"sentence": query, "answers": best} for query, best in zip(part, rankings, strict=True)]
        if not as_json:
            click.echo("\n".join(_text(answer, not (sentence or like)) for answer in answers))
        elif queries is None:
            click.echo(json.dumps(answers[0], ensure_ascii=False))
        else:
            click.echo(json.dumps(answers if file else rankings[0], indent=2, ensure_ascii=False))
        if figure is not None:
            draw_answers(answers, figure)


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
    from timam_lab import galleries
    from timam_lab.approximate import IndexedGallery

    if path.is_file():
        if path.suffix != ".parquet":
            raise ValueError(f"{path}: expected a folder of pictures, or a .parquet of embeddings")
        read = galleries.parquet_gallery(path)
        return path.parent, IndexedGallery.of(read) if approximate else read
    encode_parts = partial(galleries.encode_on_ray, gpus=gpus) if engine == "ray" else None
    gallery = galleries.open_gallery(model, path, kept, progress, encode_parts)
    return path, IndexedGallery.open(gallery, kept) if approximate else gallery


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
    lines = [f"{best['score']:.4f}  {click.format_filename(best['path'])}" for best in answer["answers"]]
    return "\n".join([answer["sentence"]] * heading + (lines or ["nothing here fits"]))


def _saved_threshold(run: Run) -> float:
    """The cosine similarity that 10 % of the best answers to unknown validation queries exceed. Raises RuntimeError."""
    try:
        return run.metrics()["open_set"]["threshold"]["0.1"]
    except KeyError:
        raise RuntimeError(
            f"{run.folder} has no threshold: its validation or test split has fewer than 10 identities, or an older "
            "version made the run. Give a number, --threshold 0.3 for example"
        ) from None
