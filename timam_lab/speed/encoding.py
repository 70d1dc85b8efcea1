"""Encoding pictures compared with the bare forward pass over tensors in memory, and sentences sorted by length.

    python -m timam_lab.speed.encoding --output reports/benchmarks/encoding.md

Rendered JPEGs of 500x375, batches of 64, random weights. Without a GPU, decoding uses the cores that the
model computes on, so it cannot be hidden behind the forward pass.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch

from timam.config import PRESETS, override
from timam.data import load_dataset
from timam.images import any_to_pixels, normalize
from timam.models import TIMAM
from timam.search import Gallery
from timam.stores import open_pixels
from timam_lab.pedestrians import PedestrianSpec, render_pedestrians
from timam_lab.speed.timing import DEVICE, Work, medians, random_model, report, scratch

BATCH = 64
SETTINGS = (  # name, backbone, height, width
    ("MobileNetV2, 128x64 (quick)", "mobilenet_v2", 128, 64),
    ("ResNet-50, 224x224", "resnet50", 224, 224),
)


@torch.no_grad()
def forward(model: TIMAM, batches: list[torch.Tensor]) -> None:
    for batch in batches:
        model.image_encoder(batch).cpu()


def decode(files: list[Path], height: int, width: int) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda file: any_to_pixels(file, height, width), files))


def picture_row(folder: Path, files: list[Path], setting: tuple[str, str, int, int], rounds: int) -> dict[str, str]:
    title, backbone, height, width = setting
    sizes = [f"model.image_height={height}", f"model.image_width={width}", f"model.backbone={backbone}"]
    model = random_model(override(PRESETS["quick"], sizes).model, 2, ["a person"]).eval()
    pixels = open_pixels(files, height, width, progress=False)
    parts = [torch.from_numpy(np.array(pixels[i : i + BATCH])) for i in range(0, len(files), BATCH)]
    ways: dict[str, Work] = {
        "bare forward": partial(forward, model, [normalize(part.to(DEVICE)) for part in parts]),
        "pixel store (`embed_split`)": partial(model.encode_pixels, pixels, BATCH),
        "only decoding": partial(decode, files, height, width),
        "files (`Gallery.build`)": partial(Gallery.build, model, folder),
    }
    taken = medians(rounds, ways)
    bare = taken["bare forward"]
    return {"": title, **{name: f"{seconds:.2f} s ({seconds / bare:.2f})" for name, seconds in taken.items()}}


def sentences(captions: list[str], rounds: int) -> str:
    model = random_model(PRESETS["quick"].model, 2, captions)
    parts = [captions[start : start + BATCH] for start in range(0, len(captions), BATCH)]
    ways = {"given": lambda: [model.encode_texts(part, BATCH) for part in parts],
            "sorted": lambda: model.encode_texts(captions, BATCH)}  # fmt: skip
    taken = medians(rounds, ways)
    return (
        f"{len(captions):,} sentences of rendered pedestrians, MiniLM's shape, batches of {BATCH}: in the given order "
        f"{taken['given']:.2f} s, in batches of similar length (`encode_texts`) {taken['sorted']:.2f} s: "
        f"{taken['given'] / taken['sorted']:.2f} times as fast."
    )


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--identities", default=330, help="Rendered people: about three pictures and six sentences each.")
@click.option("--rounds", default=7)
def main(output: Path, identities: int, rounds: int) -> None:
    """Writes the table to OUTPUT."""
    with scratch() as work:
        render_pedestrians(work, PedestrianSpec.of_size(identities, height=375, width=500), progress=False)
        files = sorted((work / "imgs").rglob("*.jpg"))
        rows = [picture_row(work / "imgs", files, setting, rounds) for setting in SETTINGS]
        text = sentences(load_dataset("pedestrians", work).split("train").captions, rounds)
    intro = f"{len(files):,} pictures, medians of {rounds}; in brackets the ratio to the bare forward pass."
    report(output, __file__, "Encoding a gallery", intro, rows, text)


if __name__ == "__main__":
    main()
