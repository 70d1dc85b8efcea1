"""What the notebooks share: their folders and configs, the choice of variants, and comparisons put into sentences."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import HTML
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from PIL import Image
from torch import Tensor

from timam import config as configs
from timam.config import Config, LossConfig
from timam.data import Split
from timam.evaluation import Embeddings
from timam.images import read_image
from timam.plots import rankings
from timam_lab.oracle import oracle
from timam_lab.statistics import mean_intervals, plus_minus

REPOSITORY = Path(__file__).resolve().parents[1]
FROZEN = "unfreeze_epoch=none unfreeze_patience=none"  # the language model is never trained
# The adversarial game as the paper's text leaves it. Notebook 10 compares it with the regularised game of `quick`.
UNREGULARISED = (
    "adversarial_input=raw gradient_penalty=0 label_smoothing=0.1 "
    "discriminator_steps=1 discriminator_lr=2e-4 discriminator_momentum=0.9"
)
T = TypeVar("T")
Number = TypeVar("Number", int, float)


def folder(given: str, default: str) -> Path:
    """The folder that a parameter names, relative to the working directory; if it is empty, `default` in the clone.

    Without a clone around the package (installed from a wheel), the default is below the working directory.
    """
    clone = REPOSITORY if (REPOSITORY / "notebooks").is_dir() else Path.cwd()
    return Path(given) if given else Path(os.path.relpath(clone / default))


def folders(root: str, runs: str, output: str, study: str = "") -> tuple[Path, Path, Path]:
    """Folders of the data, of the run directories and of the figures, and prints where the last two are.

    The defaults in the clone are data/pedestrians, runs/STUDY and reports/local.
    """
    found = folder(root, "data/pedestrians"), folder(runs, f"runs/{study}"), folder(output, "reports/local") / "figures"
    print(f"Runs: {found[1]}. Figures and their numbers: {found[2]}.")
    return found


def configure(preset: str, dataset: str, root: Path | str, *settings: str) -> Config:
    """The preset's config for a data set.

    Args:
        settings: overrides as after `timam train --set`; one text may hold several, separated by blanks.

    Raises:
        ValueError: as `timam.config.override`.
    """
    overrides = [setting for text in settings for setting in text.split()]
    base = [f"dataset={dataset}", f"root={Path(root).resolve()}"]
    return configs.override(configs.PRESETS[preset], [*base, *overrides])


def settings_table(config: Config) -> HTML:
    """The settings of a config that its preset does not have, and below them all settings, folded."""
    sections = ("model", "loss", "train")

    def rows(of: Config) -> dict[str, str]:
        return {f"{s}.{key}": str(value) for s in sections for key, value in configs.to_dict(of)[s].items()}

    every = pd.Series(rows(config), name="setting")
    preset = pd.Series(rows(configs.PRESETS[config.preset]))
    changed = every[every != preset].drop("train.seed", errors="ignore")
    first = changed.to_frame().to_html() if len(changed) else ""
    text = f"{len(changed)} settings differ from the preset <code>{config.preset}</code>."
    return HTML(f"{text}{first}<details><summary>all settings</summary>{every.to_frame().to_html()}</details>")


def choose(names: str, known: Mapping[str, T]) -> dict[str, T]:
    """The entries that `names` lists, separated by semicolons; all if it is empty. Raises ValueError for another."""
    listed = [name.strip() for name in names.split(";") if name.strip()] or list(known)
    if unknown := [name for name in listed if name not in known]:
        raise ValueError(f"no variant {', '.join(unknown)}; there are {'; '.join(known)}")
    return {name: known[name] for name in listed}


def numbers(name: str, text: str, kind: type[Number]) -> list[Number]:
    """The numbers in a parameter's text, separated by blanks. Plain papermill turns a single one into a number itself.

    Raises:
        ValueError: something else; the message names the parameter.
    """
    try:
        return [kind(part) for part in str(text).split()]
    except ValueError:
        raise ValueError(f"parameter {name} = {text!r}: expected {kind.__name__}s separated by blanks") from None


def variant_table(frame: pd.DataFrame, measures: Iterable[str]) -> pd.DataFrame:
    """One row for each variant of `timam_lab.studies.results`, in their order.

    Returns:
        variant, seeds, minutes (a run, on average), and for each measure MEASURE, MEASURE_low and MEASURE_high: the
        mean over the seeds and its 95 % interval.
    """
    rows = []
    for variant, part in frame.groupby("variant", sort=False):
        first = {"variant": variant, "seeds": len(part), "minutes": part["seconds"].mean() / 60}
        rows.append(first | mean_intervals(part, measures))
    return pd.DataFrame(rows)


def ceilings(root: Path | str, split: str = "test") -> pd.DataFrame:
    """What bounds the results on rendered pedestrians, as rows for `percents`. Empty for other data.

    Returns:
        Rows: the oracle (`timam_lab.oracle`) with ties against it and at random, and chance. Columns: variant, and
        DIRECTION_METRIC in [0, 1].
    """
    if not (Path(root) / "attributes.json").exists():
        return pd.DataFrame()
    titles = {
        "ties_against": "ceiling (oracle), ties against it",
        "ties_at_random": "ceiling (oracle), ties at random",
        "chance": "chance",
    }
    rows: dict[str, dict] = {kind: {"variant": title} for kind, title in titles.items()}
    for direction, results in oracle(root, split).items():
        for kind, metrics in results.items():
            rows[kind] |= {f"{direction}_{name}": value for name, value in metrics.items()}
    return pd.DataFrame(rows.values())


def ceiling_in_words(root: Path | str) -> Iterable[str]:
    """A sentence with `ceilings` of text to image, test split; none for other data than rendered pedestrians."""
    if len(table := ceilings(root)):
        low, high, chance = table["text_to_image_rank_1"]
        yield (
            f"Ceiling (oracle) of text to image, test split: rank-1 {low:.1%} (ties against) to {high:.1%} (ties at "
            "random), for a reader who knows what every caption states and every picture shows; "
            f"chance {chance:.2%}."
        )


def percents(
    table: pd.DataFrame,
    measures: Mapping[str, str],
    more: Iterable[str] = ("minutes",),
    bounds: pd.DataFrame | None = None,
) -> Styler:
    """`variant_table` for reading: each measure under its title as "12.3 ± 0.4", without ± for one seed.

    Fractions are in percent; the distance of the centroids is not one. `bounds` (`ceilings`) are further rows.
    """
    table = pd.concat([table.astype({"seeds": "Int64"}), bounds], ignore_index=True)

    shown = table[["variant", "seeds"]].copy()
    for name, title in measures.items():
        form = (1, 2) if name == "centroid_distance" else (100, 1)
        shown[title] = ["" if pd.isna(row[name]) else plus_minus(row, name, *form) for _, row in table.iterrows()]
    return shown.join(table[list(more)]).style.format(precision=2, na_rep="")


def ranked(split: Split, embeddings: Embeddings, queries: Sequence[int], k: int = 8) -> Figure:
    """The k best pictures for some captions of a split, with the best-ranked right picture in the last column.

    Args:
        embeddings: of the split.
        queries: indices of captions. Each row's title says at which rank the first right picture is.
    """
    texts, labels = embeddings.texts[list(queries)], embeddings.text_labels[list(queries)]
    similarity = F.normalize(texts, dim=1) @ F.normalize(embeddings.images, dim=1).T
    relevant = labels[:, None] == embeddings.image_labels[None, :]
    top = similarity.topk(min(k, similarity.shape[1]))
    best, right = similarity.masked_fill(~relevant, -torch.inf).max(dim=1)
    ranks = 1 + (similarity.masked_fill(relevant, -torch.inf) >= best[:, None]).sum(dim=1)  # ties count against it

    def pictures(indices: Tensor) -> list[Image.Image]:
        return [read_image(split.image_paths[i]) for i in indices.tolist()]

    return rankings(
        [split.captions[i] for i in queries],
        [pictures(row) for row in top.indices],
        top.values.tolist(),
        relevant.gather(1, top.indices).tolist(),
        references=pictures(right),
        titles=[f"right picture at rank {rank}" for rank in ranks.tolist()],
    )


def one_of_each(ranks: np.ndarray, rng: np.random.Generator) -> list[int]:
    """Queries drawn at random: one with the right answer first, a near miss (rank 2 to 5) and a failure, if any.

    Args:
        ranks: (Q,) rank of the first right answer, from 1; NaN where there is none.
    """
    kinds = (ranks == 1, (ranks > 1) & (ranks <= 5), ranks > 5)
    return [int(rng.choice(np.flatnonzero(kind))) for kind in kinds if kind.any()]


def game(loss: LossConfig) -> str:
    """The adversarial game of a run in a few words, for legends."""
    if not loss.adversarial_weight:
        return "no adversary"
    form = loss.adversarial_form.replace("_", " ")
    regularised = f"slope penalty {loss.gradient_penalty:g}" if loss.gradient_penalty else "unregularised"
    return f"{form}, {loss.adversarial_input} embeddings, {regularised}, weight {loss.adversarial_weight:g}"


def in_words(compared: pd.DataFrame, level: float = 0.05) -> Iterable[str]:
    """A sentence for each row of `timam_lab.statistics.compare`.

    A difference counts as shown where both intervals exclude 0 and the corrected p is below `level`. Otherwise the
    sentence says which difference the seeds could have detected (80 % power) and which they leave possible (two
    one-sided 5 % tests). With one seed there is no interval over seeds.
    """
    for row in compared.to_dict("records"):
        points = {key: f"{100 * value:+.1f}" for key, value in row.items() if key not in ("variant", "baseline")}
        pair = f"**{row['variant']}** against *{row['baseline']}*: {points['difference']} points"
        over_identities = f"{points['identities_low']} to {points['identities_high']} over identities"
        if pd.isna(row["seeds_low"]):
            yield f"{pair} ({over_identities}). One seed, so nothing is shown."
            continue
        excluded = row["seeds_low"] * row["seeds_high"] > 0 and row["identities_low"] * row["identities_high"] > 0
        shown = excluded and row["p_holm"] < level
        verdict = "A gain" if row["difference"] > 0 else "A loss"
        if not shown:
            within = f"at most {100 * row['equivalence_bound']:.1f} points are left possible"
            verdict = f"No difference is shown: {100 * row['detectable']:.1f} points could have been detected, {within}"
        p = "p < 0.001" if row["p_holm"] < 0.001 else f"p = {row['p_holm']:.3f}"
        over_seeds = f"{points['seeds_low']} to {points['seeds_high']} over seeds"
        yield f"{pair} ({over_seeds}, {over_identities}, corrected {p}). {verdict}."
