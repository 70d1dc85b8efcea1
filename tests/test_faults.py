"""Faults, made for real: kills at random moments, full and read-only disks, damaged files, two runs, clocks, signals.

After each of them nothing finished is lost and resuming gives the undisturbed result, or the message names what is
damaged and says what to do. docs/reliability.md reports TIMAM_FAULT_TRIES=3, the kills at random moments. Kills while
a file or a store is written are in test_files.py and test_stores.py; of a study's workers, in test_studies.py.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pytest
import running
import torch
from layouts import tiny_config, write_picture

from timam import training
from timam.config import Config
from timam.interruption import Interrupted
from timam.learner import Learner
from timam.models import TIMAM
from timam.run import Run, RunError
from timam.stores import open_pixels
from timam.training import fit
from timam_lab.galleries import open_gallery

pytestmark = pytest.mark.slow
TRIES = int(os.environ.get("TIMAM_FAULT_TRIES", "1"))  # of each kill at a random moment


@pytest.fixture(scope="module", autouse=True)
def equal_scores():
    """Every validation gives the same score: the first epoch stays the best, and the last has a tenth of the rate."""
    with pytest.MonkeyPatch.context() as patch:
        running.scripted_scores(patch, itertools.repeat(0.5))
        yield


@pytest.fixture(scope="module")
def config(people, language_model) -> Config:
    """Momentum, Adam's moments, temperature and patience must all come back. test_determinism.py resumes a cosine."""
    return tiny_config(
        people, f"model.language_model={language_model}", *running.FOUR_EPOCHS, "loss.adversarial_weight=0.5",
        "train.schedule=plateau", "train.plateau_patience=1", "train.image_optimizer=sgd", "train.text_optimizer=adam",
        "train.discriminator_optimizer=sgd", "loss.matching=infonce",
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory) -> SimpleNamespace:
    """A run of this config, and the seconds that it took."""
    run, started_at = tmp_path_factory.mktemp("undisturbed") / "run", time.monotonic()
    fit(config, run, progress=False)
    history = Run(run).history()  # or resuming it would prove little
    assert history["language_model_frozen"].tolist() == [True, True, False, False]
    assert history["image_lr"].tolist() == pytest.approx([5e-4, 5e-4, 5e-4, 5e-5])
    return SimpleNamespace(config=config, run=run, seconds=time.monotonic() - started_at)


def assert_resumed_equals(undisturbed: SimpleNamespace, run: Path) -> None:
    fit(undisturbed.config, run, resume=True, progress=False)
    running.assert_same_run(undisturbed.run, run)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_training_ended_at_random_moments(config, undisturbed, tmp_path, number):
    """One run is ended again and again until it is finished, then the next one."""
    rng, runs, tries = np.random.default_rng(int(number)), 0, 0
    while tries < TRIES:
        run = tmp_path / f"{runs}" / "run"
        for _ in range(8):
            process = running.forked(fit, config, run, True, False)
            process.join(rng.uniform(0, undisturbed.seconds))
            if process.is_alive():
                os.kill(process.pid, number)
            process.join(120)
            assert process.exitcode in (0, -number, 128 + number)
            if process.exitcode == 0:
                break
            tries += 1
        assert_resumed_equals(undisturbed, run)
        runs += 1


# The event at which the process is killed: (owner, its function, the nth call of it, epochs saved by then).
# There are 3 steps in an epoch, and epoch 1 stays the best.
KILLS = {
    "best model of epoch 1, whose checkpoint is saved": (Run, "save_best", 1, 1),
    "step 2 of epoch 4": (training, "train_step", 11, 3),
    "checkpoint of the last epoch": (Learner, "save", 4, 3),
    "new checkpoint moved in": (Path, "rename", 4, 1),  # after last 1, best 2, old last away 3
    "results": (Run, "complete", 1, 4),
}


