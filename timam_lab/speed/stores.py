"""What stored pictures and word states save, compared with a torchvision DataLoader and with epochs without a store.

python -m timam_lab.speed.stores --output reports/benchmarks/stores.md
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the loader's workers are forked

import click
import numpy as np
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from timam.files import cache_folder
from timam.images import IMAGENET_MEAN, IMAGENET_STD, normalize
from timam.stores import WordStates, open_pixels, open_word_states
from timam_lab.pedestrians import PedestrianSpec, render_pedestrians
from timam_lab.speed.timing import medians, report, scratch, table
from timam_lab.speed.training import Setting, prepare

BATCH, CORES = 64, os.cpu_count() or 1
Size = tuple[int, int]
Row = tuple[str, str, str, str, str, str]  # what, theirs, ours, ratio, target, met


def row(what: str, theirs: float, ours: float, unit: str, at_least: float = 0, at_most: float = 0) -> Row:
    """A row of the table with the ratio ours / theirs.

    Args:
        unit: as a format, for example "{:.2f} s".
        at_least, at_most: target of the ratio; 0 for none.
    """
    ratio = ours / theirs
    target = f"at least {at_least:g}" if at_least else f"at most {at_most:g}" if at_most else ""
    met = ratio >= at_least and ratio <= (at_most or ratio)
    return (
        what,
        unit.format(theirs),
        unit.format(ours),
        f"{ratio:.2f}",
        target,
        ("yes" if met else "**no**") * bool(target),
    )


def forget(stores: bool, files: list[Path]) -> None:
    """Removes the stores, and drops files from the system's memory."""
    if stores:
        shutil.rmtree(cache_folder(), ignore_errors=True)
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())  # only what is on the disk can be dropped
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# -- pictures ---------------------------------------------------------------------------------------------------


