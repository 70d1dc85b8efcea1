"""Figures of notebooks and studies: arrays in, matplotlib figures out. Only `save` writes, and shows in a notebook.

Importing this module sets matplotlib's style: no background, and text in a grey that can be read on white and on black.
"""

from __future__ import annotations

import base64
import io
import itertools
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython import get_ipython
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator
from PIL import Image

from timam.objective import TERMS
from timam_lab.failures import readable
from timam_lab.rankings import RIGHT, WRONG
from timam_lab.rankings import rankings as rankings  # beside the other figures of the notebooks
from timam_lab.statistics import mean_interval

TEXT = "#777777"  # a contrast of more than 4 to 1 both with white and with JupyterLab's dark theme
plt.rcParams.update({
    "figure.facecolor": "none", "axes.facecolor": "none", "legend.framealpha": 0, "text.color": TEXT,
    "axes.labelcolor": TEXT, "axes.edgecolor": TEXT, "xtick.color": TEXT, "ytick.color": TEXT,
})  # fmt: skip
# Seaborn's palette for the colour-blind, without the two that are too pale on white.
PALETTE = [colour for i, colour in enumerate(sns.color_palette("colorblind")) if i not in (6, 8)]
MAIN = PALETTE[0]  # of what has no name of its own
KNOWN = {  # what occurs in several notebooks has the same colour in all of them
    "text_to_image": 0, "image_to_text": 1, "pictures": 0, "captions": 1, "train": 0, "val": 1, "test": 2,
    "no adversary": 6, "without adversarial loss": 6, "regularised game": 2, "with adversarial loss": 2,
    "unregularised game": 3, "paper's game, AdamW": 3, "adversarial, frozen language model": 3, "adversarial loss": 3,
    "full method": 4, "with the frozen language model": 6, "frozen language model": 6,  # no adversary either
    "matching": 0, "matching + identification": 1, "identification": 1, "with the fine-tuned language model": 7,
}  # fmt: skip


def _styles(names: Iterable[Any]) -> Iterator[tuple[Any, Any, str]]:
    """(name, colour, marker) for each distinct name: the colour of `KNOWN`, else a free one; markers always differ.

    Names beyond the palette get its colours a second time. What stands in brackets at a name's end does not count.
    """
    unique = list(dict.fromkeys(names))
    known = {name: KNOWN.get(str(name).partition(" (")[0]) for name in unique}
    fixed = {name: PALETTE[place] for name, place in known.items() if place is not None}
    colours = itertools.chain((c for c in PALETTE if c not in fixed.values()), itertools.cycle(PALETTE))
    each = [fixed[name] if name in fixed else next(colours) for name in unique]
    return zip(unique, each, itertools.cycle("osD^vP*X<>dph"), strict=False)


def colours(names: Iterable[Any]) -> dict[Any, Any]:
    """Name to colour, the same in every notebook; for figures that seaborn draws."""
    return {name: colour for name, colour, _ in _styles(names)}


