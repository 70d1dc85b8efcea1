"""Ranked answers as a matplotlib figure: of the notebooks, and of `timam search --figure`."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from timam.images import read_image

RIGHT, WRONG = sns.color_palette("colorblind")[2], sns.color_palette("colorblind")[3]
MOST_DRAWN = 200  # pictures in a figure of the command line; they take some ten seconds
Item = str | Image.Image | Path  # a sentence, or a picture or its file


def rankings(
    queries: Sequence[Item],
    galleries: Sequence[Sequence[Item]],
    scores: Sequence[Sequence[float | str]],
    right: Sequence[Sequence[bool]] | None = None,
    ranks: Sequence[str] | None = None,
    references: Sequence[Item] | None = None,
    titles: Sequence[str] | None = None,
) -> Figure:
    """One row per query: its best answers in order, marked as right or wrong, with the similarity below.

    Args:
        queries: R sentences or pictures.
        galleries: R rows of pictures or sentences; rows may differ in length, and all but one may be empty.
        scores: R rows of what stands below the answers: a cosine similarity, or a text that has more to say. A row that
            is longer by one also has a text for the reference.
        right: whether each answer is relevant; without it nothing is marked.
        ranks: column titles instead of 1, 2, ...
        references: R right answers, shown in a last column.
        titles: R titles above the queries.
    """
    k, sentences = max(map(len, galleries)), isinstance(next(answer for row in galleries for answer in row), str)
    query_width, width = (1.2, 2.0) if sentences else (2.6, 1.25)
    widths = [query_width, *[width] * (k + (references is not None))]
    layout = ConstrainedLayoutEngine(h_pad=0.12)  # inches: else a tall picture's score stands in the next row's title
    figure, axes = plt.subplots(
        len(queries), len(widths), figsize=(sum(widths), 2.6 * len(queries)), squeeze=False, layout=layout,
        gridspec_kw={"width_ratios": widths},
    )  # fmt: skip
    for axis in axes.flat:
        axis.axis("off")
    for number, (row, query) in enumerate(zip(axes, queries, strict=True)):
        _show(row[0], query, 30, 11, "left", "top" if titles is not None else "center")  # below its title
        if titles is not None:
            row[0].set_title(
                textwrap.fill(titles[number], 24), fontsize=12, fontweight="bold", loc="left", parse_math=False
            )
        if not galleries[number]:
            _show(row[1], "nothing here fits", 22, 9)
        for rank, (axis, answer, score) in enumerate(zip(row[1:], galleries[number], scores[number], strict=False)):
            title = str(rank + 1) if ranks is None else ranks[rank]
            _answer(axis, answer, title, None if right is None else right[number][rank])
            _below(axis, score)
        if references is not None:
            _answer(row[-1], references[number], f"right {'sentence' if sentences else 'picture'}", None)
            for score in scores[number][len(galleries[number]) :]:
                _below(row[-1], score)
    return figure


def _below(axis: Axes, score: float | str) -> None:
    text = score if isinstance(score, str) else f"{round(score, 2) + 0.0:.2f}"  # + 0.0: no -0.00
    axis.set_xlabel(text, fontsize=9.5, parse_math=False)


def _answer(axis: Axes, answer: Item, title: str, hit: bool | None) -> None:
    """Draws one answer with a frame; a wrong one's frame is dashed, so that colour is not the only sign."""
    colour = "grey" if hit is None else RIGHT if hit else WRONG
    axis.axis("on")
    _show(axis, answer, 22, 9)
    axis.set(xticks=[], yticks=[])
    axis.set_title(title if hit is None else f"{title}  {'✓' if hit else '✗'}", fontsize=11, color=colour)
    style = "-" if hit is None or hit else (0, (3, 2))
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=1 if hit is None else 2.5, linestyle=style)


def _show(axis: Axes, content: Item, width: int, size: int, align: str = "center", vertical: str = "center") -> None:
    if isinstance(content, str):
        # What is longer than a row is cut.
        lines = [textwrap.fill(line, width, max_lines=12, placeholder=" …") for line in content.splitlines()]
        text = "\n".join(lines)
        x, y = 0.0 if align == "left" else 0.5, 1.0 if vertical == "top" else 0.5
        axis.text(x, y, text, va=vertical, ha=align, fontsize=size, transform=axis.transAxes, parse_math=False)
    else:
        picture = read_image(content) if isinstance(content, Path) else content.copy()
        picture.thumbnail((400, 400))  # many whole photographs would fill the memory
        axis.imshow(picture)


def check_figure(figure: Path, answers: float = 0) -> None:
    """Raises UsageError or FileNotFoundError for a figure that cannot be drawn, before anything else is done.

    `answers`: the most pictures that it may show; infinity for sentences from the standard input.
    """
    suffixes = FigureCanvasBase.get_supported_filetypes()
    if figure.suffix[1:].lower() not in suffixes:
        raise click.UsageError(f"--figure {figure}: expected a name that ends in .{', .'.join(suffixes)}")
    if answers == math.inf:
        raise click.UsageError("--figure needs the sentences beforehand: give SENTENCE, --sentences or --like")
    if answers > MOST_DRAWN:
        raise click.UsageError(f"--figure draws at most {MOST_DRAWN} pictures: give fewer sentences or a smaller -k")
    if not figure.parent.exists():
        raise FileNotFoundError(f"{figure.parent}: no such folder")


def draw_answers(answers: list[dict[str, Any]], figure: Path) -> None:
    """Writes {"sentence": a sentence or a picture, "answers": [{"path", "score"}, ...]}, if any has an answer."""
    if any(each["answers"] for each in answers):
        pictures = [[Path(answer["path"]) for answer in each["answers"]] for each in answers]
        scores = [[answer["score"] for answer in each["answers"]] for each in answers]
        drawn = rankings([each["sentence"] for each in answers], pictures, scores)
        drawn.savefig(figure, dpi=110, bbox_inches="tight")
    else:
        click.echo(f"{figure}: not drawn, as nothing fits", err=True)
