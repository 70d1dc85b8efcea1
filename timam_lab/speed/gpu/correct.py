"""Whether it does on a GPU what it does on a CPU: every preset, resuming, the tests, several processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from timam.config import PRESETS, Config, override
from timam.data import load_dataset
from timam.evaluation import DIRECTIONS
from timam.interruption import Interrupted
from timam.job import Job
from timam.learner import Learner
from timam.objective import train_step
from timam.run import Run
from timam.search import Gallery
from timam.training import fit
from timam_lab.evaluating import evaluate_model
from timam_lab.pedestrians import PedestrianSpec, render_pedestrians
from timam_lab.speed import growth
from timam_lab.speed.gpu import CORES, REPOSITORY, SMALLEST, Item, Lab, Row
from timam_lab.speed.gpu.recipes import TINY, configure
from timam_lab.speed.timing import DEVICE, random_model
from timam_lab.speed.training import prepare

# -- it runs ----------------------------------------------------------------------------------------------------------


def runs(lab: Lab) -> Iterator[Item]:
    root = lab.work / "smallest"
    render_pedestrians(root, PedestrianSpec(**SMALLEST), 1, progress=False)
    yield Item("A run that SIGTERM stops", "resumed", partial(resumed_run, lab, root))
    yield Item("The same step on the device and on the CPU", "float32", partial(same_step, lab))
    yield Item("What waits for the device", "train_step and an epoch", partial(waits, lab))
    for precision in lab.size(("bf16", "no"), ("no",)):  # bf16 takes a CPU many times as long
        for preset in lab.size(tuple(PRESETS), ("quick", "modern", "clip")):
            yield Item("Small runs", f"{preset}, {precision}", partial(small_run, lab, root, preset, precision))


def small(lab: Lab, root: Path, preset: str, *settings: str) -> Config:
    """A few steps of a preset, the last epoch with the language model."""
    shrunk = "batch_size=8 epochs=2 max_steps=4 unfreeze_epoch=2 warmup_epochs=0 max_tokens=16 lstm_hidden=64"
    tiny = lab.size("", f"{TINY} {'backbone=resnet18' if preset in ('paper', 'modern') else ''}")
    return configure(preset, lab, root, shrunk, tiny, *settings)


def small_run(lab: Lab, root: Path, preset: str, precision: str) -> Iterator[Row]:
    started = time.monotonic()
    config = small(lab, root, preset, f"mixed_precision={precision}")
    run = Run.named(lab.work / "runs", config)
    metrics = fit(config, run.folder, resume=True, progress=False)
    model = run.best_model()
    again = evaluate_model(model, load_dataset("pedestrians", str(root)))
    gallery = Gallery.build(model, root / "imgs")
    scores, _ = gallery.search(model.encode_texts(["a man in a red coat"]), k=3)
    change = max(abs(again[d][key] - metrics[d][key]) for d in DIRECTIONS for key in ("rank_1", "mAP"))
    yield {"preset": preset, "mixed precision": precision, "last loss": float(run.history()["total"].iloc[-1]),
           "test mAP": metrics["text_to_image"]["mAP"], "changed when evaluated again": change,
           "best cosine of a search": float(scores[0, 0]), "s": time.monotonic() - started}  # fmt: skip


def resumed_run(lab: Lab, root: Path) -> Iterator[Row]:
    """SIGTERM after the first epoch, then the rest; compared with an undisturbed run."""
    config = small(lab, root, "smoke", "epochs=4")
    fit(config, lab.work / "runs/whole", resume=True, progress=False)
    whole, stopped = Run(lab.work / "runs/whole"), Run(lab.work / "runs/stopped")
    shutil.rmtree(stopped.folder, ignore_errors=True)  # of an earlier call

    def stop() -> None:
        while not (stopped.folder / "history.csv").exists():
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    where = "not stopped"
    try:
        threading.Thread(target=stop, daemon=True).start()
        fit(config, stopped.folder, resume=True, progress=False)
    except Interrupted as error:
        where = str(error).partition(": ")[2]
    fit(config, stopped.folder, resume=True, progress=False)
    totals = [run.history()["total"].to_numpy() for run in (whole, stopped)]
    yield {"stopped": where, "largest change of an epoch's loss": float(np.abs(totals[0] - totals[1]).max())}


def on_device(inputs: dict[str, Tensor], labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    moved = {name: value if name == "lengths" else value.to(DEVICE) for name, value in inputs.items()}
    return moved, labels.to(DEVICE)


def same_step(lab: Lab) -> Iterator[Row]:
    """Loss terms of one step of `quick` from equal weights and inputs, with and without TF32 in convolutions."""
    config = override(PRESETS["quick"], [f"batch_size={lab.size(32, 4)}", *lab.size([], TINY.split())])
    job = Job("no")
    for tf32 in (True, False):
        torch.backends.cudnn.allow_tf32 = tf32
        cpu, device = (
            Learner.build(random_model(config.model, 50, ["a man"], torch.device("cpu")).to(d), config, 1)
            for d in ("cpu", DEVICE)
        )
        inputs, labels = growth.stepper(cpu, "frozen, stored", config, 50, 24, job).args[1:3]
        growth.stepper(device, "frozen, stored", config, 50, 24, job)  # freezes as the other one does
        ours = train_step(device, *on_device(inputs, labels), config, job)
        theirs = train_step(cpu, inputs, labels, config, job)
        yield {"TF32": tf32, **{k: abs(float(ours[k]) / float(theirs[k]) - 1) for k in ours if float(theirs[k])}}
    torch.backends.cudnn.allow_tf32 = True


@contextmanager
def sync_debug(mode: str) -> Iterator[None]:
    """On a GPU: a copy or a read that waits for the device warns, or is an error."""
    if DEVICE.type == "cuda":
        torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        if DEVICE.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def waits(lab: Lab) -> Iterator[Row]:
    """The lines that wait for the device: in `train_step` on inputs that are there, and in steps of a whole epoch."""
    steps = lab.size(10, 2)
    setting = prepare("quick", True, lab.size(32, 4), steps, lab.work / "steps", lab.size([], TINY.split()))
    step = growth.stepper(setting.learner, "frozen, stored", setting.config, 50, 24, setting.job)
    for work in (step, setting.ours):
        work()  # cuDNN's search, and the optimizers' state
    outcome = "nothing"
    try:
        with sync_debug("error"):
            step()
    except RuntimeError as error:
        outcome = f"{error}, in {place(traceback.extract_tb(error.__traceback__))}"
    yield {"where": "train_step, waiting is an error", "line": outcome, "times a step": ""}
    for where, times, work in (("train_step", 1, step), ("epoch", steps, setting.ours)):
        with sync_debug("warn"), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
        lines = Counter(f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message))
        for line, count in lines.most_common():
            yield {"where": where, "line": line.removeprefix(f"{REPOSITORY}/"), "times a step": count / times}


def place(frames: Iterable[traceback.FrameSummary]) -> str:
    """The last of our own lines."""
    ours = [f for f in frames if f.filename.startswith(str(REPOSITORY / "timam"))]
    return f"{ours[-1].filename.removeprefix(f'{REPOSITORY}/')}:{ours[-1].lineno}" if ours else "?"


# -- tests ------------------------------------------------------------------------------------------------------------


def tests(lab: Lab) -> Iterator[Item]:
    pure = ["tests/test_losses.py", "tests/test_metrics.py", "tests/test_objective.py"]
    fast = ["-m", "not slow and not browser"]
    table = "Fast tests"
    device = {"TIMAM_TEST_DEVICE": DEVICE.type}
    yield Item(table, "device as default", partial(pytest_rows, [*fast, *lab.size(pure, pure[:1])], device))
    yield Item(table, "as they are", partial(pytest_rows, lab.size(fast, ["tests/test_batches.py"]), {}))


def pytest_rows(arguments: list[str], environment: dict[str, str]) -> Iterator[Row]:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--tb=line",
        "-p",
        "no:cacheprovider",
        "-n",
        str(max(1, CORES // 4)),
    ]
    done = subprocess.run(
        [*command, *arguments], cwd=REPOSITORY, env=os.environ | environment, capture_output=True, text=True
    )
    lines = done.stdout.strip().splitlines() or [done.stderr]
    if done.returncode not in (0, 1):  # neither passed nor failed: not run
        raise RuntimeError(" ".join(lines[-3:]))
    called = " ".join([*(f"{k}={v}" for k, v in environment.items()), *arguments])
    yield {"tests": called, "outcome": lines[-1]}
    for line in [line for line in lines if line.startswith(("FAILED", "ERROR"))][:60]:
        yield {"tests": "", "outcome": line[:200]}


# -- processes --------------------------------------------------------------------------------------------------------


def processes(lab: Lab) -> Iterator[Item]:
    config = override(PRESETS["quick"], [f"batch_size={lab.size(64, 4)}", *lab.size([], TINY.split())])
    for count in lab.size((1, 2), (2,)):
        yield Item("Losses of three steps, float32", f"{count} process(es), as torchrun starts them",
                   partial(process_rows, config, count))  # fmt: skip


def process_rows(config: Config, count: int) -> Iterator[Row]:
    """Beside the losses of this process, which no launcher started."""
    alone, shared = joint_losses(config)[0], growth.launch(count, joint_losses, config)
    for step, (a, b) in enumerate(zip(alone, shared[0], strict=True), 1):
        yield {"processes": count, "backend": shared[1], "step": step, "loss alone": a, "loss": b,
               "relative difference": abs(b / a - 1)}  # fmt: skip


def joint_losses(config: Config) -> tuple[list[float], str]:
    """The total losses of three steps, each process with its part of one batch, and the backend."""
    if torch.cuda.is_available():
        torch.backends.cudnn.allow_tf32 = False
        if int(os.environ.get("WORLD_SIZE", "1")) > torch.cuda.device_count():  # NCCL wants a device for each process
            torch.distributed.init_process_group("gloo")
            os.environ["LOCAL_RANK"] = "0"
    else:
        torch.set_num_threads(1)
    job = Job("no")
    cpu = torch.device("cpu")
    model = random_model(config.model, 50, ["a man"], cpu)
    step = growth.stepper(Learner.build(model, config, 3), "frozen, stored", config, 50, 24, job)
    inputs, labels = step.args[1:3]
    model = model.to(job.device)
    job.share_weights(model)
    learner = Learner.build(model, config, 3)
    batch = config.data.batch_size
    part = slice(job.index * batch // job.count, (job.index + 1) * batch // job.count)
    mine = on_device({name: value[part] for name, value in inputs.items()}, labels[part])
    losses = [float(train_step(learner, *mine, config, job)["total"]) for _ in range(3)]
    if not torch.distributed.is_initialized():
        return losses, "none"
    backend = torch.distributed.get_backend()
    torch.distributed.destroy_process_group()
    return losses, backend
