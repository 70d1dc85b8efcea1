"""Ranked answers as a matplotlib figure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

RIGHT, WRONG = sns.color_palette("colorblind")[2], sns.color_palette("colorblind")[3]


def rankings(
    queries: Sequence[str | Image.Image], galleries: Sequence[Sequence[Image.Image | str]],
    scores: Sequence[Sequence[float]], right: Sequence[Sequence[bool]] | None = None,
    ranks: Sequence[str] | None = None,
) -> Figure:  # fmt: skip
    """A row a query: its best answers in order, framed and marked as right or wrong, with the similarity below.

    Args:
        queries: R sentences or pictures.
        galleries, scores: R rows of pictures or sentences, and of cosine similarities; rows may be of unequal length.
        right: whether each answer is relevant; nothing is marked where it is not known.
        ranks: what stands above the columns instead of 1, 2, ...
    """
    k, sentences = max(map(len, galleries)), isinstance(galleries[0][0], str)
    figure, axes = plt.subplots(
        len(queries), k + 1, figsize=((1.55 if sentences else 0.95) * k + 2.3, 2.0 * len(queries)), squeeze=False,
        layout="constrained", gridspec_kw={"width_ratios": [1.0 if sentences else 2.0] + [1.3 if sentences else 1] * k},
    )  # fmt: skip
    for axis in axes.flat:
        axis.axis("off")
    for number, (row, query) in enumerate(zip(axes, queries, strict=True)):
        _show(row[0], query, 34, align="left")
        for rank, (axis, answer, score) in enumerate(zip(row[1:], galleries[number], scores[number], strict=False), 1):
            hit = None if right is None else right[number][rank - 1]
            colour = "grey" if hit is None else RIGHT if hit else WRONG
            axis.axis("on")
            _show(axis, answer, 20)
            axis.set(xticks=[], yticks=[], xlabel=f"{score:.2f}")
            title = str(rank) if ranks is None else ranks[rank - 1]
            axis.set_title(title if hit is None else f"{title}  {'✓' if hit else '✗'}", fontsize=9, color=colour)
            for spine in axis.spines.values():  # dashed: told apart without colour too
                spine.set(
                    color=colour, linewidth=1 if hit is None else 2.5, linestyle=(0, (3, 2)) if hit is False else "-"
                )
    return figure


def _show(axis: Axes, content: str | Image.Image, width: int, align: str = "center") -> None:
    if isinstance(content, str):
        x = 0.0 if align == "left" else 0.5
        axis.text(x, 0.5, textwrap.fill(content, width), va="center", ha=align, fontsize=8 if align == "left" else 6,
                  transform=axis.transAxes, wrap=True)  # fmt: skip
    else:
        axis.imshow(content)