def _panels(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure of rows x columns axes without top and right spines; width and height in inches, of the whole."""
    size = (width, height)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
    sns.despine(figure)
    return figure, axes


def _legend(figure: Figure, axis: Axes, where: Any, columns: int = 1) -> None:
    """One legend outside all panels, with the entries of `axis`."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc=where, ncols=columns, fontsize=9, frameon=False)


def _legend_at(axis: Axes, where: Any, height: float, columns: int = 1) -> None:
    """A legend above (height 1) or below (height < 0) one axis."""
    axis.legend(fontsize=9, frameon=False, loc=where, bbox_to_anchor=(0.5, height), ncols=columns)


def _over_epochs(axes: Iterable[Any], columns: int = 1) -> None:
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        _legend_at(axis, "upper center", -0.16, columns)


def _percent_interval(values: pd.Series) -> tuple[float, list[list[float]] | None]:
    """Mean in percent and the error bar of its 95 % interval over seeds; no bar for one seed."""
    mean, low, high = (100 * v for v in mean_interval(values.to_numpy()))
    return mean, None if np.isnan(low) else [[mean - low], [high - mean]]


def _measure(values: pd.Series, title: str) -> tuple[pd.Series, str]:
    """Values in percent, if their title says so, and the title with what stands in brackets on a line of its own."""
    lines = (textwrap.fill(line, 36) for line in title.replace(" (", "\n(").splitlines())
    return values * (100 if "percent" in title else 1), "\n".join(lines)


def _tell(figure: Figure, what: str, values: pd.Series) -> None:
    """Adds to the figure's label, with which `described` begins, the values by their names; of many both ends."""
    ordered = values.dropna().sort_values()
    few = len(ordered) < 6
    told = ", ".join(f"{name} = {value:.3g}" for name, value in (ordered if few else ordered.iloc[[0, -1]]).items())
    more = "" if few else f" (lowest and highest of {len(ordered)})"
    figure.set_label(f"{figure.get_label()}{what}: {told}{more}. ")


def save(figure: Figure, folder: Path | str, name: str, numbers: pd.DataFrame | None = None, show: bool = True) -> None:
    """Writes FOLDER/NAME.png and .pdf (vectors, black text for a paper), and FOLDER/NAME.csv with the numbers it shows.

    In a notebook the figure is closed, and with `show` it stands below the cell.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
    if numbers is not None:
        numbers.to_csv(folder / f"{name}.csv", index=False)
    if get_ipython() is not None:
        if show:
            data, metadata = thumbnail(figure)
            display(data, metadata=metadata, raw=True)
        plt.close(figure)  # else it would be shown again at the end of the cell
    for text in figure.findobj(Text):
        if text.get_color() == TEXT:
            text.set_color("black")
    figure.savefig(folder / f"{name}.pdf", dpi=110, bbox_inches="tight", metadata={"CreationDate": None})


def thumbnail(figure: Figure) -> tuple[dict[str, str], dict[str, Any]]:
    """A figure as the data and metadata of a notebook's output: a PNG of few colours, and what it shows in words.

    256 colours take a fifth of the room, so that a code host still draws a notebook with ten rows of photographs.
    """
    photos = any(axis.images for axis in figure.axes)
    buffer, small = io.BytesIO(), io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80 if photos else 160, bbox_inches="tight")
    drawn = Image.open(buffer).quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    drawn.save(small, "png", optimize=True)
    words = described(figure)
    size = {"width": drawn.width if photos else drawn.width // 2, "alt": words}
    data = {"image/png": base64.b64encode(small.getvalue()).decode(), "text/plain": words}
    return data, {"image/png": size}


def described(figure: Figure) -> str:
    """What a drawn figure shows, for those who do not see it: its label (`_tell`), then all its words but for ticks."""
    texts = [" ".join(text.get_text().split()) for text in figure.findobj(Text) if text.get_visible()]
    words = "; ".join(text for text in texts if re.search(r"[^\W\d]|[✓✗]", text) and "mathdefault" not in text)  # ticks
    return f"{figure.get_label()}{words}"


def captioned_pictures(images: Sequence[Image.Image], captions: Sequence[str], columns: int = 4) -> Figure:
    """A grid of pictures with their sentences below.

    Args:
        images: of any sizes.
        captions: one text per picture; its line breaks are kept.
    """
    rows = -(-len(images) // columns)
    figure, axes = _panels(rows, columns, 3.1 * columns, 4.4 * rows)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, caption in zip(axes.flat, images, captions, strict=False):
        axis.imshow(image)
        text = "\n".join(textwrap.fill(line, 38) for line in caption.splitlines())
        axis.text(0.5, -0.03, text, transform=axis.transAxes, ha="center", va="top", fontsize=9, parse_math=False)
    return figure


def histograms(columns: dict[str, pd.DataFrame]) -> Figure:
    """A panel per x label with histograms of whole numbers, each split's as shares of that split.

    Args:
        columns: x label -> a frame with the columns "value" (whole numbers) and "split".
    """
    figure, axes = _panels(1, len(columns), 4.2 * len(columns), 3.2)
    for axis, (label, frame) in zip(axes.flat, columns.items(), strict=True):
        sns.histplot(
            frame, x="value", hue="split", stat="proportion", common_norm=False, element="step", fill=False,
            discrete=True, palette=colours(frame["split"]), ax=axis,
        )  # fmt: skip
        axis.set(xlabel=label, ylabel="share of the split", ylim=(0, None))
        axis.get_legend().set(title="", frame_on=False)
        for text in axis.get_legend().get_texts():
            text.set_text(f"{text.get_text()}, n = {(frame['split'] == text.get_text()).sum():,}")
    return figure


def shares(frame: pd.DataFrame, x: str, y: str, label: str) -> Figure:
    """Horizontal bars of fractions, each with its value in percent.

    Args:
        frame: the columns x (fractions) and y (names).
        label: of the horizontal axis.
    """
    figure, axes = _panels(1, 1, 7, 0.8 + 0.34 * len(frame))
    axis = axes[0, 0]
    sns.barplot(frame.assign(**{x: 100 * frame[x]}), x=x, y=y, color=MAIN, ax=axis)
    axis.bar_label(cast(BarContainer, axis.containers[0]), labels=[f"{v:.1%}" for v in frame[x]], padding=3, fontsize=9)
    axis.set(xlabel=label, ylabel="")
    axis.margins(x=0.12)
    _tell(figure, label, 100 * frame.set_index(y)[x])
    return figure


def training_curves(history: pd.DataFrame, best_epoch: int | None, chance: float) -> Figure:
    """Every loss term, the validation scores and the discriminator's accuracy over the epochs.

    Args:
        history: RUN/history.csv, or what there is of it while the run goes on.
        best_epoch: marked by a line; counted from 1. None while the run goes on.
        chance: rank-1 of a random order on the validation split.
    """
    figure, axes = _panels(1, 3, 12, 4.4)
    losses, scores, accuracy = axes[0]
    epochs, style = history["epoch"], {"markersize": 4}
    labels = {"total": "weighted total", **{term.name: term.label for term in TERMS}, "discriminator": "discriminator"}
    if "discrepancy" not in history or not history["discrepancy"].any():  # a history of before, or a weight of 0
        del labels["discrepancy"]
    for column, colour, marker in _styles(labels):
        losses.plot(epochs, history[column], marker=marker, color=colour, label=labels[column], **style)
    losses.set(title="Training losses", ylabel="nats a pair (log scale)", yscale="log")
    for direction, colour, marker in _styles(("text_to_image", "image_to_text")):
        values, label = 100 * history[f"val_{direction}_rank_1"], f"{readable(direction)}, validation"
        scores.plot(epochs, values, marker=marker, color=colour, label=label, **style)
    if "train_text_to_image_rank_1" in history:  # histories of older versions have none
        known = 100 * history["train_text_to_image_rank_1"]
        scores.plot(epochs, known, linestyle="--", color="dimgrey", label="text to image, on as many training people")
    scores.axhline(100 * chance, color="grey", linestyle=":", label="chance, text to image, validation")
    if best_epoch is not None:
        scores.axvline(best_epoch, color="grey", linewidth=1, label=f"chosen epoch ({best_epoch})")
    scores.set(title="Rank-1", ylabel="percent of queries")
    rank_1 = 100 * history.set_index("epoch")["val_text_to_image_rank_1"]
    _tell(figure, "Rank-1 on validation in percent, by epoch", rank_1)
    scores.set_ylim(bottom=-1)
    accuracy.plot(epochs, 100 * history["discriminator_accuracy"], marker="o", color=MAIN, label="accuracy", **style)
    accuracy.axhline(50, color="grey", linestyle=":", label="chance: modalities look alike")
    accuracy.set(title="Discriminator in training", ylabel="percent of embeddings told right", ylim=(-3, 103))
    unfrozen = history.loc[~history["language_model_frozen"].astype(bool), "epoch"]
    for axis in axes[0]:
        if 0 < len(unfrozen) < len(history):
            named = "language model trains" if axis is losses else None
            axis.axvspan(unfrozen.min() - 0.5, unfrozen.max(), alpha=0.2, color="grey", label=named)
    _over_epochs([losses], 2)
    _over_epochs([scores, accuracy])
    return figure


def intervals(frame: pd.DataFrame, chances: dict[str, float]) -> Figure:
    """Rank-1 with its interval for each method, a panel per direction, chance as a dotted line.

    Args:
        frame: the columns direction, method, rank_1, low, high (fractions), and how many queries and gallery items.
        chances: rank-1 of a random order for each direction.
    """
    directions = list(dict.fromkeys(frame["direction"]))
    figure, axes = _panels(1, len(directions), 5.2 * len(directions), 1.2 + 0.4 * frame["method"].nunique())
    for axis, direction in zip(axes.flat, directions, strict=True):
        rows = frame[frame["direction"] == direction]
        errors = np.stack([rows["rank_1"] - rows["low"], rows["high"] - rows["rank_1"]])
        axis.errorbar(100 * rows["rank_1"], rows["method"], xerr=100 * errors, fmt="o", capsize=4, color=MAIN)
        axis.axvline(100 * chances[direction], color="grey", linestyle=":", label="chance")
        counts = f"{rows['queries'].iloc[0]:,.0f} queries, gallery of {rows['gallery'].iloc[0]:,.0f}"
        axis.set(title=f"{readable(direction)}\n{counts}", xlim=(0, None))
        axis.set_xlabel("rank-1 in percent, 95 % bootstrap interval over identities")
        _tell(figure, f"Rank-1 in percent, {readable(direction)}", 100 * rows.set_index("method")["rank_1"])
        axis.margins(y=0.4)
        axis.invert_yaxis()
        axis.legend(fontsize=9, frameon=False)
    return figure


def seeds(frame: pd.DataFrame, metrics: dict[str, str], order: Sequence[str], plain: Sequence[str] = ()) -> Figure:
    """A row per variant: every seed's result as a ring, their mean with its 95 % interval over seeds as a dot.

    Args:
        frame: a row per run, with the columns "variant" and the metrics.
        metrics: column -> title of its panel; fractions, shown in percent.
        order: variants from the top.
        plain: those of the metrics that are no fractions and are shown as they are.
    """
    figure, axes = _panels(1, len(metrics), 2.2 + 3.0 * len(metrics), 1.1 + 0.36 * len(order), sharey=True)
    counts = frame.groupby("variant").size()
    position = {variant: i for i, variant in enumerate(order)}
    for axis, (metric, title) in zip(axes.flat, metrics.items(), strict=True):
        scale = 1 if metric in plain else 100
        rows = frame["variant"].map(position)
        axis.scatter(scale * frame[metric], rows + 0.22, s=14, facecolor="none", edgecolor="grey")
        for variant, values in frame.groupby("variant")[metric]:
            mean, error = _percent_interval(values * scale / 100)
            axis.errorbar(mean, position[str(variant)], xerr=error, fmt="o", capsize=4, color=MAIN)
        axis.set(title=textwrap.fill(title, 26), xlabel="" if metric in plain else "percent")
        axis.set_yticks(range(len(order)), [f"{name} (n = {counts.get(name, 0)})" for name in order])
        left, right = min(0.0, axis.get_xlim()[0]), axis.get_xlim()[1]
        axis.set_xlim(left, right + 0.04 * (right - left))  # else the markers of close results are cut at the edge
        _tell(figure, f"Mean {title}", scale * frame.groupby("variant")[metric].mean())
        axis.grid(axis="y", alpha=0.25)
    axes.flat[0].set_ylim(len(order) - 0.4, -0.6)
    figure.supxlabel("dots: mean over n seeds with its 95 % interval; rings: single seeds", fontsize=9)
    return figure


def variants(frame: pd.DataFrame) -> Figure:
    """`timam_lab.studies.table`: a row per variant, with rank-1 in percent and its 95 % interval over seeds."""
    metrics = {"text_to_image_rank_1": "text to image, rank-1", "image_to_text_rank_1": "image to text, rank-1"}
    figure, axes = _panels(1, len(metrics), 9, 1.1 + 0.36 * len(frame), sharey=True)
    for axis, (metric, title) in zip(axes.flat, metrics.items(), strict=True):
        mean, low, high = (100 * frame[f"{metric}{end}"].to_numpy() for end in ("", "_low", "_high"))
        axis.errorbar(mean, range(len(frame)), xerr=[mean - low, high - mean], fmt="o", capsize=4, color=MAIN)
        axis.set(title=title, xlabel="percent", xlim=(0, min(100, 1.05 * np.nanmax([mean, high, mean + 1]))),
                 ylim=(len(frame) - 0.4, -0.6))  # fmt: skip
    if dotted := bool(frame["chance"].notna().all()):
        axes.flat[0].axvline(100 * frame["chance"].max(), linestyle=":", color="grey")
    counts = frame["seeds"].str.count(",") + 1
    short = [textwrap.fill(textwrap.shorten(name, 76, placeholder=" …"), 40) for name in frame["variant"]]  # two lines
    names = [f"{name} (n = {n})" for name, n in zip(short, counts, strict=True)]
    axes.flat[0].set_yticks(range(len(frame)), names)
    note = "mean over n seeds with its 95 % interval (none for one seed)" + "; dotted: chance" * dotted
    figure.supxlabel(note, fontsize=9)
    return figure


def differences(frame: pd.DataFrame, label: str) -> Figure:
    """A row per comparison: difference of two variants, its intervals over seeds and over query identities.

    Args:
        frame: of `timam_lab.statistics.compare` (fractions).
        label: of the horizontal axis.
    """
    figure, axes = _panels(1, 1, 8, 1.4 + 0.46 * len(frame))
    axis, rows = axes[0, 0], np.arange(len(frame))
    for kind, offset, colour, marker in (("seeds", -0.12, PALETTE[0], "o"), ("identities", 0.12, PALETTE[1], "s")):
        errors = np.stack([frame["difference"] - frame[f"{kind}_low"], frame[f"{kind}_high"] - frame["difference"]])
        axis.errorbar(
            100 * frame["difference"], rows + offset, xerr=None if np.isnan(errors).any() else 100 * errors, fmt=marker,
            capsize=4, color=colour, label=f"95 % interval over {kind}",
        )  # fmt: skip
    axis.axvline(0, color="grey", linestyle=":")
    axis.set(xlabel=f"{label}\n(right of 0 the first named is better)")
    _tell(figure, label, 100 * frame.set_index(frame["variant"] + " against " + frame["baseline"])["difference"])
    axis.set_yticks(rows, [f"{r.variant}\ncompared with: {r.baseline}" for r in frame.itertuples()], fontsize=9)
    axis.set_ylim(len(frame) - 0.4, -0.6)
    _legend_at(axis, "lower center", 1.0, 2)
    return figure


def tradeoffs(frame: pd.DataFrame, across: dict[str, str], metrics: dict[str, str], note: str = "") -> Figure:
    """Metrics over costs or other measures, a marker per variant: means and 95 % intervals over seeds, both ways.

    Args:
        frame: a row per run, with the columns "variant", the measures and the metrics (fractions).
        across: column -> label of its axis; a panel each. "percent" in it makes percent of a fraction.
        metrics: column -> title; a row of panels each.
        note: what is better.
    """
    width, height = 3.1 * len(across) + 1.8, 2.9 * len(metrics)
    figure, axes = _panels(len(metrics), len(across), width, height, sharey="row", sharex="col")
    for row, (metric, title) in zip(axes, metrics.items(), strict=True):
        for axis, (column, label) in zip(row, across.items(), strict=True):
            for variant, colour, marker in _styles(frame["variant"]):
                part = frame[frame["variant"] == variant]
                values, words = _measure(part[column], label)
                (x, xerr), (y, yerr) = _percent_interval(values / 100), _percent_interval(part[metric])
                axis.errorbar(x, y, yerr, xerr, fmt=marker, fillstyle="none", capsize=3, color=colour, label=variant)
            if 2 * frame[column].min() < frame[column].max():
                axis.set_xlim(left=0)
            axis.set_xlabel(words)
            axis.label_outer()
        row[0].set(ylabel=textwrap.fill(f"{title}, percent", 30))
        _tell(figure, f"Mean {title}, percent", 100 * frame.groupby("variant")[metric].mean())
    counts = sorted(set(frame.groupby("variant").size()))
    figure.supxlabel(f"mean and 95 % interval over seeds, n = {' or '.join(map(str, counts))}{note}", fontsize=9)
    _legend(figure, axes[0, 0], "outside right upper")
    return figure


def trends(frame: pd.DataFrame, panels: dict[str, str], unit: str = "percent") -> Figure:
    """A panel per varied factor, a line per variant: mean with a 95 % interval over seeds.

    Args:
        frame: the columns panel, level (numbers), variant, value (fractions), a row per seed.
        panels: value of "panel" -> label of its axis. Panels that differ in their variants have a legend each.
        unit: of the values times 100; "points" are differences, whose 0 is marked.
    """
    styles = list(_styles(frame["variant"]))
    same = bool((frame.groupby("panel")["variant"].nunique() == len(styles)).all())
    figure, axes = _panels(1, len(panels), 5 * len(panels), 4 if same else 5, sharey=True)
    for axis, (panel, label) in zip(axes.flat, panels.items(), strict=True):
        part = frame[frame["panel"] == panel]
        shown = [style for style in styles if style[0] in set(part["variant"])]
        middle, width = (len(shown) - 1) / 2, 0.015 * (part["level"].max() - part["level"].min())
        for i, (variant, colour, marker) in enumerate(shown):
            levels = part[part["variant"] == variant].groupby("level")["value"]
            points = np.array([[level, *mean_interval(values.to_numpy())] for level, values in levels])
            error = None if np.isnan(points).any() else 100 * np.abs(points[:, 2:] - points[:, 1:2]).T
            axis.errorbar(points[:, 0] + width * (i - middle), 100 * points[:, 1], yerr=error, fmt=f"-{marker}",
                          capsize=3, color=colour, label=variant, markersize=5)  # fmt: skip
        axis.set_xlabel(label)
        if len(ticks := sorted(part["level"].unique())) < 8:
            axis.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
        if not same:
            _legend_at(axis, "upper center", -0.2)
        if "points" in unit:  # differences
            axis.axhline(0, color="grey", linestyle=":")
        last = part[part["level"] == part["level"].max()]
        _tell(figure, f"{unit} at {label} {part['level'].max():,g}", 100 * last.groupby("variant")["value"].mean())
    axes.flat[0].set_ylabel(f"{unit}\nmean and 95 % interval over seeds, n = {frame['seed'].nunique()}")
    if same:
        _legend(figure, axes.flat[0], "outside upper center", 2)
    return figure


def growth(frame: pd.DataFrame, panels: dict[str, str], value: str, label: str, floor: str = "") -> Figure:
    """A panel per varied size, a line per variant, both axes logarithmic. A floor that all variants share is one line.

    Args:
        frame: the columns axis, level (numbers), variant, and `value`; with `floor` also that one, drawn dashed.
        panels: value of "axis" -> label of the x axis.
    """
    figure, axes = _panels(1, len(panels), 3.4 * len(panels) + 0.6, 3.6, sharey=True)
    for axis, (panel, name) in zip(axes.flat, panels.items(), strict=True):
        part = frame[frame["axis"] == panel]
        shared = bool(floor) and part["variant"].nunique() > 1 and part.groupby("level")[floor].nunique().max() == 1
        for i, (variant, colour, marker) in enumerate(_styles(frame["variant"])):
            line = part[part["variant"] == variant].sort_values("level")
            size = max(3, 11 - 3 * i)  # the first drawn are larger: lines that coincide stay visible
            axis.plot(line["level"], line[value], f"-{marker}", color=colour, markersize=size, fillstyle="none",
                      linewidth=size / 3, label=variant)  # fmt: skip
            if floor and not shared:
                axis.plot(line["level"], line[floor], "--", color=colour, linewidth=1, label=f"{variant}: floor")
        if shared:
            axis.plot(line["level"], line[floor], "--", color="grey", linewidth=1, label="floor")
        largest = part[part["level"] == part["level"].max()]
        _tell(figure, f"{label} at {name} {part['level'].max():,}", largest.set_index("variant")[value])
        axis.set(xscale="log", yscale="log", xlabel=name)
        levels = sorted(part["level"].unique())
        axis.set_xticks(levels, [f"{level:,}" for level in levels], rotation=30 if len(levels) > 4 else 0)
        axis.xaxis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.6g}"))
        axis.yaxis.minorticks_off()
    axes.flat[0].set_ylabel(f"{label}\n(both axes logarithmic)")
    _legend(figure, axes.flat[0], "outside upper center", 3)
    return figure


def tsne(
    maps: dict[str, tuple[np.ndarray, np.ndarray]],
    image_labels: np.ndarray,
    text_labels: np.ndarray,
    caption_image: np.ndarray,
    shown: int = 8,
) -> Figure:
    """A column per variant: above by modality, below some identities with a line from each caption to its picture.

    Args:
        maps: title -> (N, 2) pictures and (M, 2) captions, of `timam_lab.baselines.tsne`.
        image_labels, text_labels: (N,) and (M,) identities.
        caption_image: (M,) the picture that each caption describes.
        shown: identities in the lower row, those with most captions.
    """
    figure, axes = _panels(2, len(maps), 4.1 * len(maps), 7.8)
    chosen = np.argsort(-np.bincount(text_labels), kind="stable")[:shown]
    for (title, (images, texts)), (above, below) in zip(maps.items(), axes.T, strict=True):
        above.scatter(*images.T, s=9, marker="o", color=PALETTE[0], alpha=0.6, linewidths=0, label="pictures")
        above.scatter(*texts.T, s=11, marker="^", color=PALETTE[1], alpha=0.6, linewidths=0, label="captions")
        above.set_title(f"{title}\n({len(images)} pictures, {len(texts)} captions)", fontsize=10)
        below.scatter(*np.concatenate([images, texts]).T, s=3, color="grey", alpha=0.25, linewidths=0)
        for identity, colour, _ in _styles(chosen.tolist()):
            own = np.flatnonzero(text_labels == identity)
            for caption in own:
                below.plot(*np.stack([texts[caption], images[caption_image[caption]]]).T, color=colour, linewidth=0.7)
            below.scatter(*images[image_labels == identity].T, s=34, marker="o", color=[colour])
            below.scatter(*texts[own].T, s=30, marker="^", color=[colour], edgecolors=TEXT, linewidths=0.4)
        for axis in (above, below):
            axis.set(xticks=[], yticks=[])
    _legend(figure, axes[0, 0], "outside upper center", 2)
    axes[0, 0].set_ylabel("by modality")
    axes[1, 0].set_ylabel(f"{len(chosen)} identities (colours), captions joined to their pictures")
    return figure


def gaps(frame: pd.DataFrame, measures: dict[str, str]) -> Figure:
    """A panel per measure, a row per variant: the value with its interval.

    Args:
        frame: a row per variant, with "variant" and, of each measure, NAME, NAME_low and NAME_high.
        measures: column -> title; "percent" in it makes percent of a fraction, "(NUMBER: no gap)" marks that value.
    """
    columns = min(3, len(measures))
    rows = -(-len(measures) // columns)
    figure, axes = _panels(rows, columns, 3.4 * columns + 1.2, (1.1 + 0.3 * len(frame)) * rows, sharey=True)
    for axis in axes.flat[len(measures) :]:
        axis.axis("off")
    for axis, (measure, title) in zip(axes.flat, measures.items(), strict=False):
        low, value, high = (_measure(frame[f"{measure}{end}"], title)[0] for end in ("_low", "", "_high"))
        axis.errorbar((low + high) / 2, range(len(frame)), xerr=(high - low) / 2, fmt="none", capsize=4, color=MAIN)
        axis.plot(value, range(len(frame)), "o", color=MAIN)
        _tell(figure, title, value.set_axis(frame["variant"]))
        if none := re.search(r"\((\d+): no gap\)", title):
            axis.axvline(float(none[1]), color="grey", linestyle=":")
        axis.set_title(_measure(value, title)[1], fontsize=10)
        axis.set_yticks(range(len(frame)), frame["variant"])
        axis.margins(x=0.15)
    axes.flat[0].set_ylim(len(frame) - 0.5, -0.5)
    note = "bars: 95 % bootstrap interval over identities (few of them overstate the distance); dotted: no gap"
    figure.supxlabel(note, fontsize=9)
    return figure


def gap_over_training(histories: dict[str, pd.DataFrame]) -> Figure:
    """Two accuracies at telling the modalities apart, their distance and rank-1 over the epochs; a colour per run.

    Args:
        histories: name -> RUN/history.csv.
    """
    figure, axes = _panels(1, 3, 12, 4.6)
    told, distance, score = axes[0]
    for name, colour, marker in _styles(histories):
        history, style = histories[name], {"markersize": 4, "color": colour, "marker": marker}
        epochs = history["epoch"]
        told.plot(epochs, 100 * history["val_probe_accuracy"], label=f"{name}: fresh probe, validation", **style)
        told.plot(epochs, 100 * history["discriminator_accuracy"], linestyle="--", fillstyle="none",
                  label=f"{name}: discriminator, training", **style)  # fmt: skip
        distance.plot(epochs, history["val_centroid_distance"], label=name, **style)
        score.plot(epochs, 100 * history["val_text_to_image_rank_1"], label=name, **style)
        _tell(figure, f"{name}, centroid distance by epoch", history.set_index("epoch")["val_centroid_distance"])
    told.axhline(50, color="grey", linestyle=":", label="chance: modalities look alike")
    told.set(title="Telling the modalities apart", ylabel="percent right", ylim=(-3, 103))
    distance.set(title="Distance of the centroids", ylabel="of unit-length embeddings, 0 to 2", ylim=(0, None))
    score.set(title="Text to image, validation", ylabel="rank-1, percent", ylim=(0, None))
    _over_epochs(axes[0])
    return figure


def against(frame: pd.DataFrame, columns: dict[str, str], metric: str, label: str) -> Figure:
    """A dot per run: a metric over each of some measures, coloured by variant.

    Args:
        frame: a row per run, with "variant", the columns and the metric (a fraction).
        columns: column -> label of its axis; "percent" in it makes percent of a fraction.
    """
    figure, axes = _panels(1, len(columns), 3.2 * len(columns) + 2.4, 3.6, sharey=True)
    for axis, (column, title) in zip(axes.flat, columns.items(), strict=True):
        for variant, colour, marker in _styles(frame["variant"]):
            part = frame[frame["variant"] == variant]
            values, words = _measure(part[column], title)
            axis.scatter(values, 100 * part[metric], s=22, color=[colour], marker=marker, label=variant)
        axis.set_xlabel(words)
    axes.flat[0].set_ylabel(label)
    figure.supxlabel(f"a dot is a run, n = {len(frame)}", fontsize=9)
    _legend(figure, axes.flat[0], "outside right upper")
    return figure


def open_set(curve: pd.DataFrame, title: str, chosen: tuple[float, float] | None = None) -> Figure:
    """Known sentences that are answered rightly over false alarms; `chosen` is the point of validation's threshold.

    Args:
        curve: two columns of percents, whose names are the axes' labels.
    """
    figure, axes = _panels(1, 1, 5.4, 4)
    axis, (x, y) = axes[0, 0], curve
    axis.plot(curve[x], curve[y], color=MAIN)
    if chosen is not None:
        label = f"threshold chosen for 10 % on validation: {chosen[0]:.0f} % here"
        axis.plot(*chosen, "o", color=PALETTE[1], label=label)
        axis.legend(fontsize=9, frameon=False, loc="lower right")
    axis.set(xlabel=x, ylabel=y, ylim=(0, None))
    axis.set_title(title, fontsize=10)
    _tell(figure, f"{y}, by {x}", curve.set_index(x)[y])
    return figure


def confusions(frame: pd.DataFrame) -> Figure:
    """A row per attribute: how often retrieved pictures contradict the sentence in it, compared with random pictures.

    Args:
        frame: of `timam_lab.failures.PedestrianTruth.confusions`.
    """
    figure, axes = _panels(1, 1, 8, 1.2 + 0.3 * len(frame))
    axis, rows = axes[0, 0], np.arange(len(frame))
    axis.hlines(rows, 100 * frame["low"], 100 * frame["high"], color=WRONG, label="95 % interval over people", zorder=1)
    axis.scatter(100 * frame["chance"], rows, marker="|", s=90, color="grey", label="a random picture")
    axis.scatter(100 * frame["retrieved"], rows, marker="o", color=WRONG, label="the picture that came first")
    _tell(figure, "Ratio to a random picture", frame.set_index(frame["attribute"].map(readable))["ratio"])
    named = zip(frame["attribute"], frame["stated"], frame["ratio"], strict=True)
    axis.set_yticks(rows, [f"{readable(name)} (n = {count}, ratio {ratio:.2f})" for name, count, ratio in named])
    axis.set(xlabel="percent of pictures that contradict what the sentence states", xlim=(-2, 102))
    axis.set_ylim(len(frame) - 0.5, -0.5)
    _legend_at(axis, "lower center", 1.0, 3)
    return figure


def word_effects(rows: Sequence[tuple[str, pd.DataFrame]]) -> Figure:
    """A row of bars per sentence, one bar per word.

    Args:
        rows: (title, frame of `timam_lab.explanations.word_effects`).
    """
    figure, axes = _panels(len(rows), 1, 11, 2.4 * len(rows), sharey=True)
    for axis, (title, frame) in zip(axes.flat, rows, strict=True):
        axis.bar(range(len(frame)), frame["effect"], color=[RIGHT if v > 0 else WRONG for v in frame["effect"]])
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.set_xticks(range(len(frame)), frame["word"], rotation=40, ha="right", fontsize=9, parse_math=False)
        axis.set_title(title, fontsize=10, loc="left", parse_math=False)
        axis.set_ylabel("cosine similarity\nlost without it", fontsize=9)
    return figure


def heat_maps(
    images: Sequence[Image.Image], maps: Sequence[np.ndarray], titles: Sequence[str], sentences: Sequence[str]
) -> Figure:
    """Pictures with each region's contribution laid over them: green for the sentence, pink against it.

    Args:
        images: of any sizes.
        maps: (rows, columns) each, of `timam_lab.explanations.occlusion_map`.
        titles: one per picture, above it.
        sentences: one per picture, below it.
    """
    figure, axes = _panels(1, len(images), 2.6 * len(images) + 0.8, 5.4)
    bound = max(float(np.abs(m).max()) for m in maps) or 1.0
    for axis, image, values, title, sentence in zip(axes.flat, images, maps, titles, sentences, strict=True):
        axis.imshow(image.convert("L"), cmap="gray")
        extent = (-0.5, image.width - 0.5, image.height - 0.5, -0.5)
        shown = axis.imshow(values, cmap="PiYG", vmin=-bound, vmax=bound, alpha=0.55, extent=extent,
                            interpolation="bilinear")  # fmt: skip
        axis.set(xticks=[], yticks=[])
        axis.set_title(textwrap.fill(title, 26), fontsize=10, parse_math=False)
        axis.set_xlabel(textwrap.fill(sentence, 30), fontsize=9, parse_math=False)
    bar = figure.colorbar(shown, ax=axes.ravel().tolist(), shrink=0.7)
    bar.set_label("cosine similarity lost without the region")
    bar.ax.set_facecolor("white")  # the colours are translucent, and a page may be dark
    return figure
