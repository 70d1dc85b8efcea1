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

from timam.drawing import RIGHT, WRONG
from timam_lab.statistics import mean_interval

LOSS_NAMES = {
    "total": "total, as weighted",
    "matching": "matching (CMPM)",
    "identification_image": "identification, images",
    "identification_text": "identification, texts",
    "adversarial": "adversarial, encoders",
    "discriminator": "discriminator",
}


def _colours(count: int) -> list[tuple[float, float, float]]:
    """As many colours, safe for the colour-blind where that many are: up to ten. Markers or lines say the same."""
    return sns.color_palette("colorblind" if count <= 10 else "husl", count)


def save(figure: Figure, folder: Path | str, name: str, numbers: pd.DataFrame | None = None) -> None:
    """Writes FOLDER/NAME.png and .pdf (vectors, for a paper), and FOLDER/NAME.csv with the numbers that it shows."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
    figure.savefig(folder / f"{name}.pdf", dpi=110, bbox_inches="tight", metadata={"CreationDate": None})
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


def seeds(frame: pd.DataFrame, metrics: dict[str, str], order: Sequence[str]) -> Figure:
    """A row a variant: every seed's result as a ring, their mean with its 95 % interval over seeds as a dot.

    Args:
        frame: a row a run, with the columns "variant" and the metrics (fractions).
        metrics: column -> title of its panel.
        order: variants from the top.
    """
    figure, axes = plt.subplots(
        1, len(metrics), figsize=(2.2 + 3.4 * len(metrics), 0.9 + 0.36 * len(order)), squeeze=False, sharey=True,
        layout="constrained",
    )  # fmt: skip
    position = {variant: i for i, variant in enumerate(order)}
    for axis, (metric, title) in zip(axes.flat, metrics.items(), strict=True):
        axis.scatter(100 * frame[metric], frame["variant"].map(position) + 0.22, s=14, facecolor="none", color="grey")
        for variant, values in frame.groupby("variant")[metric]:
            mean, low, high = (100 * v for v in mean_interval(values.to_numpy()))
            error = None if np.isnan(low) else [[mean - low], [high - mean]]
            axis.errorbar(mean, position[str(variant)], xerr=error, fmt="o", capsize=4, color=RIGHT)
        axis.set(title=title, xlabel="percent", yticks=range(len(order)), yticklabels=order)
        axis.set_xlim(left=min(0.0, axis.get_xlim()[0]))
        axis.grid(axis="y", alpha=0.25)
    axes.flat[0].set_ylim(len(order) - 0.4, -0.6)
    sns.despine(figure)
    return figure


def differences(frame: pd.DataFrame, label: str) -> Figure:
    """A row a comparison: difference of two variants, its interval over seeds and the one over query identities.

    Args:
        frame: of `timam_lab.statistics.compare` (fractions).
        label: of what is compared.
    """
    figure, axis = plt.subplots(figsize=(8, 1.4 + 0.46 * len(frame)), layout="constrained")
    rows = np.arange(len(frame))
    for kind, offset, colour, marker in (("seeds", -0.12, RIGHT, "o"), ("identities", 0.12, WRONG, "s")):
        errors = np.stack([frame["difference"] - frame[f"{kind}_low"], frame[f"{kind}_high"] - frame["difference"]])
        axis.errorbar(
            100 * frame["difference"], rows + offset, xerr=None if np.isnan(errors).any() else 100 * errors, fmt=marker,
            capsize=4, color=colour, label=f"95 % interval over {kind}",
        )  # fmt: skip
    axis.axvline(0, color="grey", linestyle=":")
    names = [f"{r.variant}\nbeside: {r.baseline}" for r in frame.itertuples()]
    axis.set(yticks=rows, xlabel=label)
    axis.set_yticks(rows, names, fontsize=8)
    axis.set_ylim(len(frame) - 0.4, -0.6)
    axis.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    sns.despine(figure)
    return figure


def against_cost(frame: pd.DataFrame, costs: dict[str, str], metrics: dict[str, str]) -> Figure:
    """Accuracy over cost, a marker a variant: mean and 95 % interval over seeds.

    Args:
        frame: a row a run, with the columns "variant", the costs and the metrics (fractions).
        costs: column -> label of its axis; a panel each.
        metrics: column -> title; a row of panels each.
    """
    figure, axes = plt.subplots(
        len(metrics), len(costs), figsize=(3.6 * len(costs) + 1.8, 2.9 * len(metrics)), squeeze=False, sharey="row",
        layout="constrained",
    )  # fmt: skip
    palette = sns.color_palette("colorblind", frame["variant"].nunique())
    for row, (metric, title) in zip(axes, metrics.items(), strict=True):
        for axis, (cost, label) in zip(row, costs.items(), strict=True):
            for (variant, part), colour, marker in zip(
                frame.groupby("variant", sort=False), palette, "osD^vP*X", strict=False
            ):
                mean, low, high = (100 * v for v in mean_interval(part[metric].to_numpy()))
                error = None if np.isnan(low) else [[mean - low], [high - mean]]
                axis.errorbar(part[cost].mean(), mean, yerr=error, fmt=marker, capsize=4, color=colour, label=variant)
            axis.set(xlabel=label)
            axis.set_xlim(0, 1.08 * frame[cost].max())
        row[0].set(ylabel=f"{title}, percent")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    sns.despine(figure)
    return figure


def trends(frame: pd.DataFrame, panels: dict[str, str]) -> Figure:
    """A panel for each thing that was varied, a line a variant: mean with a 95 % interval over seeds.

    Args:
        frame: the columns panel, level (numbers), variant, value (fractions), a row a seed.
        panels: value of "panel" -> label of its axis.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 3.6), squeeze=False, layout="constrained")
    variants = list(dict.fromkeys(frame["variant"]))
    for axis, (panel, label) in zip(axes.flat, panels.items(), strict=True):
        part = frame[frame["panel"] == panel]
        width = 0.015 * (part["level"].max() - part["level"].min())
        for i, (variant, colour, marker) in enumerate(zip(variants, sns.color_palette("colorblind"), "osD^vP*X",
                                                          strict=False)):  # fmt: skip
            levels = part[part["variant"] == variant].groupby("level")["value"]
            found = np.array([[level, *mean_interval(values.to_numpy())] for level, values in levels])
            error = None if np.isnan(found).any() else 100 * np.abs(found[:, 2:] - found[:, 1:2]).T
            shifted = found[:, 0] + width * (i - (len(variants) - 1) / 2)
            axis.errorbar(shifted, 100 * found[:, 1], yerr=error, fmt=f"-{marker}", capsize=3, color=colour,
                          label=variant, markersize=5)  # fmt: skip
        axis.set(xlabel=label, xticks=sorted(part["level"].unique()))
    axes.flat[0].set_ylabel("percent, mean and 95 % interval over seeds")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    sns.despine(figure)
    return figure


