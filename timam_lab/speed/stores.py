"""What stored pictures and word states save, compared with a torchvision DataLoader and with epochs without a store.

python -m timam_lab.speed.stores --output reports/benchmarks/stores.md
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the loader's workers are forked

import click
import numpy as np
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from timam.files import cache_folder
from timam.images import IMAGENET_MEAN, IMAGENET_STD, normalize
from timam.stores import WordStates, open_pixels
from timam_lab.pedestrians import PedestrianSpec, render_pedestrians
from timam_lab.speed.timing import medians, report, scratch
from timam_lab.speed.training import prepare

BATCH, CORES = 64, os.cpu_count() or 1
PASSES = 5  # over the store in one round: a single one is too short to time
Size = tuple[int, int]


def row(what: str, theirs: float, ours: float, unit: str, target: str = "") -> dict[str, str]:
    """A row of the table with the ratio ours / theirs; `unit` is a format such as "{:.2f} s"."""
    return {"what": what, "theirs": unit.format(theirs), "ours": unit.format(ours), "ratio": f"{ours / theirs:.2f}",
            "target": target}  # fmt: skip


def read_loader(loader: torch.utils.data.DataLoader) -> None:
    for _ in loader:
        pass


def read_store(pixels: np.ndarray, form: str, passes: int = PASSES) -> None:
    """Shuffled passes in batches, as "uint8" or normalised as "float32"."""
    for _ in range(passes):
        order = np.random.default_rng().permutation(len(pixels))[: len(pixels) // BATCH * BATCH]
        for chosen in order.reshape(-1, BATCH):
            batch = torch.from_numpy(pixels[chosen])
            if form == "float32":
                normalize(batch)


def picture_rows(folder: Path, size: Size, rounds: int) -> list[dict[str, str]]:
    """Passes over the store compared with a loader, and building it compared with only decoding."""
    steps = [v2.Resize(size), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    pictures = ImageFolder(str(folder), v2.Compose([*steps, v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]))
    loader = torch.utils.data.DataLoader(
        pictures, BATCH, shuffle=True, drop_last=True, num_workers=CORES, persistent_workers=True
    )
    paths = [Path(path) for path, _ in pictures.samples]
    build = partial(open_pixels, paths, *size, progress=False)
    forms = {"float32": "float32, normalised", "uint8": "uint8 (a GPU normalises them)"}
    ways = {form: partial(read_store, build(), form) for form in forms}
    taken = medians(rounds, {"theirs": partial(read_loader, loader), **ways})
    count, title = len(paths) // BATCH * BATCH, f"{size[0]}x{size[1]}"
    rows = [
        row(f"{title}: passes, {what}", count / taken["theirs"], PASSES * count / taken[form],
            "{:,.0f} pictures/s", "at least 20")
        for form, what in forms.items()
    ]  # fmt: skip

    def decode() -> None:
        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(lambda path: Image.open(path).load(), paths))

    forget = partial(shutil.rmtree, cache_folder(), ignore_errors=True)
    taken = medians(rounds, {"decode": decode, "build": build}, forget)
    what = f"{title}: decoding {len(paths):,} pictures / building their store"
    return [*rows, row(what, taken["decode"], taken["build"], "{:.2f} s", "at most 1.2")]


def memory_of_reading(paths: list[Path], size: Size) -> float:
    """MiB of anonymous memory after a process read a whole store (Linux)."""
    read_store(open_pixels(paths, *size, progress=False), "float32", 1)
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) / 1024


def memory_row(folder: Path, size: Size) -> dict[str, str]:
    """Memory after reading a store, compared with one of a quarter of its size."""
    paths, values = sorted(folder.rglob("*.*")), []
    for times in (1, 4):
        open_pixels(paths * times, *size, progress=False)  # built here, only read there
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            values.append(pool.apply(memory_of_reading, (paths * times, size)))
    stores = [f"{k * len(paths) * 3 * size[0] * size[1] / 2**20:,.0f} MiB" for k in (1, 4)]
    what = f"anonymous memory after reading a store of {stores[0]} / of {stores[1]}"
    return row(what, values[0], values[1], "{:,.0f} MiB", "at most 1.05")


def frozen_row(work: Path, rounds: int) -> dict[str, str]:
    setting = prepare("quick", True, BATCH, 5, work, ["language_model=bert-base-uncased"])

    def epoch(words: WordStates | None) -> None:
        setting.train.words = words
        setting.ours()

    taken = medians(rounds, {"theirs": partial(epoch, None), "ours": partial(epoch, setting.train.words)})
    what = f"frozen BERT-base, {setting.steps} whole steps of {BATCH} with {setting.config.model.backbone}"
    return row(what, taken["theirs"], taken["ours"], "{:.2f} s", "at most 0.2")


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("reports/benchmarks/stores.md"))
@click.option("--rounds", default=5, show_default=True)
def main(output: Path, rounds: int) -> None:
    """Measures pictures per second, store building, memory and the frozen stage; writes the table to OUTPUT."""
    people, wide = (384, 128), (224, 224)
    with scratch() as work:
        render_pedestrians(work / "people", PedestrianSpec.of_size(480, height=384, width=128), progress=False)
        render_pedestrians(work / "wide", PedestrianSpec.of_size(120, height=375, width=500), progress=False)
        rows = [memory_row(work / "people/imgs", people), *picture_rows(work / "people/imgs", people, rounds)]
        rows += [*picture_rows(work / "wide/imgs", wide, rounds), frozen_row(work / "text", 3)]
    intro = (
        f"Medians of {rounds} rounds (3 for the frozen stage). Theirs: a shuffled torchvision DataLoader over "
        f"ImageFolder ({CORES} persistent workers), a plain decoding pass, an epoch without the store, or a store of a "
        "quarter of the size. The pictures are rendered at 384x128 and at 375x500. The ratio is ours over theirs."
    )
    report(output, __file__, "Stores: measured", intro, rows)


if __name__ == "__main__":
    main()
