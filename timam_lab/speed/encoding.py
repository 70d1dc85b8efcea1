"""Encoding pictures compared with the bare forward pass over tensors in memory, and sentences sorted by length.

    python -m timam_lab.speed.encoding --output reports/benchmarks/encoding.md

JPEGs of 500x375 (noise over a gradient), batches of 64, random weights. Without a GPU, decoding uses the cores that the
model computes on, so it cannot be hidden behind the forward pass.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from timam.config import PRESETS, override
from timam.data import load_dataset
from timam.images import any_to_pixels, normalize
from timam.models import TIMAM
from timam.search import Gallery
from timam.stores import open_pixels
from timam_lab.pedestrians import PedestrianSpec, render_pedestrians
from timam_lab.speed.timing import DEVICE, medians, random_model, report, scratch, table

BATCH = 64
SETTINGS = (  # name, backbone, height, width
    ("MobileNetV2, 128x64 (quick)", "mobilenet_v2", 128, 64),
    ("ResNet-50, 224x224", "resnet50", 224, 224),
)


def write_pictures(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    gradient = np.linspace(0, 200, 500)[None, :, None] * np.array([1.0, 0.6, 0.3])
    for i in range(count):
        noise = rng.integers(0, 40, (375, 500, 3))
        Image.fromarray((gradient + noise).astype(np.uint8)).save(folder / f"{i:04d}.jpg", quality=90)
    return sorted(folder.glob("*.jpg"))


@torch.no_grad()
def forward(model: TIMAM, batches: Any) -> None:
    for batch in batches:
        model.image_encoder(batch).cpu()


def stored(model: TIMAM, pixels: np.ndarray) -> None:
    model.encode_pixels(pixels, BATCH)


def decode(files: list[Path], height: int, width: int) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda file: any_to_pixels(file, height, width), files))


def picture_row(files: list[Path], setting: tuple[str, str, int, int], rounds: int) -> list[str]:
    title, backbone, height, width = setting
    sizes = [f"model.image_height={height}", f"model.image_width={width}", f"model.backbone={backbone}"]
    model = random_model(override(PRESETS["quick"], sizes).model, 2, ["a person"]).eval()
    pixels = open_pixels(files, height, width, progress=False)
    tensors = [torch.from_numpy(np.array(picture)) for picture in pixels]
    batches = [normalize(torch.stack(tensors[i : i + BATCH]).to(DEVICE)) for i in range(0, len(files), BATCH)]
    taken = medians(
        rounds,
        {
            "bare": partial(forward, model, batches),
            "store": partial(stored, model, pixels),
            "memory": partial(model.encode_images, tensors, BATCH),
            "decode": partial(decode, files, height, width),
            "files": partial(Gallery.build, model, files[0].parent),
        },
    )
    bare = taken["bare"]
    cells = [f"{taken[k]:.2f} s ({taken[k] / bare:.2f})" for k in ("store", "memory", "decode", "files")]
    return [title, f"{bare:.2f} s", *cells, f"{taken['files'] / (bare + taken['decode']):.2f}"]


def sentences(folder: Path, rounds: int) -> str:
    spec = PedestrianSpec(train_identities=330, val_identities=1, test_identities=1, height=64, width=32)
    render_pedestrians(folder, spec, progress=False)
    captions = load_dataset("pedestrians", folder).split("train").captions
    model = random_model(PRESETS["quick"].model, 2, captions)
    parts = [captions[start : start + BATCH] for start in range(0, len(captions), BATCH)]
    taken = medians(
        rounds,
        {
            "given": lambda: [model.encode_texts(part, BATCH) for part in parts],
            "sorted": partial(model.encode_texts, captions, BATCH),
        },
    )
    return (
        f"{len(captions):,} sentences of rendered pedestrians, MiniLM's shape, batches of {BATCH}: in the given order "
        f"{taken['given']:.2f} s, in batches of similar length (`encode_texts`) {taken['sorted']:.2f} s: "
        f"{taken['given'] / taken['sorted']:.2f} times as fast."
    )


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--pictures", default=512)
@click.option("--rounds", default=7)
def main(output: Path, pictures: int, rounds: int) -> None:
    """Writes the table to OUTPUT."""
    with scratch() as work:
        files = write_pictures(work / "pictures", pictures)
        rows = [picture_row(files, setting, rounds) for setting in SETTINGS]
        text = sentences(work / "people", rounds)
    header = ["", "bare forward", "pixel store (`embed_split`)", "tensors (`encode_images`)", "only decoding",
              "files (`Gallery.build`)", "files / (bare + decoding)"]  # fmt: skip
    intro = f"{pictures} pictures, medians of {rounds}; in brackets the ratio to the bare forward pass."
    report(output, __file__, "Encoding a gallery", intro, table(header, rows), text)


if __name__ == "__main__":
    main()