def torchvision_loader(folder: Path, size: Size) -> torch.utils.data.DataLoader:
    steps = [v2.Resize(size), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    pictures = ImageFolder(str(folder), v2.Compose([*steps, v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]))
    return torch.utils.data.DataLoader(
        pictures, BATCH, shuffle=True, drop_last=True, num_workers=CORES, persistent_workers=True
    )


def read_loader(loader: torch.utils.data.DataLoader) -> None:
    for _ in loader:
        pass


def read_store(pixels: np.ndarray, form: str = "reused", passes: int = 1) -> None:
    """Shuffled passes in batches: "uint8", "fresh" (float32, a new tensor each) or "reused" (float32, one tensor)."""
    out = torch.empty(BATCH, *pixels.shape[1:]).contiguous(memory_format=torch.channels_last)
    for _ in range(passes):
        order = np.random.default_rng().permutation(len(pixels))[: len(pixels) // BATCH * BATCH]
        for chosen in order.reshape(-1, BATCH):
            batch = torch.from_numpy(pixels[chosen])
            if form != "uint8":
                normalize(batch, out if form == "reused" else None)


def picture_paths(folder: Path) -> list[Path]:
    return [Path(path) for path, _ in ImageFolder(str(folder)).samples]


def picture_rows(folder: Path, size: Size, rounds: int, title: str) -> list[Row]:
    paths, unit = picture_paths(folder), "{:,.0f} pictures/s"
    title, count = f"{title}, {size[0]}x{size[1]}", len(paths) // BATCH * BATCH
    build = partial(open_pixels, paths, *size, progress=False)
    rows = []
    for dropped in (True, False):
        ways = {"theirs": lambda: read_loader(torchvision_loader(folder, size)), "ours": lambda: read_store(build())}
        taken = medians(3, ways, partial(forget, True, paths if dropped else []))
        what = f"{title}: first pass, no store, files {'not ' * dropped}in memory"
        rows.append(row(what, count / taken["theirs"], count / taken["ours"], unit))

    loader, pixels = torchvision_loader(folder, size), build()
    later = {form: partial(read_store, pixels, form, 5) for form in ("reused", "fresh", "uint8")}  # one is too short
    taken = medians(rounds, {"theirs": partial(read_loader, loader), **later})
    named = {"reused": "float32 into one reused tensor", "fresh": "float32 in new tensors",
             "uint8": "uint8 (a GPU normalises them)"}  # fmt: skip
    for form, what in named.items():
        rates = count / taken["theirs"], 5 * count / taken[form]
        rows.append(row(f"{title}: later passes, {what}", *rates, unit, 20))
    drop = partial(forget, False, [*paths, *cache_folder().rglob("*.npy")])
    taken = medians(rounds, {"theirs": partial(read_loader, loader), "ours": partial(read_store, pixels)}, drop)
    rates = count / taken["theirs"], count / taken["ours"]
    return [*rows, row(f"{title}: later passes, files not in memory", *rates, unit), *build_rows(paths, size, rounds)]


def build_rows(paths: list[Path], size: Size, rounds: int) -> list[Row]:
    """Building a store compared with decoding alone, and with decoding and resizing, as loaders do in every epoch."""

    def decode(path: Path) -> Image.Image:
        return Image.open(path).convert("RGB")

    def resize(path: Path) -> Image.Image:
        return decode(path).resize(size[::-1], Image.Resampling.BILINEAR)

    def in_threads(work: Callable[[Path], Image.Image]) -> None:
        with ThreadPoolExecutor(CORES) as pool:
            for _ in pool.map(work, paths):
                pass

    ways: dict[str, Callable[[], Any]] = {"decode": partial(in_threads, decode), "resize": partial(in_threads, resize),
            "build": partial(open_pixels, paths, *size, progress=False)}  # fmt: skip
    taken = medians(rounds, ways, partial(forget, True, []))
    what = f"{{}} {len(paths):,} pictures / building their store"
    return [row(what.format("decoding"), taken["decode"], taken["build"], "{:.2f} s", at_most=1.2),
            row(what.format("decoding and resizing"), taken["resize"], taken["build"], "{:.2f} s")]  # fmt: skip


# -- memory -----------------------------------------------------------------------------------------------------


def memory_of_reading(paths: list[Path], size: Size) -> dict[str, int]:
    """KiB after a child process read a whole store. "VmHWM" (peak, shared file pages included) is the child's own;
    ru_maxrss, for systems without /proc, starts from the parent's."""
    read_store(open_pixels(paths, *size, progress=False))
    try:
        lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        return {key: int(lines[key].split()[0]) for key in ("VmHWM", "RssAnon")}
    except OSError:
        return {"ru_maxrss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def memory_rows(folder: Path, size: Size) -> list[Row]:
    """Memory after reading a store, compared with one of a quarter of its size."""
    paths, values = picture_paths(folder), []
    for times in (1, 4):
        open_pixels(paths * times, *size, progress=False)  # built here, only read there
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            values.append(pool.apply(memory_of_reading, (paths * times, size)))
    stores = [f"{k * len(paths) * 3 * size[0] * size[1] / 2**20:,.0f} MiB" for k in (1, 4)]
    what = f"{{}} after reading a store of {stores[0]} / of {stores[1]}"
    return [
        row(what.format(key), values[0][key] / 1024, values[1][key] / 1024, "{:,.0f} MiB",
            at_most=1.05 if key == "RssAnon" else 0)
        for key in values[0]
    ]  # fmt: skip


# -- word states ------------------------------------------------------------------------------------------------


def text_pass(setting: Setting, words: WordStates | None) -> None:
    """An epoch of the text encoder alone."""
    model, captions = setting.learner.model, setting.train.split.captions
    model.train()
    order = np.random.default_rng().permutation(len(captions))[: setting.steps * BATCH]
    for chosen in order.reshape(-1, BATCH):
        if words:
            states, mask = words.gather(chosen)
        else:
            ids, mask = model.tokenize([captions[m] for m in chosen])
            states = model.text_encoder.word_states(ids, mask)
        model.text_encoder.summarize(states, mask).square().mean().backward()
        setting.learner.optimizers["text"].step()
        setting.learner.optimizers["text"].zero_grad()


def frozen_stage_rows(work: Path, rounds: int) -> list[Row]:
    setting = prepare("quick", True, BATCH, 5, work, ["language_model=bert-base-uncased"])
    store, captions = setting.train.words, setting.train.split.captions
    assert store is not None

    def whole(words: WordStates | None) -> None:
        setting.train.words = words
        setting.ours()

    epochs: dict[str, Any] = {"text encoder alone": partial(text_pass, setting),
                              f"whole steps with {setting.config.model.backbone}": whole}  # fmt: skip
    rows = []
    for what, epoch in epochs.items():
        taken = medians(rounds, {"without": partial(epoch, None), "stored": partial(epoch, store)})
        what = f"frozen BERT-base, {setting.steps} steps of {BATCH}, {what}"
        rows.append(row(what, taken["without"], taken["stored"], "{:.2f} s", at_most=1 / 5))
    forget(True, [])
    started = time.perf_counter()
    open_word_states(setting.learner.model, captions, progress=False)
    building = time.perf_counter() - started
    what = f"whole steps without the store / building the word-state store of {len(captions)} captions"
    return [*rows, row(what, taken["without"], building, "{:.2f} s")]


@click.command()
@click.option("--pictures", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="A folder of pictures in subfolders, instead of rendered ones of 500x375, for 224x224.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), default=Path("reports/benchmarks/stores.md"))
@click.option("--rounds", default=5, show_default=True)
def main(pictures: Path | None, output: Path, rounds: int) -> None:
    """Measures pictures per second, store building, memory and the frozen stage; writes the table to OUTPUT."""
    with scratch() as work:
        render_pedestrians(work / "people", PedestrianSpec.of_size(480, height=384, width=128), progress=False)
        if pictures is None:
            render_pedestrians(work / "wide", PedestrianSpec.of_size(120, height=375, width=500), progress=False)
        rows = memory_rows(work / "people" / "imgs", (384, 128))
        rows += picture_rows(work / "people" / "imgs", (384, 128), rounds, "rendered pedestrians")
        name = f"pictures of {pictures.name}" if pictures else "JPEGs of 500x375"
        rows += picture_rows(pictures or work / "wide" / "imgs", (224, 224), rounds, name)
        rows += frozen_stage_rows(work / "text", 3)
    intro = (
        f"Medians of {rounds} rounds (3 for first passes and the frozen stage; the word states are built once). "
        f"Theirs: a shuffled torchvision DataLoader over ImageFolder (Resize, ToImage, ToDtype, Normalize; {CORES} "
        "persistent workers), a plain decoding pass, an epoch without the store, or a store of a quarter of the size. "
        "The ratio is ours over theirs."
    )
    header = ["what", "theirs", "ours", "ratio", "target", "met"]
    report(output, __file__, "Stores: measured", intro, table(header, rows))


if __name__ == "__main__":
    main()