def growth(frame: pd.DataFrame, panels: dict[str, str], value: str, label: str, floor: str = "") -> Figure:
    """A panel for each thing that was varied, a line a variant, both axes logarithmic.

    Args:
        frame: the columns axis, level (numbers), variant, and `value`; with `floor` also that one, drawn dashed.
        panels: value of "axis" -> label of the x axis.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(3.4 * len(panels) + 0.6, 3.4), squeeze=False, sharey=True,
                                layout="constrained")  # fmt: skip
    variants = list(dict.fromkeys(frame["variant"]))
    for axis, (panel, name) in zip(axes.flat, panels.items(), strict=True):
        part = frame[frame["axis"] == panel]
        for variant, colour, marker in zip(variants, _colours(len(variants)), "osD^vP*X", strict=False):
            line = part[part["variant"] == variant].sort_values("level")
            axis.plot(line["level"], line[value], f"-{marker}", color=colour, markersize=5, label=variant)
            if floor:
                axis.plot(line["level"], line[floor], "--", color=colour, linewidth=1, label=f"{variant}: floor")
        axis.set(xscale="log", yscale="log", xlabel=name)
        levels = sorted(part["level"].unique())
        axis.set_xticks(levels, [f"{level:,}" for level in levels], rotation=30)
        axis.minorticks_off()
    axes.flat[0].set_ylabel(label)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    sns.despine(figure)
    return figure


def tsne(maps: dict[str, tuple[np.ndarray, np.ndarray]], image_labels: np.ndarray, text_labels: np.ndarray,
         caption_image: np.ndarray, shown: int = 8) -> Figure:  # fmt: skip
    """A column a variant: above by modality, below some identities with a line from each caption to its picture.

    Args:
        maps: title -> (N, 2) pictures and (M, 2) captions, of `timam_lab.baselines.tsne`.
        image_labels, text_labels: (N,) and (M,) identities.
        caption_image: (M,) the picture that each caption describes.
        shown: identities in the lower row, the ones with most captions.
    """
    figure, axes = plt.subplots(2, len(maps), figsize=(4.1 * len(maps), 7.8), squeeze=False, layout="constrained")
    colours = sns.color_palette("colorblind")
    chosen = np.argsort(-np.bincount(text_labels), kind="stable")[:shown]
    for (title, (images, texts)), (above, below) in zip(maps.items(), axes.T, strict=True):
        above.scatter(*images.T, s=9, marker="o", color=colours[0], alpha=0.6, linewidths=0, label="pictures")
        above.scatter(*texts.T, s=11, marker="^", color=colours[1], alpha=0.6, linewidths=0, label="captions")
        above.set_title(title)
        below.scatter(*np.concatenate([images, texts]).T, s=3, color="0.9", linewidths=0)
        for identity, colour in zip(chosen, _colours(len(chosen)), strict=True):
            own = np.flatnonzero(text_labels == identity)
            for caption in own:
                below.plot(*np.stack([texts[caption], images[caption_image[caption]]]).T, color=colour, linewidth=0.7)
            below.scatter(*images[image_labels == identity].T, s=34, marker="o", color=[colour])
            below.scatter(*texts[own].T, s=30, marker="^", color=[colour], edgecolors="black", linewidths=0.4)
        for axis in (above, below):
            axis.set(xticks=[], yticks=[])
    axes[0, 0].legend(fontsize=8, loc="upper left")
    axes[0, 0].set_ylabel("by modality")
    axes[1, 0].set_ylabel(f"{len(chosen)} identities, captions joined to their pictures")
    return figure


def gaps(frame: pd.DataFrame, measures: dict[str, str]) -> Figure:
    """A panel a measure, a row a variant: the value with its interval.

    Args:
        frame: a row a variant, with "variant" and, of each measure, NAME, NAME_low and NAME_high.
        measures: column -> title; where it ends in "; NUMBER", that value is marked.
    """
    columns = min(4, len(measures))
    rows = -(-len(measures) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.4 * columns + 1.2, (1.1 + 0.3 * len(frame)) * rows), squeeze=False, sharey=True,
        layout="constrained",
    )  # fmt: skip
    for axis in axes.flat[len(measures) :]:
        axis.axis("off")
    for axis, (measure, title) in zip(axes.flat, measures.items(), strict=False):
        low, high = frame[f"{measure}_low"], frame[f"{measure}_high"]
        errors = np.clip(np.stack([frame[measure] - low, high - frame[measure]]), 0, None)
        axis.errorbar(frame[measure], range(len(frame)), xerr=errors, fmt="o", capsize=4, color=RIGHT)
        text, _, none = title.rpartition("; ")
        if none.replace(".", "").lstrip("-").isdigit():
            axis.axvline(float(none), color="grey", linestyle=":")
        axis.set_title(textwrap.fill(text, 34), fontsize=9)
        axis.set_yticks(range(len(frame)), frame["variant"])
        axis.margins(x=0.15)
    axes.flat[0].set_ylim(len(frame) - 0.5, -0.5)
    sns.despine(figure)
    return figure


def gap_over_training(histories: dict[str, pd.DataFrame]) -> Figure:
    """What the discriminator sees and what a fresh probe finds, over the epochs; a colour a run.

    Args:
        histories: name -> RUN/history.csv.
    """
    figure, axes = plt.subplots(1, 3, figsize=(14, 3.6), layout="constrained")
    panels = (
        "told apart: discriminator (dashed), fresh probe",
        "distance of the centroids",
        "validation rank-1, percent",
    )
    for (name, history), colour in zip(histories.items(), sns.color_palette("colorblind"), strict=False):
        epochs = history["epoch"]
        axes[0].plot(epochs, history["val_probe_accuracy"], marker="o", markersize=3, color=colour, label=name)
        axes[0].plot(epochs, history["discriminator_accuracy"], "--", marker="s", markersize=3, color=colour)
        axes[1].plot(epochs, history["val_centroid_distance"], marker="o", markersize=3, color=colour, label=name)
        axes[2].plot(epochs, 100 * history["val_text_to_image_rank_1"], marker="o", markersize=3, color=colour)
    axes[0].axhline(0.5, color="grey", linestyle=":")
    axes[0].set_ylim(-0.03, 1.03)
    axes[1].set_ylim(bottom=0)
    axes[2].set_ylim(bottom=0)
    for axis, title in zip(axes, panels, strict=True):
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(histories), fontsize=8, frameon=False)
    sns.despine(figure)
    return figure


def against(frame: pd.DataFrame, columns: dict[str, str], metric: str, label: str) -> Figure:
    """A dot a run: a metric over each of some measures, coloured by variant.

    Args:
        frame: a row a run, with "variant", the columns and the metric (a fraction).
        columns: column -> label of its axis.
    """
    figure, axes = plt.subplots(1, len(columns), figsize=(4.2 * len(columns) + 2.4, 3.6), squeeze=False, sharey=True,
                                layout="constrained")  # fmt: skip
    variants = list(dict.fromkeys(frame["variant"]))
    palette = _colours(len(variants))
    for axis, (column, title) in zip(axes.flat, columns.items(), strict=True):
        for variant, colour, marker in zip(variants, palette, "osD^vP*X<>dph" * len(variants), strict=False):
            part = frame[frame["variant"] == variant]
            axis.scatter(part[column], 100 * part[metric], s=22, color=[colour], marker=marker, label=variant)
        axis.set_xlabel(title)
    axes.flat[0].set_ylabel(label)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=7, frameon=False)
    sns.despine(figure)
    return figure


def confusions(frame: pd.DataFrame) -> Figure:
    """A row an attribute: how often retrieved pictures contradict it, beside pictures at random.

    Args:
        frame: of `timam_lab.failures.PedestrianTruth.confusions`.
    """
    figure, axis = plt.subplots(figsize=(7.5, 1.2 + 0.3 * len(frame)), layout="constrained")
    rows = np.arange(len(frame))
    axis.hlines(rows, 100 * frame["retrieved"], 100 * frame["chance"], color="0.8", zorder=1)
    axis.scatter(100 * frame["chance"], rows, marker="|", s=90, color="grey", label="a picture at random")
    axis.scatter(100 * frame["retrieved"], rows, marker="o", color=WRONG, label="the picture that came first")
    labels = [f"{n} ({k})" for n, k in zip(frame["attribute"].str.replace("_", " "), frame["stated"], strict=True)]
    axis.set_yticks(rows, labels)
    axis.set(xlabel="percent that show the attribute otherwise than the sentence states it", xlim=(-2, 102))
    axis.set_ylim(len(frame) - 0.5, -0.5)
    axis.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    sns.despine(figure)
    return figure


def word_effects(rows: Sequence[tuple[str, pd.DataFrame]]) -> Figure:
    """A line of bars a sentence, one for each word.

    Args:
        rows: (title, frame of `timam_lab.failures.word_effects`).
    """
    figure, axes = plt.subplots(len(rows), 1, figsize=(11, 2.3 * len(rows)), squeeze=False, layout="constrained")
    for axis, (title, frame) in zip(axes.flat, rows, strict=True):
        axis.bar(range(len(frame)), frame["effect"], color=[RIGHT if v > 0 else WRONG for v in frame["effect"]])
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.set_xticks(range(len(frame)), frame["word"], rotation=40, ha="right", fontsize=8)
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_ylabel("effect", fontsize=8)
    sns.despine(figure)
    return figure


def heat_maps(images: Sequence[Image.Image], maps: Sequence[np.ndarray], titles: Sequence[str]) -> Figure:
    """Pictures with what each region contributes laid over them: green for the sentence, red against it.

    Args:
        images: of any sizes.
        maps: (rows, columns) each, of `timam_lab.failures.occlusion_map`.
    """
    figure, axes = plt.subplots(1, len(images), figsize=(2.1 * len(images), 4.2), squeeze=False, layout="constrained")
    bound = max(float(np.abs(m).max()) for m in maps) or 1.0
    for axis, image, values, title in zip(axes.flat, images, maps, titles, strict=True):
        axis.imshow(image.convert("L"), cmap="gray")
        extent = (-0.5, image.width - 0.5, image.height - 0.5, -0.5)
        shown = axis.imshow(values, cmap="PiYG", vmin=-bound, vmax=bound, alpha=0.55, extent=extent,
                            interpolation="bilinear")  # fmt: skip
        axis.set(xticks=[], yticks=[])
        axis.set_title(textwrap.fill(title, 24), fontsize=8)
    figure.colorbar(shown, ax=axes.ravel().tolist(), shrink=0.7, label="change of the similarity")
    return figure
