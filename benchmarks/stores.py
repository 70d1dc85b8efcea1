"""What stored pictures and word states save: ours beside a torchvision DataLoader and an epoch without the store.

    GOMP_SPINCOUNT=1000 python benchmarks/stores.py

All contenders run alternately in one process; medians over the rounds. Writes one table in Markdown.
"""

from __future__ import annotations

import datetime
import multiprocessing
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

os.environ["HF_HUB_OFFLINE"] = "1"  # everything here is made on the spot
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the loader's workers are forked

import click
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from PIL import Image
from timing import alternate, seconds
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from timam.config import PRESETS, override
from timam.data import load_dataset
from timam.files import cache_folder
from timam.images import IMAGENET_MEAN, IMAGENET_STD, normalize
from timam.models import TIMAM
from timam.models.text_encoder import word_tokenizer
from timam.stores import WordStates, open_pixels, open_word_states
from timam.training import _train_epoch, build_optimizers
from timam_lab.pedestrians import PedestrianSpec, render_pedestrians

BATCH, CORES = 64, os.cpu_count() or 1
Row = tuple[str, str, str, float, str, bool | None]  # what, theirs, ours, ratio, target, met


def drop_page_cache(files: list[Path]) -> None:
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())  # only what is on the disk can be dropped
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def forget_stores() -> None:
    shutil.rmtree(cache_folder(), ignore_errors=True)


# -- pictures ---------------------------------------------------------------------------------------------------


