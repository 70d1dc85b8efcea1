"""How well it learns at the sizes of a GPU: rank-1 over time, a study, the spread of one seed, executed notebooks."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from timam.config import PRESETS, Config
from timam.evaluation import DIRECTIONS
from timam.run import Run
from timam.training import fit
from timam_lab import notebook
from timam_lab.adversary import REGULARISED
from timam_lab.oracle import oracle
from timam_lab.speed.gpu import CORES, PEOPLE, REPOSITORY, SMALLEST, Item, Lab, Row
from timam_lab.speed.gpu.recipes import TINY, configure, settings_of
from timam_lab.statistics import mean_intervals, plus_minus
from timam_lab.studies import TABLE_METRICS, Experiment, grid, keep_model, rate_trials, results, run_grid
from timam_lab.variations import with_fewer

# Variants of notebook 03 with other than `quick`'s learning rates: the best multiple on validation at the size of a CPU
# (docs/studies.md). Trials at this size would cost more than the study.
RATES = {"CMPM": 0.5, "gradient reversal": 0.5}

# -- learning ---------------------------------------------------------------------------------------------------------


def learning(lab: Lab) -> Iterator[Item]:
    experiments = sorted(learning_runs(lab), key=lambda e: e.config.train.seed)
    workers = min(len(experiments), max(1, CORES - 2))
    yield Item("Test split", f"{workers} runs at a time", partial(learning_rows, lab, experiments, workers))
    yield Item("Over time", experiments[0].variant, partial(over_time, lab, experiments[0]))
    yield Item("Ceiling (oracle) and chance, text to image", "test", partial(ceiling, lab.work / "people"))


def learning_runs(lab: Lab) -> list[Experiment]:
    """`quick` with batches of 64 on all people and on fewer, three seeds each."""
    counts, seeds = (every_person(lab), *lab.size((750, 3_000), (10,))), range(lab.size(3, 1))
    return [e for people in counts for e in grid(learning_config(lab, people), {f"{people} people": ""}, seeds)]


def every_person(lab: Lab) -> int:
    return lab.size(PEOPLE, SMALLEST)["train_identities"]


def learning_settings(lab: Lab, people: int) -> list[str]:
    """`quick` with batches of 64 and half its steps, 1,400, where 40 passes over the pictures give as many.

    The rates grow with the root of the batch, the rule for Adam (Malladi et al., NeurIPS 2022); the warm-up keeps its
    number of steps. There are some three pictures of a person.
    """
    t, batch = PRESETS["quick"].train, lab.size(64, 8)
    factor = (batch / PRESETS["quick"].data.batch_size) ** 0.5
    rates = {name: getattr(t, name) * factor for name in ("image_lr", "text_lr", "language_model_lr")}
    steps = lab.size(min(280, 3 * people // batch), 2)
    warm_up = t.warmup_epochs * (t.max_steps or steps) / steps
    times = {"epochs": lab.size(min(40, 1_400 // steps), 2), "max_steps": steps, "warmup_epochs": warm_up}
    sizes = lab.size("", f"{TINY} lstm_hidden=32 max_tokens=16").split()
    return [f"batch_size={batch}", *sizes, *(f"{key}={value}" for key, value in (rates | times).items())]


def learning_config(lab: Lab, people: int) -> Config:
    root = lab.work / "people"
    return configure("quick", lab, root if people == every_person(lab) else with_fewer(root, people),
                     *learning_settings(lab, people))  # fmt: skip


def learning_rows(lab: Lab, experiments: list[Experiment], workers: int) -> Iterator[Row]:
    """A row for each run with a finished epoch, without test results where it is not over. Another call goes on."""
    runs = lab.work / "runs"
    try:
        run_grid(experiments, runs, workers, then=keep_model, progress=False)
    finally:
        for e in (e for e in experiments if e.run(runs).best.is_dir()):
            run, history = e.run(runs), e.run(runs).history()
            found = run.metrics()["text_to_image"] if run.finished else {}
            train, last = e.config.train, history.iloc[-1]
            yield {"run": e.variant, "seed": train.seed, "epochs": f"{len(history)} of {train.epochs}",
                   "s": history["seconds"].sum(), "validation rank-1": last["val_text_to_image_rank_1"],
                   "training people rank-1": last["train_text_to_image_rank_1"],
                   **{f"test {key}": found[key] for key in ("rank_1", "rank_10", "mAP") if found}}  # fmt: skip


def over_time(lab: Lab, experiment: Experiment) -> Iterator[Row]:
    """An epoch a row, as far as it is."""
    seconds = 0.0
    for row in experiment.run(lab.work / "runs").history().to_dict("records"):
        seconds += row["seconds"]
        yield {"epoch": int(row["epoch"]), "s": seconds, "loss": row["total"],
               "validation rank-1": row["val_text_to_image_rank_1"],
               "of as many training people": row["train_text_to_image_rank_1"]}  # fmt: skip


def ceiling(root: Path) -> Iterator[Row]:
    for name, values in oracle(root)["text_to_image"].items():
        yield {"": name.replace("_", " "), **values}


# -- studies and spread -----------------------------------------------------------------------------------------------


def studies(lab: Lab) -> Iterator[Item]:
    """The variants of notebook 03, seed after seed."""
    workers = lab.size(max(1, CORES // 2), 2)
    yield Item("Studies", f"03, {workers} runs at a time", partial(study_rows, lab, study(lab), workers))


def study(lab: Lab) -> list[Experiment]:
    base = configure("quick", lab, lab.work / "people", study_settings(lab))
    variants = dict(list(modules_of(base).items())[: lab.size(None, 2)])
    return [
        e
        for seed in range(lab.size(5, 1))
        for name, settings in variants.items()
        for e in rate_trials(base, {name: settings}, [RATES.get(name, 1)], seed)
    ]


def study_settings(lab: Lab) -> str:
    """Those of `learning`, with 800 steps; the language model trains in the second half of them."""
    settings = dict(s.split("=") for s in learning_settings(lab, every_person(lab)))
    warm_up = float(settings["warmup_epochs"]) * int(settings["max_steps"]) / 200
    full = {"epochs": 4, "max_steps": 200, "unfreeze_epoch": 3, "warmup_epochs": warm_up}
    settings |= lab.size(full, {"epochs": 1, "unfreeze_epoch": 1})
    return " ".join(f"{key}={value}" for key, value in settings.items())


def modules_of(base: Config) -> dict[str, str]:
    """The variants of notebook 03 by name, read from its cell."""
    cells = json.loads((REPOSITORY / "notebooks/03_ablation_modules.ipynb").read_text(encoding="utf-8"))["cells"]
    source = next(text for cell in cells if "MODULES = {" in (text := "".join(cell["source"])))
    names: dict[str, Any] = {**vars(notebook), "pd": pd, "notebook": notebook, "REGULARISED": REGULARISED}
    names |= {"variants": "", "base": base}
    exec(compile(source, "03_ablation_modules", "exec"), names)  # noqa: S102 - a cell of this repository
    return names["grid"]


def study_rows(lab: Lab, experiments: list[Experiment], workers: int) -> Iterator[Row]:
    """A row a variant. Where the time does not suffice: of the runs that are finished."""
    started, folder = time.monotonic(), lab.work / "runs"
    try:
        run_grid(experiments, folder, workers, progress=False)
    finally:
        done = [e.run(folder).metrics()["seconds"] for e in experiments if e.run(folder).finished]
        took = time.monotonic() - started
        yield {"variant": f"{len(done)} of {len(experiments)} runs in {took:.0f} s, {sum(done):.0f} s of their own"}
        frame = results(experiments, folder)
        for variant, part in frame.groupby("variant", sort=False) if len(frame) else ():
            yield {"variant": variant, "runs": len(part),
                   **{m: plus_minus(pd.Series(mean_intervals(part, [m])), m) for m in TABLE_METRICS}}  # fmt: skip


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
    root = with_fewer(lab.work / "people", lab.size(500, 10))
    size = lab.size("batch_size=64 epochs=4", f"batch_size=8 epochs=1 max_steps=2 {TINY}")
    config = configure("quick", lab, root, size, "unfreeze_epoch=none")
    folders = [lab.work / f"runs/spread-{name.replace(' ', '-')}-{i}" for i in range(count)]
    with ProcessPoolExecutor(lab.size(10, 2), multiprocessing.get_context("spawn")) as pool:
        found = pd.DataFrame(pool.map(repeated, [config] * count, folders, [deterministic] * count))
    for metric, values in found.items():
        yield {"algorithms": name, "runs": count, "metric": str(metric), "mean": float(values.mean()),
               "smallest": float(values.min()), "largest": float(values.max()), "deviation": float(values.std()),
               "different values": int(values.nunique())}  # fmt: skip


# -- notebooks --------------------------------------------------------------------------------------------------------


def notebooks(lab: Lab) -> Iterator[Item]:
    """02 of the first learning run; 08 measures `paper`."""
    table, common = "Executed notebooks", {"root": lab.work / "people", "runs": lab.work / "runs", "preset": "quick"}
    own = " ".join(settings_of("quick", lab))
    learned = common | {"settings": " ".join([own, *learning_settings(lab, every_person(lab))])}
    yield Item(table, "02_training", partial(execute, lab, "02_training", learned))
    growing = {"root": lab.work / "people", "preset": lab.size("paper", "smoke"), "batches": lab.size("64 256", "4"),
               "processes": "1", "rounds": lab.size(3, 1)}  # fmt: skip
    yield Item(table, "08_performance", partial(execute, lab, "08_performance", growing))


def execute(lab: Lab, name: str, parameters: dict[str, Any]) -> Iterator[Row]:
    given = [part for key, value in parameters.items() for part in ("-p", key, str(value))]
    command = [sys.executable, "notebooks/execute.py", "--output", str(lab.output), *given, name]
    started = time.monotonic()
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-400:])
    yield {"notebook": name, "s": time.monotonic() - started}
