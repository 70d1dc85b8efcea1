"""Grids of runs: variants x seeds x data sets, found again by their config, shared by processes or a Ray cluster.

A run's directory on disk is the whole protocol: its name is its config, a finished one has metrics.json, its lock
says that somebody is at it, and NAME.failed.txt beside it why it failed. So a grid that is executed again re-uses what
is finished and resumes the rest, and several processes (or machines on one file system) share it without a server.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from timam import config as configs
from timam.config import Config
from timam.data import load_dataset
from timam.evaluation import DIRECTIONS, per_query
from timam.files import write_text
from timam.interruption import Interrupted, interruptible
from timam.run import BusyError, Run
from timam.training import fit

ENGINES = ("local", "ray")
POLL_SECONDS = 1.0
RAY_RETRIES = 3  # of a run whose worker was lost


class StudyError(RuntimeError):
    """A grid that is not complete, or results that must not stand in one table; the message lists them."""


@dataclass(frozen=True)
class Experiment:
    """One run of a grid, under the name that tables give it."""

    variant: str
    config: Config

    def folder(self, runs: Path | str) -> Path:
        return run_folder(runs, self.config)


def run_folder(runs: Path | str, config: Config) -> Path:
    """RUNS/DATASET-PRESET-SEED-FINGERPRINT: the same config, the same directory."""
    return Run.named(runs, config).folder


def grid(base: Config, variants: Mapping[str, Sequence[str] | str], seeds: Iterable[int]) -> list[Experiment]:
    """Variants x seeds, all variants of a seed before the next seed, so that a part of a grid is balanced.

    Args:
        base: what all variants have in common.
        variants: name -> overrides of the base, as `timam train --set` takes them: a list, or separated by blanks.

    Raises:
        ValueError: as `timam.config.override`; or two variants of one config, which would be one run under two names.
    """
    made = {
        name: configs.override(base, settings.split() if isinstance(settings, str) else list(settings))
        for name, settings in variants.items()
    }
    seen: dict[Config, str] = {}
    for name, config in made.items():
        if other := seen.get(config):
            raise ValueError(f"variants {other!r} and {name!r} have the same config")
        seen[config] = name
    return [
        Experiment(name, configs.override(config, [f"train.seed={seed}"]))
        for seed in seeds
        for name, config in made.items()
    ]


# -- running ----------------------------------------------------------------------------------------------------


def run_grid(
    experiments: Sequence[Experiment], runs: Path | str, workers: int = 1, engine: str = "local",
    keep_models: bool = False, cpus: int = 1, gpus: float = 0, progress: bool = True,
) -> None:  # fmt: skip
    """Runs what is not finished; a failed run does not stop the others.

    Any number of processes may call this for the same grid and the same `runs` at once: each run is done by one of
    them, and all of them return when none is left.

    Args:
        runs: the folder of the run directories; on a cluster, on a file system that all machines share.
        workers: processes that this call starts (engine "local"); 1 = this process itself. The cores are shared out.
        engine: "local", or "ray": every run is a task of the Ray cluster that `RAY_ADDRESS` names or that runs on
            this machine, else of a new one on this machine; a lost worker's run is tried again and resumed.
        keep_models: keeps checkpoints/ of finished runs. What studies read is small and stays either way.
        cpus, gpus: what each run takes of the Ray cluster.
        progress: shows a bar.

    Raises:
        Interrupted: SIGINT or SIGTERM; the runs under way have saved the step that they were at.
        StudyError: at the end, with every run that did not finish and why.
        ValueError: an unknown engine.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine = {engine!r}: expected one of {', '.join(ENGINES)}")
    unique = list({e.folder(runs): e for e in experiments}.values())
    started = time.time()
    with interruptible():
        if engine == "ray":
            _run_on_ray(unique, runs, started, keep_models, cpus, gpus, progress)
        elif workers == 1:
            _work(unique, runs, started, keep_models, 0, progress)
        else:
            _run_in_processes(unique, runs, started, keep_models, workers, progress)
    if open_ := [line for e in unique if (line := _unfinished(e, runs))]:
        raise StudyError("\n  ".join([f"{len(open_)} of {len(unique)} runs did not finish:", *open_]))


