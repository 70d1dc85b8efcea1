"""Same seed, machine and versions, same bytes: metrics.json, history.csv and weights, whichever way a run was made."""

from __future__ import annotations

import hashlib
import os
import re
import signal
from pathlib import Path

import pandas as pd
import pytest
from layouts import tiny_config
from running import FOUR_EPOCHS, finished, started, train_command, wait_until

from timam.run import Run
from timam.training import fit
from timam_lab.studies import Experiment, keep_model, run_grid


@pytest.fixture(scope="module")
def settings(language_model) -> list[str]:
    return [*FOUR_EPOCHS, f"model.language_model={language_model}"]


def content(run: Path) -> dict[str, bytes | str]:
    """The bytes of metrics.json and history.csv but for the seconds that they took; hashes of what is large."""
    metrics, count = re.subn(rb'\n  "seconds": [\d.]+,', b"", (run / "metrics.json").read_bytes())
    assert count == 1
    history = pd.read_csv(run / "history.csv", dtype=str).drop(columns="seconds").to_csv()
    files = [*sorted((run / "val_embeddings").iterdir()), run / "test_embeddings.safetensors",
             run / "checkpoints/best/model.safetensors"]  # fmt: skip
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {"metrics.json": metrics, "history.csv": history, **hashes}


@pytest.fixture(scope="module")
def first(people, settings, tmp_path_factory) -> dict[str, bytes | str]:
    """Of `timam train` in a process of its own, with stores of its own."""
    place = tmp_path_factory.mktemp("first")
    finished(train_command(people, place / "run", *settings), TIMAM_CACHE=str(place / "cache"))
    return content(place / "run")


@pytest.mark.slow
def test_another_seed_gives_others(people, settings, first, tmp_path):
    fit(tiny_config(people, *settings, "train.seed=1"), tmp_path / "run", progress=False)
    assert {name for name, value in content(tmp_path / "run").items() if value != first[name]} == set(first)


@pytest.mark.slow
def test_a_resumed_run_has_the_same_bytes(people, settings, first, tmp_path):
    """Ended in the second epoch by a signal, which is answered by a line, and resumed by another process."""
    process = started(train_command(people, tmp_path / "run", *settings), TIMAM_CACHE=str(tmp_path / "cache"))
    wait_until((tmp_path / "run/checkpoints/last").exists, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143
    assert re.fullmatch(r".*/run: interrupted .*, which is saved; go on with --resume", errors.strip().splitlines()[-1])
    assert "Traceback" not in errors
    fit(Run(tmp_path / "run").config(), tmp_path / "run", resume=True, progress=False)
    assert content(tmp_path / "run") == first


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_workers_of_a_study_give_the_same_bytes(people, settings, first, tmp_path, monkeypatch, workers):
    """In this process, after whatever other tests drew, and in one of two that share the grid."""
    monkeypatch.setenv("TIMAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)  # shared out: a thread a worker
    config = tiny_config(people, *settings)
    run_grid([Experiment("full", config)], tmp_path / "runs", max(1, workers), progress=False, then=keep_model)
    (run,) = (path for path in (tmp_path / "runs").iterdir() if path.is_dir())
    assert content(run) == first
