"""Grids of runs: variants x seeds x data sets, shared by several processes or a Ray cluster; tables of their results.

Processes coordinate through the run directories alone. A run's name follows from its config, a finished run has its
metrics, a lock marks the run that a process is training, and a failed one leaves the reason in a file. So a grid that
is executed again re-uses finished runs and resumes the others, and processes on several machines with one file system
share it without a server.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from timam import config as configs
from timam.config import Config, DataConfig
from timam.data import load_dataset
from timam.evaluation import DIRECTIONS, per_query
from timam.files import write_text
from timam.interruption import Interrupted, interruptible
from timam.run import BusyError, Run
from timam.training import fit
from timam_lab.statistics import mean_intervals

ENGINES = ("local", "ray")
POLL_SECONDS = 1.0
RAY_RETRIES = 3  # of a run whose worker was lost


class StudyError(RuntimeError):
    """An incomplete grid, or results that do not belong in one table; the message lists the runs."""


@dataclass(frozen=True)
class Experiment:
    """One run of a grid, with its variant's name in tables."""

    variant: str
    config: Config

    def run(self, runs: Path | str) -> Run:
        return Run.named(runs, self.config)

    def folder(self, runs: Path | str) -> Path:
        return self.run(runs).folder


def grid(base: Config, variants: Mapping[str, Sequence[str] | str], seeds: Iterable[int]) -> list[Experiment]:
    """Variants x seeds. All variants of a seed come before the next seed, so that an unfinished grid is balanced.

    Args:
        base: settings that all variants share.
        variants: name -> overrides of the base, as `timam train --set` takes them: a list, or separated by blanks.

    Raises:
        ValueError: from `timam.config.override`; or two variants with the same config.
    """
    made = []
    for seed in seeds:
        for name, settings in variants.items():
            listed = settings.split() if isinstance(settings, str) else settings
            made.append(Experiment(name, configs.override(base, [*listed, f"train.seed={seed}"])))
            if (other := next(e.variant for e in made if e.config == made[-1].config)) != name:
                raise ValueError(f"variants {other!r} and {name!r} have the same config")
    return made


RATES = ("image_lr", "text_lr", "language_model_lr")


def rate_trials(
    base: Config, variants: Mapping[str, Sequence[str] | str], factors: Sequence[float], seed: int
) -> list[Experiment]:
    """Each variant with each multiple of its encoders' learning rates, with one seed. Raises as `grid`."""

    def settings(config: Config, factor: float) -> list[str]:  # none for 1: the run is that of `grid`
        return [f"train.{rate}={factor * getattr(config.train, rate):g}" for rate in RATES if factor != 1]

    plain = grid(base, variants, [seed])
    return [Experiment(e.variant, configs.override(e.config, settings(e.config, f))) for f in factors for e in plain]


def best_rates(trials: Sequence[Experiment], runs: Path | str, seeds: Iterable[int]) -> list[Experiment]:
    """The grid of each variant's trial with the best rank-1 on validation. StudyError: an unfinished trial."""
    if unfinished := [str(e.folder(runs)) for e in trials if not e.run(runs).finished]:
        raise StudyError(f"not finished: {', '.join(unfinished)}")
    score = {e: float(e.run(runs).history()["val_text_to_image_rank_1"].max()) for e in trials}
    best = {
        v: max((e for e in trials if e.variant == v), key=score.__getitem__)
        for v in dict.fromkeys(e.variant for e in trials)
    }
    return [
        Experiment(v, configs.override(e.config, [f"train.seed={seed}"])) for seed in seeds for v, e in best.items()
    ]


def curves(experiments: Sequence[Experiment], runs: Path | str) -> pd.DataFrame:
    """The histories of runs below each other, with the columns variant, seed and `RATES` as RATE_set: as configured."""
    rows = []
    for e in experiments:
        configured = {f"{rate}_set": getattr(e.config.train, rate) for rate in RATES}
        rows.append(e.run(runs).history().assign(variant=e.variant, seed=e.config.train.seed, **configured))
    return pd.concat(rows, ignore_index=True)


