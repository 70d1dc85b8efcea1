"""Arrays in, matplotlib figures out: nothing is shown here and nothing but `save` writes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from PIL import Image

RIGHT, WRONG = sns.color_palette("colorblind")[2], sns.color_palette("colorblind")[3]
LOSS_NAMES = {
    "total": "total, as weighted",
    "matching": "matching (CMPM)",
    "identification_image": "identification, images",
    "identification_text": "identification, texts",
    "adversarial": "adversarial, encoders",
    "discriminator": "discriminator",
}


def save(figure: Figure, folder: Path | str, name: str, numbers: pd.DataFrame | None = None) -> None:
    """Writes FOLDER/NAME.png, and FOLDER/NAME.csv with the numbers that it shows."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
    if numbers is not None:
        numbers.to_csv(folder / f"{name}.csv", index=False)


def captioned_pictures(images: Sequence[Image.Image], captions: Sequence[str], columns: int = 4) -> Figure:
    """A grid of pictures with their sentences below.

    Args:
        images: of any sizes.
        captions: one text a picture; lines of their own stay.
    """
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.1 * columns, 4.4 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, caption in zip(axes.flat, images, captions, strict=False):
        axis.imshow(image)
        axis.text(0.5, -0.03, _wrap(caption, 40), transform=axis.transAxes, ha="center", va="top", fontsize=8)
    return figure


def _wrap(text: str, width: int) -> str:
    return "\n".join(textwrap.fill(line, width) for line in text.splitlines())


def histograms(columns: dict[str, pd.DataFrame]) -> Figure:
    """Side by side, for each x label a histogram of whole numbers in shares of their split.

    Args:
        columns: x label -> a frame with the columns "value" (whole numbers) and "split".
    """
    figure, axes = plt.subplots(1, len(columns), figsize=(4.2 * len(columns), 3.2), squeeze=False, layout="constrained")
    for axis, (label, frame) in zip(axes.flat, columns.items(), strict=True):
        sns.histplot(
            frame, x="value", hue="split", stat="proportion", common_norm=False, element="step", fill=False,
            discrete=True, palette="colorblind", ax=axis,
        )  # fmt: skip
        axis.set(xlabel=label, ylabel="share of the split")
    sns.despine(figure)
    return figure


def shares(frame: pd.DataFrame, x: str, y: str, label: str) -> Figure:
    """Horizontal bars of fractions, each with its value in percent.

    Args:
        frame: the columns x (fractions) and y (names).
        label: of the horizontal axis.
    """
    figure, axis = plt.subplots(figsize=(7, 0.8 + 0.34 * len(frame)), layout="constrained")
    sns.barplot(frame, x=x, y=y, color=sns.color_palette("colorblind")[0], ax=axis)
    axis.bar_label(
        cast(BarContainer, axis.containers[0]), labels=[f"{100 * v:.1f} %" for v in frame[x]], padding=3, fontsize=8
    )
    axis.set(xlabel=label, ylabel="")
    axis.margins(x=0.12)
    sns.despine(figure)
    return figure


def training_curves(history: pd.DataFrame, best_epoch: int, chance: float) -> Figure:
    """Every loss term, the validation scores and the discriminator's accuracy over the epochs.

    Args:
        history: RUN/history.csv.
        best_epoch: marked by a line; counted from 1.
        chance: rank-1 of a random order on the validation split.
    """
    with sns.color_palette("colorblind"):
        figure, (losses, scores, accuracy) = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    for (column, label), style in zip(LOSS_NAMES.items(), ["-", "-", "--", ":", "-", "--"], strict=True):
        losses.plot(history["epoch"], history[column], style, marker="o", markersize=3, label=label)
    losses.set(title="Training losses", ylabel="nats (log scale)", yscale="log")
    for direction, label in (("text_to_image", "text to image"), ("image_to_text", "image to text")):
        scores.plot(history["epoch"], history[f"val_{direction}_rank_1"], marker="o", markersize=3, label=label)
    scores.axhline(chance, color="grey", linestyle=":", label="chance, text to image")
    scores.axvline(best_epoch, color="grey", linewidth=1, label=f"chosen epoch ({best_epoch})")
    scores.set(title="Validation rank-1", ylabel="fraction of queries")
    scores.set_ylim(bottom=-0.01)
    accuracy.plot(history["epoch"], history["discriminator_accuracy"], marker="o", markersize=3, label="discriminator")
    accuracy.axhline(0.5, color="grey", linestyle=":", label="cannot tell")
    accuracy.set(title="Discriminator's accuracy while training", ylabel="fraction of embeddings", ylim=(-0.03, 1.03))
    _mark_unfreezing(history, (losses, scores, accuracy))
    for axis in (losses, scores, accuracy):
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    sns.despine(figure)
    return figure