def torchvision_loader(folder: Path, size: tuple[int, int]) -> torch.utils.data.DataLoader:
    steps = [v2.Resize(size), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    pictures = ImageFolder(str(folder), v2.Compose([*steps, v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]))
    return torch.utils.data.DataLoader(
        pictures, BATCH, shuffle=True, drop_last=True, num_workers=CORES, persistent_workers=True
    )


def read_loader(loader: torch.utils.data.DataLoader) -> int:
    return sum(len(images) for images, _ in loader)


def read_store(pixels: np.ndarray, form: str) -> int:
    """A shuffled pass in batches: "uint8", "fresh" (float32, a new tensor each) or "reused" (float32, one tensor)."""
    order = np.random.default_rng().permutation(len(pixels))[: len(pixels) // BATCH * BATCH]
    out = torch.empty(BATCH, *pixels.shape[1:]).contiguous(memory_format=torch.channels_last)
    for chosen in order.reshape(-1, BATCH):
        batch = torch.from_numpy(pixels[chosen])
        if form != "uint8":
            normalize(batch, out if form == "reused" else None)
    return len(order)


def rate(work: Callable[[], int]) -> float:
    """Pictures per second."""
    started = time.perf_counter()
    return work() / (time.perf_counter() - started)


def picture_rows(folder: Path, size: tuple[int, int], rounds: int, name: str) -> list[Row]:
    paths = [Path(path) for path, _ in ImageFolder(str(folder)).samples]
    title = f"{name}, {size[0]}x{size[1]}"

    def first_pass(dropped: bool, ours: bool) -> float:
        forget_stores()
        if dropped:
            drop_page_cache(paths)
        if ours:
            return rate(lambda: read_store(open_pixels(paths, *size, progress=False), "reused"))
        return rate(lambda: read_loader(torchvision_loader(folder, size)))

    rows: list[Row] = []
    for dropped in (True, False):
        found = alternate(3, theirs=lambda d=dropped: first_pass(d, False), ours=lambda d=dropped: first_pass(d, True))
        rows.append(rates(f"{title}: first pass, no store, files {'not ' * dropped}in memory", found, "ours"))

    loader, pixels = torchvision_loader(folder, size), open_pixels(paths, *size, progress=False)
    stored = list(cache_folder().rglob("*.npy"))
    read_loader(loader)  # starts its workers

    def after_drop(work: Callable[[], int]) -> float:
        drop_page_cache([*paths, *stored])
        return rate(work)

    def several(form: str) -> Callable[[], float]:  # passes of ours are too short to be timed one by one
        return lambda: median(rate(lambda: read_store(pixels, form)) for _ in range(5))

    found = alternate(
        rounds, theirs=lambda: rate(lambda: read_loader(loader)), reused=several("reused"), fresh=several("fresh"),
        uint8=several("uint8"), theirs_dropped=lambda: after_drop(lambda: read_loader(loader)),
        ours_dropped=lambda: after_drop(lambda: read_store(pixels, "reused")),
    )  # fmt: skip
    rows += [
        rates(f"{title}: later passes, float32 into one reused tensor", found, "reused", 20),
        rates(f"{title}: later passes, float32 in new tensors", found, "fresh", 20),
        rates(f"{title}: later passes, uint8 (a GPU normalises them)", found, "uint8", 20),
        rates(f"{title}: later passes, files not in memory", found, "ours_dropped", base="theirs_dropped"),
    ]
    return [*rows, *build_rows(paths, size, rounds, title)]


def rates(what: str, found: dict[str, float], ours: str, target: float | None = None, base: str = "theirs") -> Row:
    ratio = found[ours] / found[base]
    wanted = (f"at least {target:.0f}", ratio >= target) if target else ("", None)
    return what, f"{found[base]:,.0f} pictures/s", f"{found[ours]:,.0f} pictures/s", ratio, *wanted


def build_rows(paths: list[Path], size: tuple[int, int], rounds: int, title: str) -> list[Row]:
    """Building beside decoding alone, and beside decoding and resizing: what every loader does in every epoch."""

    def in_threads(work: Callable[[Path], Image.Image]) -> float:
        def all_of_them() -> None:
            with ThreadPoolExecutor(CORES) as pool:
                for _ in pool.map(work, paths):
                    pass

        return seconds(all_of_them)

    def decode(path: Path) -> Image.Image:
        return Image.open(path).convert("RGB")

    def resize(path: Path) -> Image.Image:
        return decode(path).resize(size[::-1], Image.Resampling.BILINEAR)

    def build() -> float:
        forget_stores()
        return seconds(lambda: open_pixels(paths, *size, progress=False))

    found = alternate(rounds, decode=lambda: in_threads(decode), resize=lambda: in_threads(resize), build=build)
    plain, usual = found["build"] / found["decode"], found["build"] / found["resize"]
    what = f"{title}: {{}} {len(paths):,} pictures / building their store"
    took = f"{found['build']:.2f} s"
    return [
        (what.format("decoding"), f"{found['decode']:.2f} s", took, plain, "at most 1.2", plain <= 1.2),
        (what.format("decoding and resizing"), f"{found['resize']:.2f} s", took, usual, "", None),
    ]


# -- memory -----------------------------------------------------------------------------------------------------


def memory_of_reading(paths: list[Path], size: tuple[int, int]) -> dict[str, int]:
    """KiB after a child process read a whole store. "VmHWM" (peak, shared file pages included) is the child's own:
    ru_maxrss, for systems without /proc, starts from the parent's."""
    pixels = open_pixels(paths, *size, progress=False)
    read_store(pixels, "reused")
    try:
        lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        return {key: int(lines[key].split()[0]) for key in ("VmHWM", "RssAnon")}
    except OSError:
        return {"ru_maxrss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def memory_rows(folder: Path, size: tuple[int, int]) -> list[Row]:
    paths = [Path(path) for path, _ in ImageFolder(str(folder)).samples]
    found = []
    for times in (1, 4):
        open_pixels(paths * times, *size, progress=False)  # built here, only read there
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found.append(pool.apply(memory_of_reading, (paths * times, size)))
    stores = [f"{k * len(paths) * 3 * size[0] * size[1] / 2**20:,.0f} MiB" for k in (1, 4)]
    rows: list[Row] = []
    for key in found[0]:
        small, large = (f[key] / 1024 for f in found)
        wanted = ("at most 1.05", large / small <= 1.05) if key == "RssAnon" else ("", None)
        what = f"{key} after reading a store of {stores[0]} / of {stores[1]}"
        rows.append((what, f"{small:,.0f} MiB", f"{large:,.0f} MiB", large / small, *wanted))
    return rows


# -- word states ------------------------------------------------------------------------------------------------


def frozen_stage_rows(work: Path, rounds: int) -> list[Row]:
    render_pedestrians(work / "small", PedestrianSpec(train_identities=83, val_identities=1, test_identities=1,
                                                      height=128, width=64), progress=False)  # fmt: skip
    split = load_dataset("cuhk-pedes", str(work / "small")).split("train")
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig()).save_pretrained(work / "bert")
    word_tokenizer(split.captions).save_pretrained(work / "bert")
    config = override(PRESETS["quick"], [f"model.language_model={work / 'bert'}", "model.backbone_weights=none",
                                         f"data.batch_size={BATCH}", "train.schedule=plateau"])  # fmt: skip
    model = TIMAM.pretrained(config.model, len(split.identities), split.captions)
    model.text_encoder.freeze()
    pixels = open_pixels(split.image_paths, config.model.image_height, config.model.image_width, progress=False)
    accelerator = Accelerator(cpu=True)
    optimizers = {name: accelerator.prepare(o) for name, o in build_optimizers(model, config.train).items()}
    started = time.perf_counter()
    store = open_word_states(model, split.captions, progress=False)
    building = time.perf_counter() - started
    steps = len(split.image_paths) // BATCH

    def text_side(states: WordStates | None) -> None:
        model.train()
        for captions in np.random.default_rng().permutation(len(split.captions))[: steps * BATCH].reshape(steps, BATCH):
            if states:
                words, mask = states.gather(captions)
            else:
                ids, mask = model.tokenize([split.captions[m] for m in captions])
                words = model.text_encoder.word_states(ids, mask)
            model.text_encoder.summarize(words, mask).square().mean().backward()
            optimizers["text"].step()
            optimizers["text"].zero_grad()

    def whole(states: WordStates | None) -> None:
        _train_epoch(model, split, pixels, states, optimizers, {}, config, 1, accelerator, steps, False)

    rows: list[Row] = []
    size = f"{steps} steps of {BATCH}"
    for what, epoch in ((f"text side alone, {size}", text_side),
                        (f"whole steps with {config.model.backbone}, {size}", whole)):  # fmt: skip
        found = alternate(rounds, without=lambda e=epoch: seconds(lambda: e(None)),
                          stored=lambda e=epoch: seconds(lambda: e(store)))  # fmt: skip
        ratio = found["without"] / found["stored"]
        rows.append((f"frozen BERT-base, an epoch of the {what}", f"{found['without']:.2f} s",
                     f"{found['stored']:.2f} s", ratio, "at least 5", ratio >= 5))  # fmt: skip
    what = f"building the word-state store of {len(split.captions)} captions / an epoch of whole steps without it"
    return [*rows, (what, rows[1][1], f"{building:.2f} s", building / found["without"], "", None)]


# -- the run ----------------------------------------------------------------------------------------------------


def report(rows: list[Row], command: str, rounds: int, taken: float) -> str:
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True,
                            text=True).stdout.strip()  # fmt: skip
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    table = [
        f"| {what} | {theirs} | {ours} | {ratio:.2f} | {target} | {'' if met is None else 'yes' if met else '**no**'} |"
        for what, theirs, ours, ratio, target, met in rows
    ]
    return "\n".join([
        "# Stores: measured", "",
        f"`{command}`, commit {commit or 'unknown'}, {datetime.date.today()}, {cpu}, {CORES} cores, torch "
        f"{torch.__version__}, {taken:.0f} s in all.", "",
        f"Medians of {rounds} rounds (3 for a first pass and the frozen stage; the store of word states is built once) "
        "in which the contenders take turns in one process. Theirs: a shuffled torchvision DataLoader over ImageFolder "
        f"(Resize, ToImage, ToDtype, Normalize; {CORES} persistent workers), a plain decoding pass, an epoch without "
        "the store, or a store a quarter as large. Rates and frozen-stage times: a ratio above 1 means that ours is "
        "faster. Decoding, memory and building: the ratio is ours over theirs.", "",
        "| what | theirs | ours | ratio | target | met |", "|---|---|---|---|---|---|", *table, "",
    ])  # fmt: skip


@click.command()
@click.option("--pictures", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="A folder of pictures in subfolders, instead of rendered ones of 500x375, for 224x224.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), default=Path("reports/benchmarks/stores.md"))
@click.option("--rounds", default=5, show_default=True)
def main(pictures: Path | None, output: Path, rounds: int) -> None:
    """Measures pictures per second, store building, memory and the frozen stage; writes the table to OUTPUT."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="timam-benchmark-") as folder:
        work = Path(folder)
        os.environ["TIMAM_CACHE"] = str(work / "cache")
        render_pedestrians(work / "people", PedestrianSpec.of_size(480, height=384, width=128), progress=False)
        if pictures is None:
            render_pedestrians(work / "wide", PedestrianSpec.of_size(120, height=375, width=500), progress=False)
        rows = memory_rows(work / "people" / "imgs", (384, 128))
        rows += picture_rows(work / "people" / "imgs", (384, 128), rounds, "rendered pedestrians")
        name = f"pictures of {pictures.name}" if pictures else "JPEGs of 500x375"
        rows += picture_rows(pictures or work / "wide" / "imgs", (224, 224), rounds, name)
        rows += frozen_stage_rows(work, 3)
    command = " ".join(["python", "benchmarks/stores.py", *sys.argv[1:]])
    text = report(rows, command, rounds, time.perf_counter() - started)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    click.echo(text)


if __name__ == "__main__":
    main()
