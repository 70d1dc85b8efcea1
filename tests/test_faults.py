"""Faults, made for real: kills at random moments, full and read-only disks, damaged files, two runs, clocks, signals.

After each of them nothing finished is lost and resuming gives the undisturbed result, or the message names what is
damaged and says what to do. docs/reliability.md reports TIMAM_FAULT_TRIES=3, the kills at random moments. Kills at
chosen moments are in test_training.py, test_files.py and test_stores.py; of a study's workers, in test_studies.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pytest
from layouts import tiny_config, write_picture
from running import FOUR_EPOCHS, assert_same_run, cut, flip_a_bit, forked, interrupted, started, wait_until

from timam import config as configs
from timam.models import TIMAM
from timam.run import Run, RunError
from timam.stores import open_pixels
from timam.training import fit
from timam_lab.galleries import open_gallery

pytestmark = pytest.mark.slow
TRIES = int(os.environ.get("TIMAM_FAULT_TRIES", "1"))  # of each kill at a random moment


@pytest.fixture(scope="module")
def config(people, language_model) -> configs.Config:
    """Without flips, the last epoch is not the best, so that a damaged best model is read again."""
    return tiny_config(people, f"model.language_model={language_model}", *FOUR_EPOCHS, "data.horizontal_flip=false")


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory) -> SimpleNamespace:
    """A run of this config, and the seconds that it took."""
    run, started_at = tmp_path_factory.mktemp("undisturbed") / "run", time.monotonic()
    fit(config, run, progress=False)
    return SimpleNamespace(run=run, seconds=time.monotonic() - started_at)


def killed(after: float, number: int, target: Callable, *arguments: Any) -> bool:
    """Whether the call was under way when the signal came, after so many seconds; else it has succeeded."""
    process = forked(target, *arguments)
    process.join(after)
    if process.is_alive():
        os.kill(process.pid, number)
    process.join(120)
    assert process.exitcode in (0, -number, 128 + number)
    return process.exitcode != 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_training_ended_at_random_moments(config, undisturbed, tmp_path, number):
    """One run is ended again and again until it is finished, then the next one."""
    rng, runs, tries = np.random.default_rng(int(number)), 0, 0
    while tries < TRIES:
        run = tmp_path / f"{runs}" / "run"
        for _ in range(8):
            if not killed(rng.uniform(0, undisturbed.seconds), number, fit, config, run, True, False):
                break
            tries += 1
        fit(config, run, resume=True, progress=False)
        assert_same_run(undisturbed.run, run)
        runs += 1


# -- disks ------------------------------------------------------------------------------------------------------


@pytest.fixture
def mount(tmp_path):
    """mount(*arguments, folder) mounts something there until the end of the test."""
    mounted: list[Path] = []

    def mount(*arguments: Any) -> Path:
        done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting takes a right that this user lacks: {done.stderr.strip()}")
        mounted.append(arguments[-1])
        return arguments[-1]

    yield mount
    for folder in dict.fromkeys(reversed(mounted)):
        subprocess.run(["umount", "--lazy", folder], check=False)


def test_full_disk(config, undisturbed, tmp_path, mount):
    """Room for the first epochs, not for replacing a checkpoint. More of it, and the run goes on."""
    (tmp_path / "disk").mkdir()
    size = sum(p.stat().st_size for p in undisturbed.run.rglob("*") if p.is_file()) / 2**20 + 1
    disk = mount("-t", "tmpfs", "-o", f"size={size:.0f}m", "tmpfs", tmp_path / "disk")
    with pytest.raises(OSError, match=r"No space left on device; what was there before is kept.*run/checkpoints/"):
        fit(config, disk / "run", progress=False)
    assert len(list((disk / "run" / "checkpoints" / "last").iterdir())) > 3
    assert not list((disk / "run" / "checkpoints").glob(".*.new"))  # what could not be finished gives its room back
    with pytest.raises(OSError, match="No space left on device"):
        fit(config, disk / "run", resume=True, progress=False)
    mount("-o", f"remount,size={4 * size:.0f}m", disk)
    fit(config, disk / "run", resume=True, progress=False)
    assert_same_run(undisturbed.run, disk / "run")


def test_disk_that_fills_before_a_store_is_built(tmp_path, monkeypatch, mount):
    """What is free is not what may be had (a quota, another process): an error, where a mapped page would SIGBUS."""
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("TIMAM_CACHE", str(mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path / "cache")))
    paths = [write_picture(tmp_path / f"{i}.png", seed=i) or tmp_path / f"{i}.png" for i in range(10)]

    def build() -> None:
        with pytest.raises(OSError, match=r"No space left on device.*solve this.*cache"):
            open_pixels(paths, 96, 64, progress=False)

    process = forked(build)
    process.join(60)
    assert process.exitcode == 0
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_read_only_run_directory(config, undisturbed, tmp_path, mount):
    """A finished run is read and searched as ever; an interrupted one says that it cannot write, goes on elsewhere."""
    shutil.copytree(undisturbed.run, tmp_path / "finished" / "run")
    interrupted(config, tmp_path / "begun" / "run", steps=5)
    for name in ("finished", "begun"):
        mount("--bind", tmp_path / name, tmp_path / name)
        mount("-o", "remount,bind,ro", tmp_path / name)
    metrics = fit(config, tmp_path / "finished" / "run", progress=False)
    assert metrics == json.loads((undisturbed.run / "metrics.json").read_text())
    with pytest.raises(OSError, match=r"Read-only file system.*begun"):
        fit(config, tmp_path / "begun" / "run", resume=True, progress=False)
    write_picture(tmp_path / "album" / "0.png", seed=0)
    kept = tmp_path / "finished" / "run" / "galleries" / "album"
    model = TIMAM.from_pretrained(tmp_path / "finished" / "run" / "checkpoints" / "best")
    gallery = open_gallery(model, tmp_path / "album", kept)
    assert gallery.paths == ["0.png"]
    assert len(gallery.problems) == 1
    assert "not kept, to be encoded again the next time" in gallery.problems[0]
    shutil.copytree(tmp_path / "begun" / "run", tmp_path / "elsewhere" / "run")
    fit(config, tmp_path / "elsewhere" / "run", resume=True, progress=False)
    assert_same_run(undisturbed.run, tmp_path / "elsewhere" / "run")


DAMAGES = [
    ("checkpoints/last/optimizers.safetensors", flip_a_bit),
    ("checkpoints/last/training_state.json", cut),
    ("checkpoints/best/model.safetensors", flip_a_bit),
    ("val_embeddings/before.safetensors", cut),
]


def test_damage_in_an_interrupted_run_is_named_with_what_to_do(config, undisturbed, tmp_path):
    """Interrupted in the last epoch. A history is written again; everything else is compared with its checksum."""
    begun, rng = interrupted(config, tmp_path / "begun", steps=11), np.random.default_rng(0)
    for i, (file, damage) in enumerate(DAMAGES):
        run = shutil.copytree(begun, tmp_path / f"{i}" / "run")
        damage(run / file, rng)
        with pytest.raises(RunError, match=rf"(?s){Path(file).name}.*and train again"):
            fit(config, run, resume=True, progress=False)
    cut(begun / "history.csv", rng)
    fit(config, begun, resume=True, progress=False)
    assert_same_run(undisturbed.run, begun)


@pytest.mark.parametrize("name", ["metrics.json", "history.csv"])
def test_damage_in_a_finished_run_is_named_and_mended(config, undisturbed, tmp_path, name):
    """Also where the file can still be read, as numbers of others."""
    run = shutil.copytree(undisturbed.run, tmp_path / "run")
    flip_a_bit(run / name, np.random.default_rng(0))
    with pytest.raises(RunError, match=rf"{name} is damaged.*Remove .*metrics\.json and go on with --resume"):
        fit(config, run, progress=False)
    (run / "metrics.json").unlink()
    fit(config, run, resume=True, progress=False)
    assert_same_run(undisturbed.run, run)


def test_clock_that_jumps(config, undisturbed, tmp_path, monkeypatch):
    """By years and back while training; and files that seem to be of another century when the run goes on."""
    jumps = iter(range(10**6))
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: 1e9 + (-1) ** next(jumps) * 3e8)
        run = interrupted(config, tmp_path / "run", steps=5)
        for i, path in enumerate(sorted(run.rglob("*"))):
            os.utime(path, (4e9, 4e9) if i % 2 else (0, 0))
        fit(config, run, resume=True, progress=False)
    assert_same_run(undisturbed.run, run)
    assert Run(run).history()["seconds"].between(0, 3600).all()


def test_interrupted_papermill_saves_the_step(people, tmp_path):
    """Ctrl-C reaches papermill, which interrupts its kernel and then ends it within five seconds."""
    config = tiny_config(people, "train.epochs=300", "train.early_stop=none")
    (tmp_path / "config.json").write_text(json.dumps(asdict(config)))
    source = f"""
from pathlib import Path
from timam.run import Run
from timam.training import fit
fit(Run(Path({str(tmp_path)!r})).config(), {str(tmp_path / "run")!r}, progress=False)
"""
    cells = [nbformat.v4.new_code_cell(source)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "in.ipynb")
    process = started([sys.executable, "-m", "papermill", tmp_path / "in.ipynb", tmp_path / "out.ipynb"])
    wait_until((tmp_path / "run" / "history.csv").exists, process)
    for _ in range(4):  # on a busy machine papermill was seen to go on after one
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=30)
            break
    assert process.returncode not in (0, None)
    state = json.loads((tmp_path / "run" / "checkpoints" / "last" / "training_state.json").read_text())["progress"]
    assert len(state["history"]) == len(Run(tmp_path / "run").history())
    assert not list((tmp_path / "run").rglob(".*"))  # the kernel was not killed in the middle of something
    assert not Run(tmp_path / "run").finished
