"""How well it learns at the sizes of a GPU: rank-1 over time, a study, the spread of one seed, executed notebooks."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from timam.config import PRESETS, Config
from timam.evaluation import DIRECTIONS
from timam.run import Run
from timam.training import fit
from timam_lab.oracle import oracle
from timam_lab.speed.gpu import PEOPLE, REPOSITORY, Item, Lab, Row
from timam_lab.speed.gpu.recipes import TINY, configure, settings_of
from timam_lab.studies import StudyError, grid, run_grid, table
from timam_lab.variations import with_fewer

# -- learning ---------------------------------------------------------------------------------------------------------


def learning(lab: Lab) -> Iterator[Item]:
    for people in lab.size((11_003, 3_000, 750), (34, 10)):
        yield Item("Rank-1 over time", f"{people} people", partial(learning_rows, lab, people))
    yield Item("Ceiling (oracle) and chance, text to image", "test", partial(ceiling, lab.work / "people"))


def learning_settings(lab: Lab, people: int) -> list[str]:
    """`quick` with a batch that grows with the number of people.

    The rates grow with the root of the batch, the rule for Adam (Malladi et al., NeurIPS 2022). Epochs are those of the
    preset, or as many as fit into 1,600 steps.
    """
    scale = max(1, min(8, 2 ** round(np.log2(people / 750))))
    batch, t = PRESETS["quick"].data.batch_size * scale, PRESETS["quick"].train
    rates = {name: getattr(t, name) * scale**0.5 for name in ("image_lr", "text_lr", "language_model_lr")}
    epochs = lab.size(max(4, min(t.epochs, 1_600 * batch // (3 * people))), 2)
    sizes = lab.size("", f"{TINY} max_steps=2 lstm_hidden=32 max_tokens=16").split()
    return [f"batch_size={batch}", f"epochs={epochs}", *sizes, *(f"{key}={value}" for key, value in rates.items())]


def learning_config(lab: Lab, people: int) -> Config:
    root = lab.work / "people"
    every = lab.size(*PEOPLE["people"])["train_identities"]
    settings = " ".join(learning_settings(lab, people))
    return configure("quick", lab, root if people == every else with_fewer(root, people), settings)


def learning_rows(lab: Lab, people: int) -> Iterator[Row]:
    """An epoch a row, and the test; what is there of it where the time does not suffice: another call goes on."""
    config = learning_config(lab, people)
    run = Run.named(lab.work / "runs", config)
    try:
        fit(config, run.folder, resume=True, progress=False)
    finally:
        history = run.history() if (run.folder / "history.csv").exists() else pd.DataFrame()
        seconds = 0.0
        for row in history.to_dict("records"):
            seconds += row["seconds"]
            yield {"people": people, "batch": config.data.batch_size, "epoch": int(row["epoch"]), "s": seconds,
                   "loss": row["total"], "validation rank-1": row["val_text_to_image_rank_1"],
                   "of as many training people": row["train_text_to_image_rank_1"]}  # fmt: skip
    found = run.metrics()
    yield {"people": people, "epoch": found["best_epoch"], "s": found["seconds"],
           **{f"test {key}": found["text_to_image"][key] for key in ("rank_1", "rank_10", "mAP")}}  # fmt: skip


def ceiling(root: Path) -> Iterator[Row]:
    for name, values in oracle(root)["text_to_image"].items():
        yield {"": name.replace("_", " "), **values}


# -- studies and spread -----------------------------------------------------------------------------------------------


def studies(lab: Lab) -> Iterator[Item]:
    experiments, workers = modules(lab), lab.size(8, 2)
    yield Item("Notebook 03's modules, five seeds", f"{workers} at a time",
               partial(study_rows, lab, experiments, workers))  # fmt: skip


def modules(lab: Lab) -> Any:
    """The grid `MODULES` of notebook 03, at the study's size."""
    from timam_lab import adversary, notebook

    size = lab.size(
        "image_height=128 image_width=64 batch_size=64 epochs=8 unfreeze_epoch=5",
        f"{TINY} batch_size=8 epochs=1 max_steps=2 unfreeze_epoch=1 lstm_hidden=16",
    )
    base = configure("quick", lab, lab.work / "study", size)
    cells = json.loads((REPOSITORY / "notebooks/03_ablation_modules.ipynb").read_text(encoding="utf-8"))["cells"]
    source = next(text for cell in cells if "MODULES = {" in (text := "".join(cell["source"])))
    names = {"pd": pd, "notebook": notebook, "variants": "", "base": base, **vars(adversary), **vars(notebook)}
    exec(compile(source, "notebook 03", "exec"), names)  # noqa: S102 - a cell of this repository
    chosen = dict(list(names["MODULES"].items())[: lab.size(None, 2)])
    return grid(base, chosen, range(lab.size(5, 1)))


