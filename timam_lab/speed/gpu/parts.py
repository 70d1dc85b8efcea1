"""What is measured on a GPU. Most of it is `timam_lab.speed` and `timam_lab.studies` at the sizes of a GPU."""

from __future__ import annotations

import copy
import json
import multiprocessing
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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers

from timam.config import MINILM, PRESETS, Config, override
from timam.data import load_dataset
from timam.evaluation import DIRECTIONS, evaluate_model
from timam.interruption import Interrupted
from timam.job import Job
from timam.learner import Learner
from timam.metrics import retrieval_metrics
from timam.models.weights import load_tokenizer
from timam.objective import Inputs, train_step
from timam.run import Run
from timam.search import Gallery
from timam.stores import open_pixels
from timam.training import fit
from timam_lab.oracle import oracle
from timam_lab.pedestrians import PedestrianSpec, render_pedestrians
from timam_lab.speed import encoding, growth, stores
from timam_lab.speed.gpu import CARRIED, REPOSITORY, Item, Lab, Part, Row
from timam_lab.speed.timing import DEVICE, medians, random_model, scratch
from timam_lab.speed.training import overhead_row, prepare
from timam_lab.studies import StudyError, grid, run_grid, table
from timam_lab.variations import with_fewer

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
SMALLEST = {"train_identities": 34, "val_identities": 10, "test_identities": 10, "height": 64, "width": 32}
# Rendered data, full and for a rehearsal. "people" has the training and test people of CUHK-PEDES; its validation split
# is smaller, because the probes of the modality gap take a core several seconds an epoch for 1,000 people.
PEOPLE: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "people": ({"train_identities": 11_003, "val_identities": 200, "test_identities": 1_000}, SMALLEST),
    "study": ({"train_identities": 1_500, "val_identities": 100, "test_identities": 300}, SMALLEST),
}
TINY = "image_height=64 image_width=32"  # of a rehearsal
SMALL_ENCODERS = f"{TINY} backbone=resnet18 language_model={MINILM} lstm_hidden=32"  # random ones of a rehearsal


def settings_of(preset: str, lab: Lab, layers: int = 2) -> list[str]:
    """Encoders that need no hub: `quick` has its own, packaged or carried; the others shapes with random weights.

    Args:
        layers: of the transformers in `paper`, `modern` and `clip`.
    """
    if preset in ("smoke", "quick"):
        carried = [f"language_model={CARRIED / 'MiniLM'}", f"backbone_weights={CARRIED / 'mobilenet_v2.safetensors'}"]
        return carried if CARRIED.exists() else []
    folder = lab.work / f"{'clip' if preset == 'clip' else 'bert'}-{layers}"
    if not (folder / "config.json").exists():
        tokenizer = load_tokenizer(str(CARRIED / "MiniLM") if CARRIED.exists() else MINILM)
        tokens: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id,
                                  "bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id,
                                  "num_hidden_layers": layers}  # fmt: skip
        seen = {"patch_size": 16, "num_hidden_layers": layers}
        shape: Any = transformers.BertConfig(**tokens, hidden_size=128, num_attention_heads=2, intermediate_size=512)
        if preset == "clip":
            shape = transformers.CLIPConfig(text_config=tokens, vision_config=seen, projection_dim=512)
        tokenizer.save_pretrained(folder)
        shape.save_pretrained(folder)
    random = ["backbone_weights=none", f"language_model={folder}", "language_model_weights=false"]
    return [*random, f"backbone={folder}"] if preset == "clip" else random


def configure(preset: str, lab: Lab, root: Path, *settings: str) -> Config:
    given = [part for text in settings for part in text.split()]
    return override(PRESETS[preset], ["dataset=pedestrians", f"root={root}", *settings_of(preset, lab), *given])


# -- it runs ----------------------------------------------------------------------------------------------------------


def runs(lab: Lab) -> Iterator[Item]:
    root = lab.work / "smallest"
    render_pedestrians(root, PedestrianSpec(**SMALLEST), 1, progress=False)
    for preset in PRESETS:
        for precision in lab.size(("no", "bf16"), ("no",)):  # bf16 takes a CPU many times as long
            yield Item("Small runs", f"{preset}, {precision}", partial(small_run, lab, root, preset, precision))
    yield Item("A run that SIGTERM stops", "resumed", partial(resumed_run, lab, root))
    yield Item("The same step on the device and on the CPU", "float32", partial(same_step, lab))
    yield Item("What waits for the device", "train_step and an epoch", partial(waits, lab))


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