@pytest.mark.parametrize(("owner", "name", "nth", "saved"), KILLS.values(), ids=KILLS)
def test_killed_at_an_event_and_resumed(config, undisturbed, tmp_path, monkeypatch, owner, name, nth, saved):
    run = tmp_path / "run"
    running.killed_at(config, run, owner, name, nth)
    assert not Run(run).finished
    for module, function in [(torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")]:
        monkeypatch.setattr(module, function, lambda *_, **__: pytest.fail("unpickled something"))
    steps = running.signalled_step(monkeypatch, 0)  # counts them, and signals in none
    assert_resumed_equals(undisturbed, run)
    assert len(steps) == 3 * (4 - saved)  # what was finished is not done again


@pytest.mark.parametrize("every", [1, 5])
def test_interrupted_after_every_few_steps(config, undisturbed, tmp_path, monkeypatch, every):
    """Model, optimizers, schedulers, sums and draws of an epoch that is begun come back; the clock jumps by years."""
    jumps = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 1e9 + (-1) ** next(jumps) * 3e8)
    for done in range(every, 13, every):  # 4 epochs of 3 steps
        with monkeypatch.context() as patched:
            steps = running.signalled_step(patched, every)
            with pytest.raises(Interrupted) as caught:
                fit(config, tmp_path / "run", resume=True, progress=False)
        assert len(steps) == every
        epoch, step = divmod(done, 3)
        moment = f"in epoch {epoch + 1} after step {step} of 3" if step else f"after epoch {epoch}"
        assert f"run: interrupted {moment}, which is saved; go on with --resume" in str(caught.value)
    assert_resumed_equals(undisturbed, tmp_path / "run")
    assert Run(tmp_path / "run").history()["seconds"].between(0, 3600).all()


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
    assert_resumed_equals(undisturbed, disk / "run")


def test_disk_that_fills_before_a_store_is_built(tmp_path, monkeypatch, mount):
    """What is free is not what may be had (a quota, another process): an error, where a mapped page would SIGBUS."""
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("TIMAM_CACHE", str(mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path / "cache")))
    paths = [write_picture(tmp_path / f"{i}.png", seed=i) or tmp_path / f"{i}.png" for i in range(10)]

    def build() -> None:
        with pytest.raises(OSError, match=r"No space left on device.*solve this.*cache"):
            open_pixels(paths, 96, 64, progress=False)

    process = running.forked(build)
    process.join(60)
    assert process.exitcode == 0
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_read_only_run_directory(config, undisturbed, tmp_path, mount):
    """A finished run is read and searched as ever; an interrupted one says that it cannot write, goes on elsewhere."""
    shutil.copytree(undisturbed.run, tmp_path / "finished" / "run")
    running.interrupted(config, tmp_path / "begun" / "run", steps=5)
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
    (problem,) = gallery.problems
    assert "not kept, to be encoded again the next time" in problem
    shutil.copytree(tmp_path / "begun" / "run", tmp_path / "elsewhere" / "run")
    assert_resumed_equals(undisturbed, tmp_path / "elsewhere" / "run")


def test_damage_in_an_interrupted_run_is_named_with_what_to_do(config, undisturbed, tmp_path):
    """Interrupted in the last epoch. A history is written again; everything else is compared with its checksum."""
    begun, rng = running.interrupted(config, tmp_path / "begun", steps=11), np.random.default_rng(0)
    damages = {
        "checkpoints/last/optimizers.safetensors": running.flip_a_bit,
        "checkpoints/last/training_state.json": running.cut,
        "checkpoints/best/model.safetensors": running.flip_a_bit,
        "val_embeddings/before.safetensors": running.cut,
    }
    for file, damage in damages.items():
        run = shutil.copytree(begun, tmp_path / file / "run")
        damage(run / file, rng)
        with pytest.raises(RunError, match=rf"(?s){Path(file).name}.*and train again"):
            fit(config, run, resume=True, progress=False)
    running.cut(begun / "history.csv", rng)
    assert_resumed_equals(undisturbed, begun)


def test_damage_in_a_finished_run_is_named_and_mended(config, undisturbed, tmp_path):
    """Also where the file can still be read, as numbers of others."""
    run = shutil.copytree(undisturbed.run, tmp_path / "run")
    for name in ("metrics.json", "history.csv"):
        running.flip_a_bit(run / name, np.random.default_rng(0))
        with pytest.raises(RunError, match=rf"{name} is damaged.*Remove .*metrics\.json and go on with --resume"):
            fit(config, run, progress=False)
        (run / "metrics.json").unlink()
        assert_resumed_equals(undisturbed, run)


def test_interrupted_papermill_saves_the_step(people, tmp_path):
    """Ctrl-C reaches papermill, which interrupts its kernel and then ends it within five seconds."""
    Run(tmp_path).create(tiny_config(people, "train.epochs=300", "train.early_stop=none"))
    source = f"""
from pathlib import Path
from timam.run import Run
from timam.training import fit
fit(Run(Path({str(tmp_path)!r})).config(), {str(tmp_path / "run")!r}, progress=False)
"""
    cells = [nbformat.v4.new_code_cell(source)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "in.ipynb")
    command = [sys.executable, "-m", "papermill", "-k", "python3", tmp_path / "in.ipynb", tmp_path / "out.ipynb"]
    process = running.started(command)
    running.wait_until((tmp_path / "run" / "history.csv").exists, process)
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
