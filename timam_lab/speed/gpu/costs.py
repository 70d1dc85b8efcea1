"""What a training step, the metrics, encoding and the stores cost on a GPU: `timam_lab.speed` at its sizes."""

from __future__ import annotations

import copy
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from timam.config import PRESETS, Config, override
from timam.job import Job
from timam.learner import Learner
from timam.metrics import retrieval_metrics
from timam.stores import open_pixels
from timam_lab.speed import encoding, growth, stores
from timam_lab.speed.gpu import CORES, Item, Lab, Row
from timam_lab.speed.gpu.recipes import SMALL_ENCODERS, TINY, settings_of
from timam_lab.speed.timing import DEVICE, medians, random_model, scratch
from timam_lab.speed.training import overhead_row, prepare

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

    def steps(batch: int) -> Iterator[Item]:
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
    for batch in lab.size((128, 512, 64, 256), (4,)):
        yield from steps(batch)


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
        job.accelerator = copy.copy(job.accelerator)
        setattr(job.accelerator, "autocast", nullcontext)  # noqa: B010  (mypy: a method)

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


# -- runs side by side ------------------------------------------------------------------------------------------------


def abreast(lab: Lab) -> Iterator[Item]:
    """How many runs of `quick` pay on one device: a process each, one core each."""
    counts, seconds = lab.size((1, 4, max(1, CORES - 2)), (2,)), lab.size(2.0, 0.5)
    with ProcessPoolExecutor(max(counts), multiprocessing.get_context("spawn")) as pool:
        for precision in lab.size(("bf16", "no"), ("no",)):
            small = f"batch_size={lab.size(64, 4)} mixed_precision={precision}"
            penalty = f"gradient_penalty={PRESETS['quick'].loss.gradient_penalty}"
            config = override(step_config(lab, "quick", small), [penalty])
            rows = partial(abreast_rows, precision, partial(paces, pool, config, seconds), counts)
            yield Item("Steps of quick a second", f"precision {precision}", rows)


def abreast_rows(precision: str, work: Callable[[int], list[float]], counts: Sequence[int]) -> Iterator[Row]:
    work(max(counts))  # all have started
    for count in counts:
        found = work(count)
        yield {
            "precision": precision,
            "runs": count,
            "steps/s together": sum(found),
            "steps/s each": sum(found) / count,
        }


def paces(pool: ProcessPoolExecutor, config: Config, seconds: float, count: int) -> list[float]:
    """Steps a second of so many processes at the same time."""
    return list(pool.map(_pace, [config] * count, [time.time() + 0.2] * count, [seconds] * count))


def _pace(config: Config, start: float, seconds: float) -> float:
    """Steps a second from the time `start` on. Each process has one call at a time, as a call takes a while."""
    if _known.get("config") != config:
        torch.set_num_threads(1)
        learner = Learner.build(random_model(config.model, 11_003, ["a man"], DEVICE), config, 1)
        step = growth.stepper(learner, "frozen, stored", config, 11_003, 24, Job(config.train.mixed_precision))
        _known.update(config=config, step=step)
    time.sleep(max(0.0, start - time.time()))
    steps, started = 0, time.perf_counter()
    while steps % 10 or time.perf_counter() - started < seconds:
        loss = _known["step"]()["total"]
        steps += 1
        if steps % 10 == 0:
            float(loss)  # waits for the device, as often as training does
    return steps / (time.perf_counter() - started)


_known: dict[str, Any] = {}  # of a process of `abreast_rows`: the config and its step


# -- evaluation and stores --------------------------------------------------------------------------------------------


def evaluation(lab: Lab) -> Iterator[Item]:
    yield Item("Metrics", "a large gallery", partial(large_gallery, *lab.size((1_000_000, 10_000), (2_000, 50))))
    folder, size = some_pictures(lab), lab.size((224, 224), (64, 32))
    files = sorted(folder.rglob("*.jpg"))
    yield Item("Pixels to the device", "from the store", partial(to_device, files, size, lab.size(256, 8)))
    rows = partial(store_rows, folder, lab.size((384, 128), (64, 32)), lab.size(2, 1))
    yield Item("Stores and a torchvision loader", "384x128", rows)
    for setting in encoding.SETTINGS[:: lab.size(-1, 2)]:
        row = partial(encoding.picture_row, folder, files, setting, lab.size(2, 1))
        yield Item(f"Encoding {len(files)} pictures", setting[0], lambda row=row: [row()])  # type: ignore[misc]


def some_pictures(lab: Lab, count: int = 6_000) -> Path:
    """A folder of links to the first pictures, in a folder of their own, as torchvision's reader wants them."""
    folder = lab.work / "some"
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for file in sorted((lab.work / "people/imgs").rglob("*.jpg"))[:count]:
        link = folder / "pictures" / file.name
        link.unlink(missing_ok=True)
        link.symlink_to(file)
    return folder


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