def on_device(inputs: Inputs) -> Inputs:
    text = {name: value if name == "lengths" else value.to(DEVICE) for name, value in inputs.text.items()}
    return Inputs(inputs.images.to(DEVICE), text, inputs.identity_labels.to(DEVICE))


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
        inputs = growth.stepper(cpu, "frozen, stored", config, 50, 24, job).args[1]
        growth.stepper(device, "frozen, stored", config, 50, 24, job)  # freezes as the other one does
        ours, theirs = train_step(device, on_device(inputs), config, job), train_step(cpu, inputs, config, job)
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
    yield Item(table, "as they are", partial(pytest_rows, lab.size(fast, ["tests/test_batches.py"]), {}))
    device = {"TIMAM_TEST_DEVICE": DEVICE.type}
    yield Item(table, "device as default", partial(pytest_rows, [*fast, *lab.size(pure, pure[:1])], device))


def pytest_rows(arguments: list[str], environment: dict[str, str]) -> Iterator[Row]:
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider", "-n", str(CORES)]
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


# -- a step -----------------------------------------------------------------------------------------------------------


def step(lab: Lab) -> Iterator[Item]:
    peak = growth.machine(DEVICE, lab.size(8192, 256))
    yield Item("The machine", "rates", lambda: [{"product, TFLOP/s": peak["flops"] / 1e12,
                                                 "copy, GB/s": peak["bytes"] / 1e9}])  # fmt: skip
    shapes = {
        "paper": ("frozen, stored", "whole"),
        "modern": ("frozen, stored", "whole"),
        "clip": ("whole",),
        "quick": ("frozen, stored", "whole"),
    }
    for batch in lab.size((128, 512, 64, 256), (4,)):
        for preset, variants in shapes.items():
            config = step_config(lab, preset, f"batch_size={batch}")
            rows = partial(step_rows, preset, config, variants, peak, lab.size(3, 1))
            yield Item("Steps", f"{preset}, {batch}", rows)
    for preset in lab.size(("paper", "modern", "quick"), ("quick",)):
        for frozen in (True, False):
            stage = "frozen" if frozen else "whole"
            yield Item("Over a bare step", f"{preset}, {stage}", partial(overhead, lab, preset, frozen))
    config = step_config(lab, "modern", f"batch_size={lab.size(128, 4)}")
    for switch, change in switches(lab).items():
        yield Item("Switches", switch, partial(switch_row, switch, change, config, lab.size(5, 1)))


def step_config(lab: Lab, preset: str, settings: str) -> Config:
    """Without gradient penalty: torch's counter of operations does not support its second derivatives."""
    clip = preset == "clip"
    own = settings_of(preset, lab, lab.size(12, 1)) if clip else []
    tiny = lab.size("", TINY if clip else SMALL_ENCODERS)
    return override(PRESETS[preset], [*own, "gradient_penalty=0", *settings.split(), *tiny.split()])


def step_rows(
    preset: str, config: Config, variants: tuple[str, ...], peak: dict[str, float], rounds: int
) -> Iterator[Row]:
    m, batch = config.model, config.data.batch_size
    for cost in growth.step_costs(config, 11_003, 32, DEVICE, peak, rounds, variants):
        yield {"preset": preset, "size": f"{m.image_height}x{m.image_width}", "language model": cost["variant"],
               "batch": batch, "ms": 1000 * cost["seconds"], "pictures/s": batch / cost["seconds"],
               "MFU, %": 100 * cost["floor_seconds"] / cost["seconds"],
               "peak GiB": cost["memory"] / 2**30}  # fmt: skip


def overhead(lab: Lab, preset: str, frozen: bool) -> Iterator[Row]:
    tiny = lab.size([], SMALL_ENCODERS.split())
    batch, steps = lab.size((64, 10), (4, 2))
    setting = prepare(preset, frozen, batch, steps, lab.work / f"steps-{preset}", tiny)
    yield {"preset": preset, "language model": "frozen, stored" if frozen else "whole", "batch": batch,
           **overhead_row(setting, lab.size(5, 1))}  # fmt: skip