def _finished(experiment: Experiment, runs: Path | str) -> bool:
    return Run(experiment.folder(runs)).finished


def _failure_file(experiment: Experiment, runs: Path | str) -> Path:
    return Run(experiment.folder(runs)).failure_file


def _write_failure(experiment: Experiment, runs: Path | str, error: Exception) -> None:
    with suppress(OSError):  # a full disk has no room for its own message; the other runs go on
        write_text(_failure_file(experiment, runs), f"{type(error).__name__}: {error}\n")


def _unfinished(experiment: Experiment, runs: Path | str) -> str | None:
    if _finished(experiment, runs):
        return None
    failure = _failure_file(experiment, runs)
    unsaid = "no reason was left: its process was killed, or the disk was full"
    reason = failure.read_text(encoding="utf-8").strip() if failure.exists() else unsaid
    return f"{experiment.variant}, seed {experiment.config.train.seed} ({experiment.folder(runs)}): {reason}"


def _settled(experiment: Experiment, runs: Path | str, started: float) -> bool:
    """Finished, or failed since `started`: an older failure is tried again."""
    failure = _failure_file(experiment, runs)
    return _finished(experiment, runs) or (failure.exists() and failure.stat().st_mtime >= started)


def run_one(experiment: Experiment, runs: Path | str, keep_models: bool = False, progress: bool = False) -> None:
    """Begins, resumes or passes over one run, and leaves its result or the reason of its failure on disk.

    Raises:
        timam.run.BusyError: another process is at it.
    """
    folder, failure = experiment.folder(runs), _failure_file(experiment, runs)
    try:
        fit(experiment.config, folder, resume=True, progress=progress)
        if not keep_models:
            Run(folder).remove_checkpoints()
        failure.unlink(missing_ok=True)
    except BusyError:
        raise
    except Exception as error:  # whatever a run dies of, the others go on
        _write_failure(experiment, runs, error)


def _work(
    experiments: Sequence[Experiment], runs: Path | str, started: float, keep_models: bool, threads: int, progress: bool
) -> None:
    """Goes through the grid until every run is settled, by this process or by another."""
    if threads:
        torch.set_num_threads(threads)
    left = list(experiments)
    with tqdm(total=len(left), desc="runs", unit="run", disable=not progress) as bar:
        while left:
            busy = []
            for experiment in left:
                try:
                    if not _settled(experiment, runs, started):
                        run_one(experiment, runs, keep_models)
                    bar.update()
                except BusyError:
                    busy.append(experiment)
            if len(busy) == len(left):
                time.sleep(POLL_SECONDS)
            left = busy


