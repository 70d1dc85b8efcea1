"""The tables of notebook 07: finished runs and published results of each benchmark, in the same columns."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd

from timam import config as configs
from timam.config import Config
from timam.data import DATASETS
from timam.evaluation import DIRECTIONS
from timam.run import Run
from timam_lab.statistics import mean_interval

PUBLISHED = Path(__file__).with_name("published.csv")
RANKS = [f"{direction} {k}" for direction in DIRECTIONS for k in ("rank_1", "rank_5", "rank_10")]
CLASS_LEVEL = ["class level image_to_text_rank_1", "class level text_to_image_ap_50"]


def columns(dataset: str) -> list[str]:
    """The metrics that the literature reports for a data set."""
    return CLASS_LEVEL if DATASETS[dataset].kind == "class" else RANKS


def changed(config: Config) -> str:
    """The settings that differ from the preset, without the data set, its folder and the seed; or "nothing"."""
    ours, preset = (configs.to_dict(c) for c in (config, configs.PRESETS.get(config.preset, configs.PRESETS["paper"])))
    differ = [
        f"{key}={value}"
        for section in configs.SECTIONS
        for key, value in ours[section].items()
        if value != preset[section][key] and key not in ("dataset", "root", "seed")
    ]
    return ", ".join(differ) or "nothing"


def finished_runs(runs: Path) -> pd.DataFrame:
    """One row for each finished run in `runs` and its subfolders.

    Returns:
        dataset, preset, changed (settings), data (fingerprint), seed, run (relative to `runs`), and the metrics as
        columns "text_to_image rank_1" and so on (fractions).
    """
    rows = []
    for path in sorted(runs.rglob("metrics.json")):
        run = Run(path.parent)
        config, metrics = run.config(), run.metrics()
        row: dict[str, Any] = {"dataset": metrics["dataset"], "preset": config.preset, "changed": changed(config)}
        row |= {"data": metrics["provenance"]["data_fingerprint"], "seed": config.train.seed}
        row["run"] = os.path.relpath(run.folder, runs)
        row |= {f"{d} {key}": value for d in DIRECTIONS for key, value in metrics[d].items()}
        row |= {f"class level {key}": value for key, value in metrics.get("class_level", {}).items()}
        rows.append(row)
    return pd.DataFrame(rows)


def published(dataset: str) -> pd.DataFrame:
    """The published results of a data set: method, source, and `columns` in percent. Empty if there are none."""
    every = pd.read_csv(PUBLISHED)
    theirs = every[every["dataset"] == dataset]
    table = theirs.pivot_table(index="method", columns="metric", values="percent", aggfunc="first", sort=False)
    return table.reindex(columns=columns(dataset)).astype(object).reset_index().assign(source="published")


def ours(dataset: str, frame: pd.DataFrame) -> pd.DataFrame:
    """The runs of a data set among `finished_runs`, one row for each config and data.

    Returns:
        method, source, changed in the preset, seeds, runs, and `columns` as "12.3 (11.0 to 13.6)" in percent: mean
        and 95 % interval over the seeds.
    """
    part = frame[frame["dataset"] == dataset] if len(frame) else frame
    rows = []
    for (preset, settings, _), same in part.groupby(["preset", "changed", "data"]) if len(part) else ():
        row = {"method": f"TIMAM, {preset}", "source": "ours", "changed in the preset": settings, "seeds": len(same)}
        row["runs"] = " ".join(same["run"])
        for metric in columns(dataset):
            mean, low, high = mean_interval(same[metric].to_numpy())
            interval = "" if pd.isna(low) else f" ({100 * low:.1f} to {100 * high:.1f})"
            row[metric] = f"{100 * mean:.1f}{interval}"
        rows.append(row)
    return pd.DataFrame(rows)