def switches(lab: Lab) -> dict[str, Callable[[Learner, Job], None]]:
    """Each takes back something that training does; the last one adds to it."""

    def float32(learner: Learner, job: Job) -> None:
        setattr(job, "autocast", nullcontext)  # noqa: B010  (mypy: a method)

    def contiguous(learner: Learner, job: Job) -> None:
        learner.model.to(memory_format=torch.contiguous_format)

    def foreach(learner: Learner, job: Job) -> None:
        for group in (group for optimizer in learner.optimizers.values() for group in optimizer.param_groups):
            group |= {"fused": False, "foreach": True}

    def compiled(learner: Learner, job: Job) -> None:
        for encoder in (learner.model.image_encoder, learner.model.text_encoder.language_model):
            encoder.compile(backend=lab.size("inductor", "eager"))

    return {
        "float32 instead of bf16": float32,
        "contiguous instead of channels-last": contiguous,
        "foreach instead of fused optimizers": foreach,
        "torch.compile of both encoders": compiled,
    }


def switch_row(switch: str, change: Callable[[Learner, Job], None], config: Config, rounds: int) -> Iterator[Row]:
    """A whole step as training does it, and with one thing changed; they take turns."""
    ways, first = {}, 0.0
    for name in ("as it is", switch):
        job = copy.copy(Job(config.train.mixed_precision))
        learner = Learner.build(random_model(config.model, 11_003, ["a man"], DEVICE), config, 1)
        if name == switch:
            change(learner, job)
        ways[name] = growth.stepper(learner, "whole", config, 11_003, 32, job)
        started = time.monotonic()
        ways[name]()
        first = time.monotonic() - started
    taken = medians(rounds, ways)
    yield {"switch": switch, "ms": 1000 * taken[switch], "as it is, ms": 1000 * taken["as it is"],
           "as it is, times as fast": taken[switch] / taken["as it is"], "first step, s": first}  # fmt: skip


# -- learning ---------------------------------------------------------------------------------------------------------


def learning(lab: Lab) -> Iterator[Item]:
    for people in lab.size((11_003, 3_000, 750), (34, 10)):
        yield Item("Rank-1 over time", f"{people} people", partial(learning_rows, lab, people))
    yield Item("Ceiling (oracle) and chance, text to image", "test", partial(ceiling, lab.work / "people"))


