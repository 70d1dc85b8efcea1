"""The tables of notebook 07: finished runs and published results of each benchmark, in the same columns."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from timam import config as configs
from timam.config import Config
from timam.data import DATASETS, Dataset, load_dataset
from timam.evaluation import DIRECTIONS
from timam.models import TIMAM
from timam.models.saving import public_name
from timam.run import Run
from timam_lab.evaluating import evaluate_model, pair_settings
from timam_lab.statistics import mean_interval
from timam_lab.variations import spec_of

PUBLISHED = Path(__file__).with_name("published.csv")
RANKS = [f"{direction} {k}" for direction in DIRECTIONS for k in ("rank_1", "rank_5", "rank_10")]
CLASS_LEVEL = ["class level image_to_text_rank_1", "class level text_to_image_ap_50"]


def columns(dataset: str) -> list[str]:
    """The metrics that the literature reports for a data set."""
    return CLASS_LEVEL if DATASETS[dataset].kind == "class" else RANKS


def changed(config: Config) -> str:
    """The settings that differ from the preset, without the data set, its folder and the seed; or "nothing"."""
    differing = configs.departures(config, configs.PRESETS.get(config.preset, configs.PRESETS["paper"]))
    for key in ("data.dataset", "data.root", "train.seed"):
        differing.pop(key, None)
    return ", ".join(f"{key.partition('.')[2]}={value}" for key, (_, value) in differing.items()) or "nothing"


def finished_runs(runs: Path) -> pd.DataFrame:
    """One row for each finished run in `runs` and its subfolders.

    Returns:
        dataset, preset, changed (settings), data (fingerprint), root (the name of the data's folder), seed, run
        (relative to `runs`), and the metrics as columns "text_to_image rank_1" and so on (fractions).
    """
    rows = []
    for path in sorted(runs.rglob("metrics.json")):
        run = Run(path.parent)
        config, metrics = run.config(), run.metrics()
        row: dict[str, Any] = {"dataset": metrics["dataset"], "preset": config.preset, "changed": changed(config)}
        row |= {"data": metrics["provenance"]["data_fingerprint"], "seed": config.train.seed}
        row["root"] = Path(config.data.root).name
        row["run"] = os.path.relpath(run.folder, runs)
        row |= {f"{d} {key}": value for d in DIRECTIONS for key, value in metrics[d].items()}
        row |= {f"class level {key}": value for key, value in metrics.get("class_level", {}).items()}
        rows.append(row)
    return pd.DataFrame(rows)


def published(dataset: str) -> pd.DataFrame:
    """The published results of a data set: method, source, and `columns` in percent. Empty if there are none."""
    every = pd.read_csv(PUBLISHED, keep_default_na=False)  # source: where the number was read, if known
    theirs = every[every["dataset"] == dataset]
    theirs = theirs.assign(source=["published" + (f" ({where})" if where else "") for where in theirs["source"]])
    index = ["method", "source"]
    table = theirs.pivot_table(index=index, columns="metric", values="percent", aggfunc="first", sort=False)
    return table.reindex(columns=columns(dataset)).astype(object).reset_index()


def ours(dataset: str, frame: pd.DataFrame) -> pd.DataFrame:
    """The runs of a data set among `finished_runs`, one row for each config and data. Of copies of a run one counts.

    Returns:
        method, source, changed in the preset, data (folder and fingerprint), seeds, runs, and `columns` as
        "12.3 (11.0 to 13.6)" in percent: mean and 95 % interval over the seeds.
    """
    part = frame[frame["dataset"] == dataset] if len(frame) else frame
    rows = []
    for (preset, settings, _), same in part.groupby(["preset", "changed", "data"]) if len(part) else ():
        same = same.drop_duplicates("seed")
        row = {"method": f"TIMAM, {preset}", "source": "ours", "changed in the preset": settings, "seeds": len(same)}
        root, data = same[["root", "data"]].iloc[0]
        row["data"] = f"{root} ({data[:6]})"  # there are several versions of one data set
        row["runs"] = " ".join(same["run"])
        for metric in columns(dataset):
            mean, low, high = mean_interval(same[metric].to_numpy())
            interval = "" if pd.isna(low) else f" ({100 * low:.1f} to {100 * high:.1f})"
            row[metric] = f"{100 * mean:.1f}{interval}"
        rows.append(row)
    return pd.DataFrame(rows)


def transfer(frame: pd.DataFrame, runs: Path, pretrained: Sequence[str] = ()) -> pd.DataFrame:
    """Text-to-image rank-1 of each model on the test split of each data set, in percent.

    Args:
        frame: of `finished_runs` in the folder `runs`. Of runs that differ in the seed alone the first is taken. The
            data sets are those that these runs were trained on, where their folders are still there. Several of one
            reader are told apart by folder and fingerprint.
        pretrained: CLIP or SigLIP checkpoints, which are measured as they are.

    Returns:
        A row for each run that still has its model and for each checkpoint; a column for each data set. NaN where the
        model was trained on people of that test split (`shares_people`).
    """
    found: dict[tuple[str, str], tuple[str, Dataset]] = {}
    for name in frame.drop_duplicates(["dataset", "data"])["run"] if len(frame) else ():
        settings = Run(runs / name).config().data
        if Path(settings.root).exists():
            other = load_dataset(settings.dataset, settings.root, settings.renamed)
            found.setdefault((other.name, other.fingerprint()), (Path(settings.root).name, other))
    names = [name for name, _ in found]
    data = {
        name if names.count(name) == 1 else f"{name} ({folder}, {fingerprint[:8]})": other
        for (name, fingerprint), (folder, other) in found.items()
    }
    models: dict[str, tuple[Callable[[], TIMAM], Dataset | None]] = {
        f"{public_name(name)}, not trained here": (partial(TIMAM.pretrained, pair_settings(name), 1, []), None)
        for name in pretrained
    }
    for row in frame.drop_duplicates(["preset", "changed", "data"]).to_dict("records") if len(frame) else ():
        if Run(runs / row["run"]).best.is_dir():
            _, own_data = found.get((row["dataset"], row["data"]), ("", None))
            models[row["run"]] = Run(runs / row["run"]).best_model, own_data
    rows = {}
    for name, (load, own) in models.items():
        model = load()
        tested = {to: other for to, other in data.items() if own is None or not shares_people(own, other)}
        scores = {to: evaluate_model(model, other)["text_to_image"]["rank_1"] for to, other in tested.items()}
        rows[name] = {to: 100 * score for to, score in scores.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(data))


def shares_people(trained: Dataset, tested: Dataset) -> bool:
    """Whether the test split of rendered pedestrians has people of the other's training split.

    A rendered person follows from seed and number alone, and in a larger set more of the numbers are training people.
    """
    files = [dataset.image_root.parent / "attributes.json" for dataset in (trained, tested)]
    if not all(file.is_file() for file in files) or len({spec_of(file.parent).seed for file in files}) > 1:
        return False
    known = {record.identity for record in trained.records if record.split == "train"}
    return any(record.identity in known for record in tested.records if record.split == "test")