def _run_in_processes(
    experiments: Sequence[Experiment], runs: Path | str, started: float, keep_models: bool, workers: int, progress: bool
) -> None:
    """Several processes at one grid. One that is killed leaves its run to the others."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // workers)
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads and CUDA
    arguments = (experiments, runs, started, keep_models, threads, False)
    pool = [context.Process(target=_worker, args=arguments, daemon=True) for _ in range(workers)]
    for process in pool:
        process.start()
    try:
        with tqdm(total=len(experiments), desc="runs", unit="run", disable=not progress) as bar:
            while any(process.is_alive() for process in pool):
                time.sleep(POLL_SECONDS)
                bar.update(sum(_settled(e, runs, started) for e in experiments) - bar.n)
    finally:  # an interrupt ends the workers too, each after the step that it is at
        for process in pool:
            process.terminate()
        for process in pool:
            process.join()


def _worker(*arguments: Any) -> None:
    try:
        _work(*arguments)
    except Interrupted as error:
        sys.exit(error.exit_code)  # without a traceback; the process that started this one says it


def _run_on_ray(
    experiments: Sequence[Experiment], runs: Path | str, started: float, keep_models: bool, cpus: int, gpus: float,
    progress: bool,
) -> None:  # fmt: skip
    """A task a run. Ray itself tries a task again when its worker or its machine is lost."""
    try:
        import ray
    except ImportError:
        raise StudyError("engine = 'ray' needs Ray: pip install 'ray[data]'") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False)  # RAY_ADDRESS, else a cluster that runs here, else a new one
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RAY_RETRIES, scheduling_strategy="SPREAD")(_work)
    folder = Path(runs).resolve()  # a worker's working directory is another
    waiting = {
        task.remote([e], folder, started, keep_models, cpus if not gpus else 0, False): e
        for e in experiments
        if not _settled(e, runs, started)
    }
    with tqdm(total=len(waiting), desc="runs", unit="run", disable=not progress) as bar:
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1)
            experiment = waiting.pop(done[0])
            try:
                ray.get(done[0])
            except ray.exceptions.RayError as error:
                _write_failure(experiment, runs, error)
            bar.update()


# -- results ----------------------------------------------------------------------------------------------------


def results(experiments: Sequence[Experiment], runs: Path | str) -> pd.DataFrame:
    """One row a finished run: variant, seed, folder, the metrics of both directions, the gap, cost and provenance.

    Returns:
        Columns variant, seed, folder, best_epoch, seconds, text_to_image_rank_1 and so on, centroid_distance,
        probe_accuracy, commit, code, device, data_fingerprint.

    Raises:
        StudyError: runs of one data set that saw different data, data that has changed since, or a damaged run.
    """
    rows = []
    for experiment in experiments:
        folder = experiment.folder(runs)
        if not _finished(experiment, runs):
            continue
        try:
            metrics = Run(folder).metrics()
        except ValueError as error:
            raise StudyError(f"{error}; remove {folder} and run the study again") from error
        flat = {f"{d}_{k}": v for d in DIRECTIONS for k, v in metrics[d].items()}
        flat |= metrics.get("class_level", {})
        kept = {k: metrics["provenance"].get(k) for k in ("commit", "code", "device", "data_fingerprint")}
        rows.append({"variant": experiment.variant, "seed": experiment.config.train.seed, "folder": str(folder),
                     "root": experiment.config.data.root, "best_epoch": metrics["best_epoch"],
                     "seconds": metrics["seconds"], **flat, **metrics["modality_gap"], **kept})  # fmt: skip
    frame = pd.DataFrame(rows)
    for root, part in frame.groupby("root") if len(frame) else ():
        name = next(e.config.data.dataset for e in experiments if e.config.data.root == root)
        now = load_dataset(name, str(root)).fingerprint()
        other = part[part["data_fingerprint"] != now]
        if len(other):
            found = "\n  ".join(f"{r.folder}: {r.data_fingerprint}" for r in other.itertuples())
            raise StudyError(f"{root} has the fingerprint {now}; runs on other data:\n  {found}\nremove these runs")
    return frame


def versions(frame: pd.DataFrame) -> pd.DataFrame:
    """How many runs of `results` each version of code, commit and device produced: more than one row is a mixture."""
    return frame.groupby(["code", "commit", "device"], dropna=False).size().rename("runs").reset_index()


def hits(
    experiments: Sequence[Experiment], runs: Path | str, direction: str = "text_to_image", k: int = 1
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Whether each test query had a right answer among its first k, for `timam_lab.statistics.compare`.

    Returns:
        {variant: (S, Q) of 1.0 and 0.0, seeds ascending}, and the queries' identities (Q,).

    Raises:
        StudyError: variants that were not tested on the same queries.
        OSError: a run that is not finished.
    """
    found: dict[str, list[np.ndarray]] = {}
    identities: np.ndarray | None = None
    for experiment in sorted(experiments, key=lambda e: e.config.train.seed):
        folder = experiment.folder(runs)
        each = per_query(Run(folder).test_embeddings(), direction)
        if identities is None:
            identities = each["identity"]
        elif not np.array_equal(identities, each["identity"]):
            raise StudyError(f"{folder}: its queries are not those of the other runs")
        found.setdefault(experiment.variant, []).append((each["rank"] <= k).astype(float))
    if identities is None:
        raise StudyError("no experiments")
    order = dict.fromkeys(e.variant for e in experiments)
    return {variant: np.stack(found[variant]) for variant in order}, identities