def study_rows(lab: Lab, experiments: Any, workers: int) -> Iterator[Row]:
    """A row a variant. Where the time does not suffice: of the runs that are finished."""
    started, folder = time.monotonic(), lab.work / "runs/study"
    try:
        run_grid(experiments, folder, workers, progress=False)
    finally:
        done = [e.run(folder).metrics()["seconds"] for e in experiments if e.run(folder).finished]
        took = time.monotonic() - started
        yield {"variant": f"{len(done)} of {len(experiments)} runs in {took:.0f} s, {sum(done):.0f} s of their own"}
        with suppress(StudyError):
            yield from ({str(k): v for k, v in row.items()} for row in table(folder).to_dict("records"))


def spread(lab: Lab) -> Iterator[Item]:
    for deterministic, count in ((False, lab.size(10, 2)), (True, lab.size(4, 2))):
        name = "deterministic algorithms" if deterministic else "as it is"
        yield Item("The same seed again and again", name, partial(spread_rows, lab, name, deterministic, count))


def repeated(config: Config, folder: Path, deterministic: bool) -> dict[str, Any]:
    """A run in a process of its own: its last loss, its metrics, and its seconds."""
    torch.use_deterministic_algorithms(deterministic)
    metrics = fit(config, folder, resume=True, progress=False)
    flat = {f"{d}, {key}": metrics[d][key] for d in DIRECTIONS for key in ("rank_1", "rank_10", "mAP")}
    gap = {key: metrics["modality_gap"][key] for key in ("centroid_distance", "probe_accuracy")}
    last = float(Run(folder).history()["total"].iloc[-1])
    return {"last loss": last, **flat, **gap, "seconds": metrics["seconds"]}


def spread_rows(lab: Lab, name: str, deterministic: bool, count: int) -> Iterator[Row]:
    root = with_fewer(lab.work / "study", lab.size(500, 10))
    size = lab.size("batch_size=64 epochs=4", f"batch_size=8 epochs=1 max_steps=2 {TINY}")
    config = configure("quick", lab, root, size, "unfreeze_epoch=none")
    folders = [lab.work / f"runs/spread-{name.replace(' ', '-')}-{i}" for i in range(count)]
    with ProcessPoolExecutor(lab.size(5, 2), multiprocessing.get_context("spawn")) as pool:
        found = pd.DataFrame(pool.map(repeated, [config] * count, folders, [deterministic] * count))
    for metric, values in found.items():
        yield {"algorithms": name, "runs": count, "metric": str(metric), "mean": float(values.mean()),
               "smallest": float(values.min()), "largest": float(values.max()), "deviation": float(values.std()),
               "different values": int(values.nunique())}  # fmt: skip


# -- notebooks --------------------------------------------------------------------------------------------------------


def notebooks(lab: Lab) -> Iterator[Item]:
    """02 reads the run that was trained on all people; 08 measures `paper`."""
    people, table = lab.size(*PEOPLE["people"])["train_identities"], "Executed notebooks"
    settings = " ".join([*settings_of("quick", lab), *learning_settings(lab, people)])
    learned = {"root": lab.work / "people", "runs": lab.work / "runs", "preset": "quick", "settings": settings}
    yield Item(table, "02", partial(execute, lab, "02_training", learned))
    growing = {"root": lab.work / "study", "preset": lab.size("paper", "smoke"), "batches": lab.size("64 256", "4"),
               "processes": "1", "rounds": lab.size(3, 1)}  # fmt: skip
    yield Item(table, "08", partial(execute, lab, "08_performance", growing))


def execute(lab: Lab, name: str, parameters: dict[str, Any]) -> Iterator[Row]:
    given = [part for key, value in parameters.items() for part in ("-p", key, str(value))]
    command = [sys.executable, "notebooks/execute.py", "--output", str(lab.output), *given, name]
    started = time.monotonic()
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-400:])
    yield {"notebook": name, "s": time.monotonic() - started}