def learning_settings(lab: Lab, people: int) -> list[str]:
    """`quick` with pictures of twice the size, and a batch that grows with the number of people.

    The rates grow with the root of the batch, the rule for Adam (Malladi et al., NeurIPS 2022). Epochs are those of the
    preset, or as many as fit into 1,600 steps.
    """
    scale = max(1, min(8, 2 ** round(np.log2(people / 750))))
    batch, t = PRESETS["quick"].data.batch_size * scale, PRESETS["quick"].train
    rates = {name: getattr(t, name) * scale**0.5 for name in ("image_lr", "text_lr", "language_model_lr")}
    epochs = lab.size(max(4, min(t.epochs, 1_600 * batch // (3 * people))), 2)
    sizes = lab.size("image_height=192 image_width=96", f"{TINY} max_steps=2 lstm_hidden=32 max_tokens=16").split()
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
        "image_height=128 image_width=64 batch_size=64 epochs=8 unfreeze_epoch=8",
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


# -- evaluation and stores --------------------------------------------------------------------------------------------


def evaluation(lab: Lab) -> Iterator[Item]:
    yield Item("Metrics", "a large gallery", partial(large_gallery, *lab.size((1_000_000, 10_000), (2_000, 50))))
    folder, size = lab.work / "study/imgs", lab.size((224, 224), (64, 32))
    files = sorted(folder.rglob("*.jpg"))
    yield Item("Pixels to the device", "from the store", partial(to_device, files, size, lab.size(256, 8)))
    for setting in encoding.SETTINGS[:: lab.size(1, 2)]:
        row = partial(encoding.picture_row, folder, files, setting, lab.size(2, 1))
        yield Item(f"Encoding {len(files)} pictures", setting[0], lambda row=row: [row()])  # type: ignore[misc]
    rows = partial(store_rows, folder, lab.size((384, 128), (64, 32)), lab.size(2, 1))
    yield Item("Stores and a torchvision loader", "384x128", rows)


def store_rows(folder: Path, size: tuple[int, int], rounds: int) -> Iterator[Row]:
    with scratch():  # it removes the stores between its rounds
        yield from stores.picture_rows(folder, size, rounds)


def large_gallery(size: int, queries: int) -> Iterator[Row]:
    gallery = torch.randn(size, 128, device=DEVICE)
    labels, near = torch.arange(size, device=DEVICE), gallery[:queries] + torch.randn(queries, 128, device=DEVICE)
    work = partial(retrieval_metrics, near, gallery, labels[:queries], labels)
    yield {"gallery": size, "queries": queries, "s": medians(1, {"": work})[""],
           "GiB more": growth.peak_memory(work, DEVICE) / 2**30}  # fmt: skip


def to_device(files: list[Path], size: tuple[int, int], batch: int) -> Iterator[Row]:
    """Shuffled batches from the memory-mapped store to the device, as training moves them, and page-locked."""
    pixels = open_pixels(files, *size, progress=False)
    order = np.random.default_rng(0).permutation(len(pixels))
    batches = [order[i : i + batch] for i in range(0, len(order), batch)]

    def move(lock: bool) -> None:
        for chosen in batches:
            rows = torch.from_numpy(pixels[chosen])
            (rows.pin_memory() if lock and DEVICE.type == "cuda" else rows).to(DEVICE, non_blocking=True)

    for name, seconds in medians(3, {"as training": lambda: move(False), "page-locked": lambda: move(True)}).items():
        yield {"way": name, "size": f"{size[0]}x{size[1]}", "batch": batch, "pictures/s": len(pixels) / seconds,
               "GB/s": pixels.nbytes / seconds / 1e9}  # fmt: skip


# -- processes --------------------------------------------------------------------------------------------------------


def processes(lab: Lab) -> Iterator[Item]:
    config = override(PRESETS["quick"], [f"batch_size={lab.size(64, 4)}", *lab.size([], TINY.split())])
    for count in (1, 2):
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
        os.environ["ACCELERATE_USE_CPU"] = "true"
        torch.set_num_threads(1)
    job = Job("no")
    cpu = torch.device("cpu")
    model = random_model(config.model, 50, ["a man"], cpu)
    inputs: Inputs = growth.stepper(Learner.build(model, config, 3), "frozen, stored", config, 50, 24, job).args[1]
    model = model.to(job.device)
    job.share_weights(model)
    learner = Learner.build(model, config, 3)
    batch = config.data.batch_size
    part = slice(job.index * batch // job.count, (job.index + 1) * batch // job.count)
    text = {name: value[part] for name, value in inputs.text.items()}
    mine = on_device(Inputs(inputs.images[part], text, inputs.identity_labels[part]))
    losses = [float(train_step(learner, mine, config, job)["total"]) for _ in range(3)]
    if not torch.distributed.is_initialized():
        return losses, "none"
    backend = torch.distributed.get_backend()
    torch.distributed.destroy_process_group()
    return losses, backend


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


PARTS = {
    "runs": Part("It runs", "Every preset for a few steps, evaluated and searched.", runs),
    "step": Part(
        "A training step",
        "Random weights and inputs, 11,003 people, captions of 32 tokens. MFU: operations as torch counts them, over "
        "the rate of a large matrix product here.",
        step,
    ),
    "learning": Part(
        "Learning at the size of CUHK-PEDES",
        "Rendered pedestrians. The recipe of `quick`, scaled (`learning_config`). Seconds are of training and "
        "validation. Test: 1,000 people.",
        learning,
    ),
    "tests": Part("Tests", "On a machine whose default device is the GPU.", tests),
    "studies": Part("A study", "Many runs side by side on one device, 1,500 people; fractions.", studies),
    "spread": Part("Spread", "Runs of one config and seed, five at a time; 500 people.", spread),
    "evaluation": Part("Evaluation and stores", f"{CORES} cores.", evaluation),
    "processes": Part("Processes", "Two processes on one device speak gloo: NCCL wants a device for each.", processes),
    "notebooks": Part("Notebooks", "Executed by notebooks/execute.py.", notebooks),
}  # fmt: skip