def _mark_unfreezing(history: pd.DataFrame, axes: Sequence[Axes]) -> None:
    """A band over the epochs that trained the language model, where there were any."""
    thawed = history.loc[~history["language_model_frozen"].astype(bool), "epoch"]
    for axis in axes if len(thawed) and len(thawed) < len(history) else ():
        axis.axvspan(thawed.min() - 0.5, thawed.max(), alpha=0.08, color="black", label="language model trains")


def intervals(frame: pd.DataFrame, chances: dict[str, float]) -> Figure:
    """Rank-1 with its interval for each method, a panel a direction, chance as a dotted line.

    Args:
        frame: the columns direction, method, rank_1, low, high (fractions).
        chances: rank-1 of a random order for each direction.
    """
    directions = list(dict.fromkeys(frame["direction"]))
    figure, axes = plt.subplots(
        1, len(directions), figsize=(5.2 * len(directions), 2.2), squeeze=False, layout="constrained"
    )
    for axis, direction in zip(axes.flat, directions, strict=True):
        rows = frame[frame["direction"] == direction]
        errors = np.stack([rows["rank_1"] - rows["low"], rows["high"] - rows["rank_1"]])
        axis.errorbar(100 * rows["rank_1"], rows["method"], xerr=100 * errors, fmt="o", capsize=4, color=RIGHT)
        axis.axvline(100 * chances[direction], color="grey", linestyle=":", label="chance")
        axis.set(title=direction.replace("_", " "), xlabel="rank-1 in percent, 95 % interval", xlim=(0, None))
        axis.margins(y=0.4)
        axis.invert_yaxis()
        axis.legend(fontsize=8, frameon=False)
    sns.despine(figure)
    return figure


def rankings(
    queries: Sequence[str], galleries: Sequence[Sequence[Image.Image]], scores: Sequence[Sequence[float]],
    right: Sequence[Sequence[bool]],
) -> Figure:  # fmt: skip
    """A row a sentence: its best pictures in order, framed and marked as right or wrong, with the similarity below.

    Args:
        queries: R sentences.
        galleries, scores, right: R rows of k pictures, cosine similarities, and whether the picture is relevant.
    """
    k = len(galleries[0])
    figure, axes = plt.subplots(
        len(queries), k + 1, figsize=(0.95 * k + 2.3, 2.0 * len(queries)), squeeze=False, layout="constrained",
        gridspec_kw={"width_ratios": [2.0] + [1] * k},
    )  # fmt: skip
    for row, query, images, values, hits in zip(axes, queries, galleries, scores, right, strict=True):
        row[0].axis("off")
        row[0].text(0, 0.5, textwrap.fill(query, 34), va="center", fontsize=8, transform=row[0].transAxes)
        for rank, (axis, image, value, hit) in enumerate(zip(row[1:], images, values, hits, strict=True), 1):
            axis.imshow(image)
            axis.set(xticks=[], yticks=[], xlabel=f"{value:.2f}")
            axis.set_title(f"{rank}  {'✓' if hit else '✗'}", fontsize=9, color=RIGHT if hit else WRONG)
            for spine in axis.spines.values():  # dashed: told apart without colour too
                spine.set(color=RIGHT if hit else WRONG, linewidth=2.5, linestyle="-" if hit else (0, (3, 2)))
    return figure
