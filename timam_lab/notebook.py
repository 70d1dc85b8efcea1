"""What the notebooks share: their folders and configs, the choice of variants, and comparisons put into sentences."""

from __future__ import annotations

import html
import os
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import HTML, display
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from timam import arguments
from timam import config as configs
from timam.config import Config, LossConfig
from timam.data import Split, load_dataset
from timam.evaluation import DIRECTIONS, Embeddings, evaluate
from timam.images import read_image
from timam.metrics import chance
from timam.run import Run
from timam_lab import plots, studies
from timam_lab.baselines import tuned_baseline
from timam_lab.failures import PedestrianTruth, readable
from timam_lab.gaps import GAP_MEASURES
from timam_lab.measures import MEASURES, PLAIN
from timam_lab.oracle import oracle
from timam_lab.statistics import mean_intervals, plus_minus
from timam_lab.studies import Experiment

REPOSITORY = Path(__file__).resolve().parents[1]
FROZEN = "unfreeze_epoch=none unfreeze_patience=none"  # the language model is never trained
# The adversarial game as the paper's text leaves it. Notebook 10 compares it with the regularised game of `quick`.
UNREGULARISED = (
    "adversarial_input=raw gradient_penalty=0 label_smoothing=0.1 "
    "discriminator_steps=1 discriminator_lr=2e-4 discriminator_momentum=0.9"
)
T = TypeVar("T")
Number = TypeVar("Number", int, float)


def folder(given: str, default: str, written: bool = False) -> Path:
    """The folder that a parameter names, as on the command line (~, ORG/NAME); if it is empty, `default` in the clone.

    A relative one that is not in the working directory, but in the clone, is the clone's, as commands are given there;
    but not one that is `written`. Without a clone around the package (installed from a wheel), the default is below the
    working directory.
    """
    clone = REPOSITORY if (REPOSITORY / "notebooks").is_dir() else Path.cwd()
    if not given or (not written and not Path(given).expanduser().exists() and (clone / given).exists()):
        return Path(os.path.relpath(clone / (given or default)))
    return arguments.ROOT.convert(given, None, None)


def folders(root: str, runs: str, output: str, study: str = "") -> tuple[Path, Path, Path]:
    """Folders of the data, of the run directories and of the figures, and prints where the last two are.

    The defaults in the clone are data/pedestrians, runs/STUDY and reports/local.
    """
    made, figures = (
        folder(runs, f"runs/{study}", written=True),
        folder(output, "reports/local", written=True) / "figures",
    )
    print(f"Runs: {made}. Figures and their numbers: {figures}.")
    return folder(root, "data/pedestrians"), made, figures


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


def run_of(trained: str, runs: Path, config: Config) -> tuple[Run, Config]:
    """The run in the folder `trained` with its own config. Where that is empty: the run of `config` in `runs`.

    Raises FileNotFoundError where the folder `trained` holds no run.
    """
    if not trained:
        return Run.named(runs, config), config
    run = Run(folder(trained, ""))
    return run, run.config()


def settings_table(config: Config) -> HTML:
    """What will be trained in five lines; folded below, what differs from the preset, and all settings."""
    here = os.path.relpath(config.data.root)  # executed notebooks are passed on, without the folders of a machine
    config = replace(config, data=replace(config.data, root=here))
    data, model, loss, train = config.data, config.model, config.loss, config.train
    frozen = "frozen" if train.unfreeze_epoch is train.unfreeze_patience is None else "frozen at first, trained later"
    frozen = "trained" if train.unfreeze_epoch == 1 else frozen
    words = f"{Path(model.language_model).name}, {frozen}"
    terms = {loss.matching: loss.matching_weight, "identification": loss.identification_weight}
    lines = {
        "data": f"{data.dataset} in {data.root}",
        "pictures": f"{model.backbone}, {model.image_height} x {model.image_width} pixels; "
        f"its first {train.frozen_blocks} blocks frozen",
        "sentences": f"{'learned word embeddings' if model.language_model == 'none' else words}; "
        + (f"LSTM of {model.lstm_hidden} units a direction" if model.text_head == "lstm" else "its own pooling"),
        "losses": " + ".join(f"{w:g} {name}" for name, w in terms.items() if w) + f"; {game(loss)}",
        "training": f"{train.epochs} epochs in batches of {data.batch_size} pictures, seed {train.seed}",
    }
    every, preset = (
        pd.Series({key: str(value) for key, value in configs.flat(of).items()}, name="setting")
        for of in (config, configs.PRESETS[config.preset])
    )
    changed = every[every != preset].drop(["data.root", "data.dataset", "train.seed"], errors="ignore")
    short = "".join(
        f"<tr><th>{name}</th><td style='text-align: left'>{html.escape(text)}</td>" for name, text in lines.items()
    )
    departures = folded(changed.to_frame(), f"{len(changed)} settings differ from the preset {config.preset}")
    return HTML(f"<table>{short}</table>{departures}{folded(every.to_frame(), 'all settings')}")


