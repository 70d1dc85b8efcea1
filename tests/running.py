"""Processes that train, signals at named events, and comparing two runs to the last bit."""

from __future__ import annotations

import functools
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from layouts import TINY_SETTINGS
from safetensors.torch import load_file
from torch.distributed.elastic.utils.distributed import get_free_port

from timam import training
from timam.interruption import Interrupted

ROOT = Path(__file__).resolve().parents[1]
# Everything random switched on; the language model is unfrozen in the third epoch.
FOUR_EPOCHS = ("train.epochs=4", "train.unfreeze_epoch=3", "train.early_stop=none", "data.horizontal_flip=true")
FOUR_EPOCHS += ("data.pad_crop=2", "data.random_erasing=0.5")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}


def train_command(people: Path, run: Path, *settings: str, processes: int = 1) -> list[str]:
    """`timam train ... --resume` of a tiny model. Several processes: the command of docs/gpu.md."""
    start = [sys.executable, "-m"]
    if processes > 1:  # with --cpu in place of --multi_gpu, Accelerate starts one process only
        start += ["accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes),
                  "--main_process_port", str(get_free_port()), "-m"]  # fmt: skip
    pairs = [part for setting in (*TINY_SETTINGS, *settings) for part in ("--set", setting)]
    data = ["--preset", "smoke", "--dataset", "cuhk-pedes", "--root", str(people), "--output", str(run), "--resume"]
    return [*start, "timam", "train", *data, *pairs]


def started(command: list[Any], **variables: str) -> subprocess.Popen:
    """The command in a process of its own, with these environment variables added."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell starts background jobs, of which these tests may be one, without Ctrl-C.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(list(map(str, command)), env=ENVIRONMENT | variables, preexec_fn=heed, **pipes)


def finished(command: list[Any], **variables: str) -> str:
    """Stdout of the command, which succeeds."""
    process = started(command, **variables)
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    return out


def forked(target: Callable, *arguments: Any) -> multiprocessing.Process:
    """The call in a forked process, which keeps what is imported and patched."""

    def run() -> None:
        try:
            target(*arguments)
        except Interrupted as error:
            sys.exit(error.exit_code)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def wait_until(condition: Callable[[], object], process: subprocess.Popen | None = None, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "too slow"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)


def signalled_step(monkeypatch: pytest.MonkeyPatch, nth: int, number: int = signal.SIGTERM) -> list[int]:
    """The signal comes within the nth training step from here; the list grows by one for each step."""
    original, steps = training.train_step, []

    def wrapped(*args, **kwargs):
        steps.append(len(steps) + 1)
        if len(steps) == nth:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    monkeypatch.setattr(training, "train_step", wrapped)
    return steps


class Stop(BaseException):
    """Stands for a kill: no handler of the package catches it."""


def killed_at(config: Any, run: Path, owner: Any, name: str, nth: int) -> None:
    """A run, begun or resumed, that ends when owner.name is called for the nth time, before that does anything."""
    original, count = getattr(owner, name), itertools.count(1)

    def wrapped(*args, **kwargs):
        if next(count) == nth:
            raise Stop
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, wrapped)
        with pytest.raises(Stop):
            training.fit(config, run, resume=True, progress=False)


def scripted_scores(monkeypatch: pytest.MonkeyPatch, scores: Iterable[float]) -> None:
    """The first validations give these values of rank-1 in turn, later ones their own."""
    original, rest = training._validate, iter(scores)

    def wrapped(model, data):
        row = original(model, data)
        return row | {"val_text_to_image_rank_1": next(rest, row["val_text_to_image_rank_1"])}

    monkeypatch.setattr(training, "_validate", wrapped)


def interrupted(config: Any, run: Path, steps: int) -> Path:
    """A run, begun or resumed, that a signal ended in its nth step from here."""
    with pytest.MonkeyPatch.context() as patch:
        signalled_step(patch, steps)
        with pytest.raises(Interrupted):
            training.fit(config, run, resume=True, progress=False)
    return run


def flip_a_bit(path: Path, rng: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


def cut(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(path.read_bytes()[: rng.integers(path.stat().st_size)])


def assert_same_history(first: Path, second: Path) -> None:
    a, b = (pd.read_csv(run / "history.csv").drop(columns="seconds") for run in (first, second))
    pd.testing.assert_frame_equal(a, b, check_exact=True)


def assert_same_best(first: Path, second: Path) -> None:
    a, b = (load_file(run / "checkpoints" / "best" / "model.safetensors") for run in (first, second))
    assert a.keys() == b.keys()
    assert [n for n in a if not torch.equal(a[n], b[n])] == []


def assert_same_run(first: Path, second: Path) -> None:
    a, b = (json.loads((run / "metrics.json").read_text()) for run in (first, second))
    for key in ("best_epoch", "text_to_image", "image_to_text", "modality_gap"):
        assert a[key] == b[key], key
    assert_same_history(first, second)
    assert_same_best(first, second)
    left, right = (sorted(str(p.relative_to(run)) for p in run.rglob("*")) for run in (first, second))
    # A real kill may leave a temporary file; folders of a killed writer are replaced by the next one.
    assert left == [name for name in right if not name.endswith(".tmp")]