def rate_table(trials: Sequence[Experiment], base: Config, runs: Path | str) -> pd.DataFrame:
    """The best rank-1 on validation of each variant (rows) with each multiple of the base's rates (columns)."""
    frame = curves(trials, runs)
    frame["times the rate"] = frame["image_lr_set"] / base.train.image_lr
    return frame.pivot_table("val_text_to_image_rank_1", "variant", "times the rate", "max", sort=False)


def at_lowest(tried: pd.DataFrame) -> str:
    """A sentence on the variants of `rate_table` that are best with the lowest of several rates; "" if none is."""
    best, lowest = tried.idxmax(axis=1), min(tried.columns)
    names = ", ".join(best.index[best == lowest])
    text = f"Best with the lowest rates: {names}. With lower ones they might do better."
    return text if names and lowest < max(tried.columns) else ""


# -- running ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resources:
    """What each run takes of a Ray cluster."""

    cpus: int = 1
    gpus: float = 0


def run_grid(
    experiments: Sequence[Experiment],
    runs: Path | str,
    workers: int = 1,
    engine: str = "local",
    resources: Resources = Resources(),
    progress: bool = True,
    then: Callable[[Run], object] | None = None,
) -> None:
    """Trains the runs that are not finished; a failed run does not stop the others.

    Any number of processes may call this for the same grid and the same `runs` at once. Each run is trained by one of
    them, and all of them return when every run is finished or failed.

    Args:
        runs: the folder of the run directories; on a cluster, on a file system that all machines share.
        workers: processes that this call starts (engine "local"), which divide the cores; 1 trains in this process.
        engine: "local", or "ray": every run is a task of the Ray cluster that `RAY_ADDRESS` names or that runs on
            this machine, else of a new one on this machine. The run of a lost worker is tried again and resumed.
        resources: of each run (engine "ray").
        progress: shows a bar.
        then: called with each run that this call finished, where it was trained, before its checkpoints go: for what
            needs the model. Where it returns True they stay (`keep_model`). A function that can be pickled.

    Raises:
        Interrupted: SIGINT or SIGTERM; the runs in progress have saved their last step.
        StudyError: at the end, with every run that did not finish and why.
        ValueError: an unknown engine.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine = {engine!r}: expected one of {', '.join(ENGINES)}")
    unique = list({e.folder(runs): e for e in experiments}.values())
    work = _Work(Path(runs), time.time(), progress, then)
    with interruptible():
        if engine == "ray":
            work.on_ray(unique, resources)
        elif workers == 1:
            work.here(unique)
        else:
            work.in_processes(unique, workers)
    if unfinished := [line for e in unique if (line := work.problem(e))]:
        raise StudyError("\n  ".join([f"{len(unfinished)} of {len(unique)} runs did not finish:", *unfinished]))


def keep_model(run: Run) -> bool:
    """`then` of `run_grid` that keeps the checkpoints."""
    return True


def failure_file(run: Run) -> Path:
    """Beside the run: why it failed."""
    return run.beside("{}.failed.txt")


@dataclass(frozen=True)
class _Work:
    """One call of `run_grid`, as its processes share it."""

    runs: Path
    started: float
    progress: bool
    then: Callable[[Run], object] | None

    def problem(self, experiment: Experiment) -> str | None:
        """Why a run is not finished; None where it is."""
        run = experiment.run(self.runs)
        if run.finished and not failure_file(run).exists():
            return None
        reason = "no reason was left: its process was killed, or the disk was full"
        with suppress(FileNotFoundError):
            reason = failure_file(run).read_text(encoding="utf-8").strip()
        return f"{experiment.variant}, seed {experiment.config.train.seed} ({run.folder}): {reason}"

    def settled(self, experiment: Experiment) -> bool:
        """Finished, or failed since the start of this call: an older failure, also of `then`, is tried again."""
        run = experiment.run(self.runs)
        failure = failure_file(run)
        return failure.stat().st_mtime >= self.started if failure.exists() else run.finished

    def fail(self, experiment: Experiment, error: Exception) -> None:
        with suppress(OSError):  # a full disk has no room for the message either; the other runs go on
            write_text(failure_file(experiment.run(self.runs)), f"{type(error).__name__}: {error}\n")

    def train(self, experiment: Experiment) -> None:
        """Trains or resumes one run; leaves its result or the reason of its failure on disk. Raises BusyError."""
        run = experiment.run(self.runs)
        try:
            fit(experiment.config, run.folder, resume=True, progress=False)
            kept = self.then is not None and self.then(run) is True
            if not kept:
                shutil.rmtree(run.last.parent, ignore_errors=True)  # frees the space of the weights
            failure_file(run).unlink(missing_ok=True)
        except BusyError:
            raise
        except Exception as error:  # any error of one run; the other runs go on
            self.fail(experiment, error)

    def bar(self, total: int) -> Any:
        return tqdm(total=total, desc="runs", unit="run", disable=not self.progress)

    def advance(self, bar: Any, runs: int = 1) -> None:
        """Moves the bar. A widget is not seen where a notebook is executed headless: each tenth is a line, too."""
        tenths = 10 * bar.n // (bar.total or 1)
        bar.update(runs)
        if self.progress and 10 * bar.n // (bar.total or 1) > tenths and time.time() - self.started > 30:
            tqdm.write(f"{bar.n} of {bar.total} runs are done")

    def here(self, experiments: Sequence[Experiment], threads: int = 0) -> None:
        """Goes through the grid until every run is settled, by this process or by another."""
        if threads:
            torch.set_num_threads(threads)
        left = list(experiments)
        with self.bar(len(left)) as bar:
            while left:
                busy = []
                for experiment in left:
                    try:
                        if not self.settled(experiment):
                            self.train(experiment)
                        self.advance(bar)
                    except BusyError:
                        busy.append(experiment)
                if len(busy) == len(left):
                    time.sleep(POLL_SECONDS)
                left = busy

    def in_processes(self, experiments: Sequence[Experiment], workers: int) -> None:
        """Several processes work on one grid. If one is killed, another one resumes its run."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads and CUDA
        arguments = dataclasses.replace(self, progress=False), experiments, max(1, cores // workers)
        pool = [context.Process(target=_worker, args=arguments, daemon=True) for _ in range(workers)]
        for process in pool:
            process.start()
        try:
            with self.bar(len(experiments)) as bar:
                while any(process.is_alive() for process in pool):
                    time.sleep(POLL_SECONDS)
                    self.advance(bar, sum(map(self.settled, experiments)) - bar.n)
        finally:  # on an interrupt each worker finishes and saves its step
            for process in pool:
                process.terminate()
            for process in pool:
                process.join()

    def on_ray(self, experiments: Sequence[Experiment], resources: Resources) -> None:
        """One task per run. Ray itself tries a task again when its worker or its machine is lost."""
        try:
            import ray
        except ImportError:
            raise StudyError("engine = 'ray' needs Ray: pip install 'ray[data]'") from None
        if not ray.is_initialized():
            ray.init(log_to_driver=False)  # RAY_ADDRESS, else a cluster that runs here, else a new one
        # Workers have another working directory, so the folder is absolute.
        there = dataclasses.replace(self, runs=self.runs.resolve(), progress=False)
        spread = {"max_retries": RAY_RETRIES, "scheduling_strategy": "SPREAD"}
        task: Any = ray.remote(_Work.here).options(num_cpus=resources.cpus, num_gpus=resources.gpus, **spread)
        threads = 0 if resources.gpus else resources.cpus
        waiting = {task.remote(there, [e], threads): e for e in experiments if not self.settled(e)}
        with self.bar(len(waiting)) as bar:
            while waiting:
                done, _ = ray.wait(list(waiting), num_returns=1)
                experiment = waiting.pop(done[0])
                try:
                    ray.get(done[0])
                except ray.exceptions.RayError as error:
                    self.fail(experiment, error)
                self.advance(bar)


def _worker(work: _Work, experiments: Sequence[Experiment], threads: int) -> None:
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        work.here(experiments, threads)
    except Interrupted as error:
        sys.exit(error.exit_code)  # without a traceback; the process that started this one reports it


def _end_with_the_parent() -> None:
    """A process that is killed cannot stop its workers: without it they would train the whole grid, seen by nobody."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)  # the step is finished and saved


# -- results ----------------------------------------------------------------------------------------------------


def results(experiments: Sequence[Experiment], runs: Path | str) -> pd.DataFrame:
    """One row per finished run: variant, seed, folder, metrics of both directions, modality gap, cost, provenance.

    Returns:
        Columns variant, seed, folder, dataset, root, columns, best_epoch, seconds, text_to_image_rank_1 and so on,
        centroid_distance and so on, commit, code, device, data_fingerprint.

    Raises:
        StudyError: runs of one data set with different data, data that has changed since, or a damaged run.
    """
    finished = [e for e in experiments if e.run(runs).finished]
    frame = pd.DataFrame([{"variant": e.variant, **_row(e.run(runs), e.config)} for e in finished])
    for _, part in frame.groupby(["dataset", "root", "columns"]) if len(frame) else ():
        data = DataConfig(**{key: part[key].iloc[0] for key in ("dataset", "root", "columns")})
        now = load_dataset(data.dataset, data.root, columns=data.renamed).fingerprint()
        other = part[part["data_fingerprint"] != now]
        if len(other):
            lines = "\n  ".join(f"{r.folder}: {r.data_fingerprint}" for r in other.itertuples())
            raise StudyError(
                f"{data.root} has the fingerprint {now}; runs on other data:\n  {lines}\nremove these runs"
            )
    return frame


def _row(run: Run, config: Config) -> dict[str, Any]:
    """The results of a finished run, flat. Raises StudyError for a damaged one."""
    try:
        metrics = run.metrics()
    except ValueError as error:
        raise StudyError(f"{error}; remove {run.folder} and run the study again") from error
    flat = {f"{d}_{k}": v for d in DIRECTIONS for k, v in metrics[d].items()}
    flat |= metrics.get("class_level", {}) | metrics["modality_gap"]
    kept = {k: metrics["provenance"].get(k) for k in ("commit", "code", "device", "data_fingerprint")}
    return {"seed": config.train.seed, "folder": str(run.folder), "dataset": config.data.dataset,
            "root": config.data.root, "columns": config.data.columns, "best_epoch": metrics["best_epoch"],
            "seconds": metrics["seconds"], **flat, **kept}  # fmt: skip


def versions(frame: pd.DataFrame) -> pd.DataFrame:
    """The number of runs of `results` for each version of code, commit and device; several rows mean a mixture."""
    return frame.groupby(["code", "commit", "device"], dropna=False).size().rename("runs").reset_index()


def hits(
    experiments: Sequence[Experiment], runs: Path | str, direction: str = "text_to_image", k: int = 1
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Whether each test query had a right answer among its first k, for `timam_lab.statistics.compare`.

    Returns:
        {variant: (S, Q) of 1.0 and 0.0, seeds ascending}, and the queries' identities (Q,).

    Raises:
        StudyError: variants that were not tested on the same queries.
        OSError: an unfinished run.
    """
    right: dict[str, list[np.ndarray]] = {e.variant: [] for e in experiments}
    identities: np.ndarray | None = None
    for experiment in sorted(experiments, key=lambda e: e.config.train.seed):
        run = experiment.run(runs)
        each = per_query(run.test_embeddings(), direction)
        identities = each["identity"] if identities is None else identities
        if not np.array_equal(identities, each["identity"]):
            raise StudyError(f"{run.folder}: its queries are not those of the other runs")
        right[experiment.variant].append((each["rank"] <= k).astype(float))
    if identities is None:
        raise StudyError("no experiments")
    return {variant: np.stack(rows) for variant, rows in right.items()}, identities


# -- a table of a folder of runs ----------------------------------------------------------------------------------

TABLE_METRICS = ("text_to_image_rank_1", "text_to_image_rank_10", "text_to_image_mAP", "image_to_text_rank_1")


def table(runs: Path | str) -> pd.DataFrame:
    """One row per variant of the finished runs in a folder: runs whose configs differ in the seed only.

    A variant is named by the settings in which it differs from the majority of the variants, "base" where there are
    none; a setting without a majority is in every name. The same data in another folder are the same variant.

    Returns:
        variant; seeds, for example "0, 1, 2"; of each of `TABLE_METRICS` NAME, NAME_low and NAME_high (mean and 95 %
        interval over the seeds, fractions, within [0, 1]; NaN ends for one seed); chance (of rank-1 of text to image;
        NaN for runs that are older than it); commit and data_fingerprint. A run that stands there twice, with the
        same results, is counted once. Warnings name such copies, unfinished runs, and variants of which the runs were
        trained by different code.

    Raises:
        StudyError: no finished run; a damaged one; a variant with runs on different data, or with a seed twice.
    """
    below = sorted(Path(runs).expanduser().glob("*"))
    folders = [path for path in below if Run(path).finished]
    if not folders:
        raise StudyError(f"{runs}: no finished run in this folder")
    if unfinished := [path.name for path in below if path not in folders and Run(path).last.exists()]:
        warnings.warn(f"not finished, and not counted: {', '.join(unfinished)}", stacklevel=2)
    roots: dict[str, str] = {}  # fingerprint -> the first folder with these data
    rows = []
    for folder in folders:
        run = Run(folder)
        config = run.config()
        row = _row(run, config)
        settings = configs.flat(config) | {"preset": config.preset}
        settings["data.root"] = roots.setdefault(row["data_fingerprint"], row["root"])
        del settings["train.seed"]
        rows.append({**row, "settings": tuple(sorted(settings.items()))})
    frame = pd.DataFrame(rows)
    names = _names(list(dict.fromkeys(frame["settings"])))
    return pd.DataFrame([_table_row(names[settings], frame[frame["settings"] == settings]) for settings in names])


def _names(variants: Sequence[tuple[tuple[str, Any], ...]]) -> dict[tuple[tuple[str, Any], ...], str]:
    """A name for each variant, which is given as the pairs of all its settings and their values."""
    counts = Counter(pair for settings in variants for pair in settings)
    common = {pair for pair, count in counts.items() if 2 * count > len(variants)}

    def text(key: str, value: Any) -> str:
        return f"{key.split('.')[-1]}={value:g}" if isinstance(value, float) else f"{key.split('.')[-1]}={value}"

    return {v: ", ".join(text(*pair) for pair in v if pair not in common) or "base" for v in variants}


def _table_row(name: str, part: pd.DataFrame) -> dict[str, Any]:
    """The row of one variant. Raises StudyError for runs that do not belong in one row."""
    part = part.sort_values("seed")
    copies = part.duplicated(["seed", "data_fingerprint", *TABLE_METRICS])
    for folder in part["folder"][copies]:
        warnings.warn(f"{folder} repeats another run of {name}, and is not counted", stacklevel=2)
    part = part[~copies]
    told = "\n  {0.folder}: seed {0.seed}, data {0.data_fingerprint}, code {0.code}".format
    lines = "".join(map(told, part.itertuples()))
    if part["data_fingerprint"].nunique(dropna=False) > 1:
        raise StudyError(f"{name}: runs on different data; remove those on other data than the rest:{lines}")
    if part["seed"].duplicated().any():
        raise StudyError(f"{name}: a seed twice; remove one of the runs:{lines}")
    if part["code"].nunique() > 1:
        warnings.warn(f"{name}: the code differed between the runs:{lines}", stacklevel=2)
    commits = ", ".join(dict.fromkeys(map(str, part["commit"])))  # with "-dirty" for code that was not committed
    intervals = {k: float(np.clip(value, 0, 1)) for k, value in mean_intervals(part, TABLE_METRICS).items()}
    return {"variant": name, "seeds": ", ".join(map(str, part["seed"])), **intervals,
            "chance": part.get("text_to_image_chance", pd.Series([np.nan])).iloc[0],
            "commit": commits, "data_fingerprint": part["data_fingerprint"].iloc[0]}  # fmt: skip


def table_text(frame: pd.DataFrame) -> str:
    """`table` for a terminal, in percent."""
    shown = frame[["variant", "seeds"]].copy()
    for metric in TABLE_METRICS:
        ends = (100 * frame[f"{metric}{end}"] for end in ("", "_low", "_high"))
        shown[metric.replace("_", " ")] = [
            f"{mean:.1f}" + (f" ({low:.1f} to {high:.1f})" if np.isfinite(low) else "")
            for mean, low, high in zip(*ends, strict=True)
        ]
    shown["chance of rank-1"] = [f"{100 * value:.2f}" for value in frame["chance"]]
    told = "percent; in brackets the 95 % interval of the mean over the seeds (Student's t)"
    return f"{shown.join(frame['commit']).to_string(index=False)}\n{told}"