def folded(table: pd.DataFrame | Styler, title: str) -> str:
    """A long table as HTML that a click on its title opens."""
    return f"<details><summary>{html.escape(title)}</summary>{table.to_html()}</details>"


def live_curves(chance: float) -> Callable[..., Figure]:
    """One figure below the cell, for `fit(..., after_epoch=...)`: drawn again after each epoch, and it stays.

    Args:
        chance: as `plots.training_curves`.

    Returns:
        A function of the history (rows or a frame) and the chosen epoch, if it is known, that draws the figure.
    """
    shown = display(HTML("The curves appear after the first epoch."), display_id=True)

    def draw(history: list[dict] | pd.DataFrame, best_epoch: int | None = None) -> Figure:
        figure = plots.training_curves(pd.DataFrame(history), best_epoch, chance)
        data, metadata = plots.thumbnail(figure)
        if shown is not None:  # outside of a notebook there is nothing to draw on
            shown.update(data, metadata=metadata, raw=True)
        plots.plt.close(figure)
        return figure

    return draw


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


def titled(frame: pd.DataFrame) -> pd.DataFrame:
    """For reading: `MEASURES` and `GAP_MEASURES` among the columns under their titles, fractions in percent."""
    titles = {name: title + ", percent" * (name not in PLAIN) for name, (title, _) in MEASURES.items()} | GAP_MEASURES
    percents = {str(name): 100 * frame[name] for name in frame if "percent" in titles.get(str(name), "")}
    return frame.assign(**percents).rename(columns=titles)


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


def references(config: Config) -> pd.DataFrame:
    """What the test results of a config are compared with, as rows for `percents`: the linear baseline
    (`timam_lab.baselines`), which takes about a minute, chance, and the ceiling where it is known (`ceilings`)."""
    data = load_dataset(config.data.dataset, config.data.root, columns=config.data.renamed)
    embeddings = tuned_baseline(config.model, data)[0](data.split("test"))
    rows: list[dict] = [{"variant": "linear baseline"}, {"variant": "chance"}]
    metrics = evaluate(embeddings)
    for direction in DIRECTIONS:
        rows[0] |= {f"{direction}_{name}": value for name, value in metrics[direction].items()}
        rows[1][f"{direction}_rank_1"] = chance(*embeddings.direction(direction)[2:])
    bounds = ceilings(config.data.root)
    return pd.concat([pd.DataFrame(rows if bounds.empty else rows[:1]), bounds], ignore_index=True)


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

    Fractions are in percent; the distance of the centroids is not one. `bounds` (`references`) are further rows.
    """
    table = pd.concat([table.astype({"seeds": "Int64"}), bounds], ignore_index=True)

    shown = table[["variant", "seeds"]].copy()
    for name, title in measures.items():
        form = (1, 2) if name == "centroid_distance" else (100, 1)
        shown[title] = ["" if pd.isna(row[name]) else plus_minus(row, name, *form) for _, row in table.iterrows()]
    return shown.join(table[list(more)]).style.format(precision=2, na_rep="")


def learning_curves(
    experiments: Sequence[Experiment], runs: Path | str, kinds: Mapping[str, Iterable[str]] | None = None
) -> tuple[Figure, pd.DataFrame, str]:
    """Validation rank-1 of a study after each epoch: the mean of each variant over the seeds, with its 95 % interval.

    Args:
        kinds: panel -> its variants, of which it needs two; one panel with all of them where it is absent.

    Returns:
        The figure, its numbers, and a sentence that says by how much the variants still rise in the last epoch.
    """
    curves = studies.curves(experiments, runs)[["variant", "seed", "epoch", "val_text_to_image_rank_1"]]
    parts = {kind: curves[curves["variant"].isin(list(names))] for kind, names in (kinds or {}).items()}
    parts = {f"epoch ({kind})": part for kind, part in parts.items() if part["variant"].nunique() > 1}
    shown = pd.concat(part.assign(panel=label) for label, part in (parts or {"epoch": curves}).items())
    shown = shown.rename(columns={"epoch": "level", "val_text_to_image_rank_1": "value"})
    figure = plots.trends(shown, {label: label for label in shown["panel"].unique()}, "validation rank-1, percent")
    means = 100 * curves.groupby(["variant", "epoch"], sort=False)["val_text_to_image_rank_1"].mean().unstack()
    rise = means.diff(axis=1).iloc[:, -1]
    told = f"In the last epoch a variant rises by {rise.mean():.1f} points on average; most by {rise.max():.1f}"
    return figure, curves, f"{told}: {rise.idxmax()}." if means.shape[1] > 1 else "There is one epoch."


def ranked(split: Split, embeddings: Embeddings, queries: Sequence[int], k: int = 5) -> Figure:
    """The k best pictures for some captions of a split, with the best-ranked right picture in the last column.

    Each row is titled as a success (the right picture is first), a near miss (among the first five) or a failure. For
    rendered pedestrians, whose truth is known, up to three attributes that contradict the sentence are named.

    Args:
        embeddings: of the split.
        queries: indices of captions.
    """
    texts, labels = embeddings.texts[list(queries)], embeddings.text_labels[list(queries)]
    similarity = F.normalize(texts, dim=1) @ F.normalize(embeddings.images, dim=1).T
    relevant = labels[:, None] == embeddings.image_labels[None, :]
    top = similarity.topk(min(k, similarity.shape[1])).indices
    best, right = similarity.masked_fill(~relevant, -torch.inf).max(dim=1)
    ranks = 1 + (similarity.masked_fill(relevant, -torch.inf) >= best[:, None]).sum(dim=1)  # ties count against it
    roots = (folder for folder in list(split.image_paths[0].parents)[:3] if (folder / "attributes.json").exists())
    truth = next((PedestrianTruth(root, split) for root in roots), None)

    def below(row: int, picture: int) -> str:
        against = truth.contradicted(queries[row], picture) if truth is not None else []
        named = ", ".join(map(readable, against[:3])) + (f" and {len(against) - 3} more" if len(against) > 3 else "")
        return f"{similarity[row, picture]:.2f}\n{textwrap.fill(f'≠ {named}', 16) if against else ''}".strip()

    shown = [[*row, last] for row, last in zip(top.tolist(), right.tolist(), strict=True)]
    pictures = [[read_image(split.image_paths[i]) for i in row] for row in shown]
    return plots.rankings(
        [split.captions[i] for i in queries],
        [row[:-1] for row in pictures],
        [[below(number, i) for i in row] for number, row in enumerate(shown)],
        relevant.gather(1, top).tolist(),
        references=[row[-1] for row in pictures],
        titles=[f"{_kind(rank)}: right picture at rank {rank}" for rank in ranks.tolist()],
    )


def _kind(rank: int) -> str:
    return "Success" if rank == 1 else "Near miss" if rank <= 5 else "Failure"


def one_of_each(ranks: np.ndarray, rng: np.random.Generator) -> list[int]:
    """Queries drawn at random: one with the right answer first, a near miss (rank 2 to 5) and a failure, if any.

    Args:
        ranks: (Q,) rank of the first right answer, from 1; NaN where there is none.
    """
    kinds = (ranks == 1, (ranks > 1) & (ranks <= 5), ranks > 5)
    return [int(rng.choice(np.flatnonzero(kind))) for kind in kinds if kind.any()]


def game(loss: LossConfig) -> str:
    """The adversarial game of a run in a few words, for legends; and the discrepancy that takes its place."""
    if loss.discrepancy_weight and not loss.adversarial_weight:
        return f"no adversary, {loss.discrepancy} of weight {loss.discrepancy_weight:g}"
    if not loss.adversarial_weight:
        return "no adversary"
    if (loss.adversarial_form, loss.adversarial_weight) == ("alternating", 1):
        named = {("unit", 10.0): "regularised game", ("raw", 0.0): "unregularised game"}  # as in notebooks 03 and 10
        if name := named.get((str(loss.adversarial_input), loss.gradient_penalty)):
            return name
    form = loss.adversarial_form.replace("_", " ")
    regularised = f"slope penalty {loss.gradient_penalty:g}" if loss.gradient_penalty else "unregularised"
    return f"{form}, {loss.adversarial_input} embeddings, {regularised}, weight {loss.adversarial_weight:g}"


def in_words(compared: pd.DataFrame, level: float = 0.05) -> Iterable[str]:
    """A sentence for each row of `timam_lab.statistics.compare`.

    A difference counts as shown where both intervals exclude 0 and the corrected p is below `level`. Otherwise the
    sentence says which difference the seeds could have detected (80 % power, at the corrected level) and how large a
    difference one of the intervals still holds. With one seed there is no interval over seeds.
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
            within = max(abs(row[f"{over}_{end}"]) for over in ("seeds", "identities") for end in ("low", "high"))
            detected = f"{100 * row['detectable']:.1f} points could have been detected"
            verdict = f"No difference is shown: {detected}, up to {100 * within:.1f} are left possible"
        p = "p < 0.001" if row["p_holm"] < 0.001 else f"p = {row['p_holm']:.3f}"
        over_seeds = f"{points['seeds_low']} to {points['seeds_high']} over seeds"
        yield f"{pair} ({over_seeds}, {over_identities}, corrected {p}). {verdict}."
